"""ceVAE: a variational autoencoder that also learns to fill in what is hidden; with the post-processing of StRegA."""

from collections.abc import Callable
from typing import Literal

import cv2
import numpy as np
import torch
from pydantic import Field

from anomalib_med.models.blocks import DenseAutoencoder, leaky
from anomalib_med.models.filters import gaussian_blur
from anomalib_med.models.losses import absolute_error, squared_error
from anomalib_med.models.pooling import pool
from anomalib_med.models.reconstruction import latent
from anomalib_med.models.reconstruction.base import CodeConfig, Reconstruction
from anomalib_med.models.training import StepBatch

SQUARES = 3  # hidden in an image, at most
WINDOW, SIGMA = 7, 3.0  # of the Gaussian on a gradient, in pixels


class ContextEncodingVAE(Reconstruction):
    """Reconstructs an image from a distribution of a few numbers, and also from an image with squares painted over.

    The score is the loss of the image: its mean absolute error and its divergence from the prior.
    """

    name = "cevae"
    title = "ceVAE, context-encoding variational autoencoder (Zimmerer et al. 2018; StRegA, Chatterjee et al. 2022)"
    input_size = 128

    class Config(CodeConfig):
        """Settings of the context-encoding variational autoencoder; defaults are those of the official code."""

        epochs: int = Field(100, ge=1)
        batch_size: int = Field(16, ge=1)
        learning_rate: float = Field(1e-4, gt=0)
        latent: int = Field(128, ge=1)
        widths: tuple[int, ...] = Field((16, 64, 256, 1024), min_length=1)
        hidden: int = Field(0, ge=0)
        """Width of the layer between the feature map and the latent numbers; with 0 there is none."""
        beta: float = Field(0.01, ge=0)
        """Weight of the divergence from the prior."""
        context: float = Field(0.5, ge=0, le=1)
        """Weight of the painted images in the loss; the others have the rest."""
        score: Literal["reconstruction", "gradient", "combined"] = "reconstruction"
        """What the map shows: the squared error ("reconstruction"), the gradient of the loss at each pixel
        ("gradient"), or the error times the gradient of the divergence ("combined")."""
        image: Literal["elbo", "map"] = "elbo"
        """What gives the score of an image: its loss ("elbo") or its map, pooled ("map")."""
        min_area: int = Field(0, ge=0)
        """Pixels of the smallest connected piece above its own Otsu threshold that a map keeps; 0 keeps everything."""

    config: Config

    def build(self, shape: tuple[int, ...]) -> None:
        """Build the autoencoder, which has no norms."""
        c = self.config
        self.autoencoder = DenseAutoencoder(shape, c.widths, c.latent, c.hidden, heads=2, norm="none", activation=leaky)

    def training_step(self, batch: StepBatch) -> dict[str, torch.Tensor]:
        """Absolute errors of what came of the image and of the painted image, and the weighted divergence."""
        c, x = self.config, batch.x
        reconstructed, divergence = self._passed(x, draw=True)
        filled, _ = self._passed(paint_squares(x), draw=True)
        # The paper's images lie in [-1, 1], where an absolute error is twice as large.
        return {
            "error": (1 - c.context) * 2 * absolute_error(x, reconstructed).mean(),
            "divergence": (1 - c.context) * c.beta * divergence.mean(),
            "context": c.context * 2 * absolute_error(x, filled).mean(),
        }

    def reconstructed(self, x: torch.Tensor) -> torch.Tensor:
        """Reconstructions ``(B, C, H, W)``."""
        return self._passed(x)[0]

    def elbo(self, x: torch.Tensor) -> torch.Tensor:
        """Loss of each image ``(B,)``: mean absolute error, as in [-1, 1], and weighted divergence."""
        reconstructed, divergence = self._passed(x)
        return 2 * absolute_error(x, reconstructed).mean((1, 2, 3)) + self.config.beta * divergence

    def compute_map(self, x: torch.Tensor) -> torch.Tensor:
        """The map that `score` names, ``(B, H, W)``, mean over channels."""
        c = self.config

        def slope(loss: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
            return gaussian_blur(latent.input_gradient(loss, x), WINDOW, SIGMA)

        maps = slope(self.elbo) if c.score == "gradient" else squared_error(x, self.reconstructed(x))
        if c.score == "combined":
            maps = maps * slope(lambda one: self._passed(one)[1])
        return keep_large(maps.mean(1), c.min_area) if c.min_area else maps.mean(1)

    def image_score(self, x: torch.Tensor, maps: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """The loss of each image over its valid area, or its pooled map."""
        if self.config.image == "map":
            return super().image_score(x, maps, valid)
        x = x.to(self.device)
        error = 2 * absolute_error(x, self.reconstruct(x)).mean(1)
        divergence = self.each(lambda one: self._passed(one)[1], x)
        return pool(error, valid, "mean") + self.config.beta * divergence

    def _passed(self, x: torch.Tensor, *, draw: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Reconstruction, and the divergence of each image per latent number, ``(B,)``."""
        z, divergence = latent.gaussian(self.autoencoder.encode(x), draw=draw)
        return self.autoencoder.decode(z), divergence.mean(1)


def paint_squares(x: torch.Tensor) -> torch.Tensor:
    """Paint up to three squares of one random size, each of one random grey, over each image of ``(B, C, H, W)``.

    Sides go up to half the image; greys lie between the least and the greatest value of the batch.
    """
    count, height, width = len(x), x.shape[2], x.shape[3]
    low, high = x.min(), x.max()
    size = (torch.rand(count, device=x.device) * max(height, width) / 2).floor()[:, None, None]
    number = torch.randint(SQUARES + 1, (count,), device=x.device)[:, None, None]
    rows, columns = torch.arange(height, device=x.device)[:, None], torch.arange(width, device=x.device)
    painted = x
    for square in range(SQUARES):
        top, left, grey = torch.rand(3, count, device=x.device)[:, :, None, None]
        top, left = (top * (height - size)).floor(), (left * (width - size)).floor()
        inside = (rows >= top) & (rows < top + size) & (columns >= left) & (columns < left + size) & (number > square)
        painted = torch.where(inside[:, None], (low + grey * (high - low))[:, None], painted)
    return painted


def keep_large(maps: torch.Tensor, min_area: int) -> torch.Tensor:
    """Keep of each map what lies above its Otsu threshold in connected pieces of so many pixels; the rest becomes 0.

    The post-processing of StRegA, without its fixed threshold. Maps are ``(B, H, W)``, at least 0.
    """
    kept = []
    for one in maps.float().cpu().numpy():
        scaled = np.round(255 * one / max(float(one.max()), 1e-12)).astype(np.uint8)
        _, above = cv2.threshold(scaled, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
        _, pieces, statistics, _ = cv2.connectedComponentsWithStats(above, connectivity=8)
        large = statistics[:, cv2.CC_STAT_AREA] >= min_area
        large[0] = False  # what lies below the threshold
        kept.append(large[pieces])
    return maps * torch.from_numpy(np.stack(kept)).to(maps.device)
