"""Autoencoder with l2, l1, SSIM or perceptual loss, and any of them as the score (MedIAnomaly, Cai et al. 2025)."""

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field

from anomalib_med.models.base import BackboneConfig
from anomalib_med.models.blocks import DenseAutoencoder
from anomalib_med.models.losses import PixelError, perceptual_error, pixel_error, squared_error
from anomalib_med.models.reconstruction.base import CodeConfig, Reconstruction
from anomalib_med.models.standard import Standard
from anomalib_med.models.training import StepBatch

Error = Literal[PixelError, "perceptual"]


class Autoencoder(Reconstruction):
    """Reconstructs an image from a few numbers; the anomaly map is the error of that, chosen apart from the loss.

    It is that of each pixel (l2, l1), around each (SSIM), or of the features of a frozen network (perceptual).
    """

    name = "autoencoder"
    title = "Autoencoder with l2, l1, SSIM or perceptual loss (Cai et al., MedIAnomaly, MedIA 2025)"

    class Config(CodeConfig, BackboneConfig):
        """Settings of the autoencoder. Those of the backbone matter to the perceptual error only."""

        loss: Error = "perceptual"
        """Error that is minimised: "l2", "l1", "ssim" or "perceptual", which is the best of MedIAnomaly."""
        score: Literal[Error, "loss"] = "loss"
        """Error that the map shows, one of the same four; "loss" is the one that was minimised."""
        bottleneck: Literal["dense", "spatial"] = "dense"
        """Whether there are `latent` numbers for the whole image ("dense") or for each cell of the coarsest feature map
        ("spatial")."""
        constraint: float = Field(0.0, ge=0)
        """Weight of the squared difference between the latent numbers of an image and of its reconstruction. It is 1 in
        the constrained autoencoder."""

    config: Config

    @property
    def uses_features(self) -> bool:
        """Whether the error of the loss or of the map is the perceptual one."""
        return "perceptual" in (self.config.loss, self.config.score)

    def build(self, shape: tuple[int, ...]) -> None:
        """Build the autoencoder."""
        c, spatial = self.config, self.config.bottleneck == "spatial"
        self.autoencoder = DenseAutoencoder(shape, c.widths, c.latent, c.hidden, spatial=spatial)
        if self.uses_features:
            self.standard = Standard((self.extractor.backbone.channels[0], 1, 1))

    def before_training(self, batches: Iterator[StepBatch]) -> None:
        """Learn the scale of the frozen features from the normals."""
        if self.uses_features:
            self.standard.learn(self.extractor.layers(batch.x)[0] for batch in batches)

    def training_step(self, batch: StepBatch) -> dict[str, torch.Tensor]:
        """The error of the reconstruction, and of its latent numbers where that is asked for."""
        c = self.config
        z = self.autoencoder.encode(batch.x)
        reconstructed = self.autoencoder.decode(z)
        losses: dict[str, torch.Tensor] = {c.loss: self._error(c.loss, batch.x, reconstructed).mean()}
        if c.constraint:
            losses["constraint"] = c.constraint * squared_error(z, self.autoencoder.encode(reconstructed)).mean()
        return losses

    def reconstructed(self, x: torch.Tensor) -> torch.Tensor:
        """Reconstructions ``(B, C, H, W)``."""
        return self.autoencoder.decode(self.autoencoder.encode(x))

    def compute_map(self, x: torch.Tensor) -> torch.Tensor:
        """Error ``(B, h, w)``, averaged over channels; h and w are those of the input, or of the frozen features."""
        c = self.config
        return self._error(c.loss if c.score == "loss" else c.score, x, self.autoencoder(x)).mean(1)

    def _error(self, kind: Error, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if kind != "perceptual":
            return pixel_error(kind, x, y)
        return perceptual_error(*(self.standard(self.extractor.layers(image)[0]) for image in (x, y)))
