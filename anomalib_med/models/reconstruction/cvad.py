"""CVAD: a variational autoencoder in two stages, and a discriminator that knows images from reconstructions.

Guo et al., "CVAD: A generic medical anomaly detector based on Cascade VAE", 2021, https://arxiv.org/abs/2110.15811.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn
from torch.optim import Adam, Optimizer

from anomalib_med.models.blocks import (
    Decoder,
    DenseBottleneck,
    Encoder,
    UpBlock,
    VectorEncoder,
)
from anomalib_med.models.losses import absolute_error, squared_error
from anomalib_med.models.pooling import pool
from anomalib_med.models.reconstruction import latent
from anomalib_med.models.training.normals import StepBatch
from anomalib_med.models.training.schedule import TrainingConfig
from anomalib_med.models.training.trainer import TrainedDetector

SHALLOW = 3  # halvings before the second stage takes over


class Cvad(TrainedDetector):
    """Reconstructs the coarse of an image from one latent vector and the fine from another, and judges the image.

    The score is the mean of two numbers, each in standard deviations from the normals' mean: the loss of the
    autoencoder, and how much the discriminator takes the image for a reconstruction. The anomaly map is the absolute
    difference.
    """

    name = "cvad"
    title = "CVAD, cascade variational autoencoder and discriminator (Guo et al. 2021)"
    input_size = 128

    class Config(TrainingConfig):
        """Settings of CVAD.

        Parameters
        ----------
        latent, fine_latent
            Numbers of the coarse and of the fine stage.
        widths
            Channels of the encoder at each halving of the image.
        beta
            Weight of the divergence from the prior.
        vae_share
            Share of the steps in which the autoencoder learns; then the discriminator alone. The discriminator learns
            from the first step on, so that a training that is cut short has one.
        image
            Where the image's score comes from: both networks ("cascade") or the map, pooled ("map").
        """

        pooling: str = "mean"
        epochs: int = Field(100, ge=1)
        batch_size: int = Field(64, ge=1)
        weight_decay: float = Field(1e-6, ge=0)
        latent: int = Field(512, ge=1)
        fine_latent: int = Field(512, ge=1)
        widths: tuple[int, ...] = Field((16, 32, 64, 128, 256), min_length=SHALLOW + 1)
        beta: float = Field(1.0, ge=0)
        vae_share: float = Field(0.9, gt=0, le=1)
        image: Literal["cascade", "map"] = "cascade"

        @property
        def multiple(self) -> int:
            """The sides are halved once for each width."""
            return 1 << len(self.widths)

    config: Config

    def build(self, shape: tuple[int, ...]) -> None:
        """Autoencoder, discriminator and the normals' statistics, for images ``(C, H, W)``."""
        c = self.config
        self.vae = CascadeVAE(shape, c.widths, c.latent, c.fine_latent)
        self.discriminator = VectorEncoder(shape, c.widths, c.latent, 1)
        self.normal = Normal()

    def optimizers(self) -> dict[str, Optimizer]:
        """One each."""
        c = self.config
        networks = {"vae": self.vae, "discriminator": self.discriminator}
        return {
            name: Adam(network.parameters(), c.learning_rate, weight_decay=c.weight_decay)
            for name, network in networks.items()
        }

    def training_step(self, batch: StepBatch) -> dict[str, torch.Tensor]:
        """Error and divergence of the autoencoder, or cross entropy of the discriminator, as `batch.optimizer` says."""
        x = batch.x
        if batch.optimizer == "vae":
            if batch.step >= self.config.vae_share * batch.steps:
                return {}
            reconstructed, divergence = self.vae(x, draw=True)
            return {
                "error": squared_error(x, reconstructed).mean(),
                "divergence": self.config.beta * divergence.mean() / x[0].numel(),
            }
        with torch.no_grad():
            reconstructed, _ = self.vae(x)
        image, copy = self.discriminator(x).float(), self.discriminator(reconstructed).float()
        # Softplus of the logit is the cross entropy with label 0, that of the images.
        return {"discriminator": (F.softplus(image) + F.softplus(-copy)).mean()}

    def after_training(self, batches: Iterator[StepBatch]) -> None:
        """Mean and standard deviation of both numbers over the normals."""
        numbers = torch.cat([self.each(self._numbers, batch.x) for batch in batches]).double()
        self.normal.mean.copy_(numbers.mean(0))
        self.normal.deviation.copy_(numbers.std(0, correction=0).clamp_min(1e-12))

    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        """Reconstructions ``(B, C, H, W)``."""
        return self.each(lambda one: self.vae(one)[0], x)

    def compute_map(self, x: torch.Tensor) -> torch.Tensor:
        """Absolute difference ``(B, H, W)``, mean over channels."""
        return absolute_error(x, self.reconstruct(x)).mean(1)

    def image_score(self, x: torch.Tensor, maps: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Mean of both standardised numbers, or the pooled map."""
        if self.config.image == "map":
            return pool(maps, valid, self.config.pooling)
        standardised: torch.Tensor = self.normal(self.each(self._numbers, x))
        return standardised.mean(1)

    def _numbers(self, x: torch.Tensor) -> torch.Tensor:
        """Loss of the autoencoder and logit of the discriminator, ``(B, 2)``."""
        reconstructed, divergence = self.vae(x)
        error = squared_error(x, reconstructed).mean((1, 2, 3))
        loss = error + self.config.beta * divergence / x[0].numel()
        return torch.stack([loss, self.discriminator(x)[:, 0].float()], dim=1)


class Normal(nn.Module):
    """Takes the two numbers of an image to standard deviations from the normals' mean."""

    def __init__(self) -> None:
        super().__init__()
        self.mean: torch.Tensor
        self.deviation: torch.Tensor
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("deviation", torch.ones(2))

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        """``(B, 2)`` to the same shape."""
        standardised: torch.Tensor = (numbers - self.mean) / self.deviation
        return standardised


class CascadeVAE(nn.Module):
    """Two variational autoencoders: the second sees the first one's features on the way down and on the way up.

    Parameters
    ----------
    shape
        Of an image, ``(C, H, W)``.
    widths
        Of the encoder; the second stage works at the resolution of the third.
    coarse, fine
        Lengths of the latent vectors.
    """

    def __init__(self, shape: tuple[int, ...], widths: tuple[int, ...], coarse: int, fine: int) -> None:
        super().__init__()
        channels, height, width = shape
        shallow, deep = widths[:SHALLOW], widths[SHALLOW:]
        middle = (widths[SHALLOW - 1], height >> SHALLOW, width >> SHALLOW)
        bottom = (widths[-1], height >> len(widths), width >> len(widths))
        self.shallow = Encoder(channels, shallow)
        self.deep = Encoder(shallow[-1], deep)
        self.coarse = DenseBottleneck(bottom, coarse, 0, heads=2)
        ups = [*reversed(deep), shallow[-1]]
        self.up = nn.Sequential(*(UpBlock(i, o) for i, o in pairwise(ups)))
        self.coarse_last = Decoder(channels, shallow, last_kernel=0)
        self.fine_down = nn.Linear(2 * middle[0] * middle[1] * middle[2], 2 * fine)
        self.fine_up = nn.Sequential(nn.Linear(fine, middle[0] * middle[1] * middle[2]), nn.Unflatten(1, middle))
        self.fine_last = Decoder(channels, shallow, last_kernel=0)

    def forward(self, x: torch.Tensor, *, draw: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Reconstruction ``(B, C, H, W)`` in [0, 1] and divergence ``(B,)`` summed over both latent vectors."""
        down = self.shallow(x)
        z, divergence = _latent(self.coarse.encode(self.deep(down)), draw=draw)
        up = self.up(self.coarse.decode(z))
        first = torch.sigmoid(self.coarse_last(up).float())
        z, more = _latent(self.fine_down(torch.cat([up, down], dim=1).flatten(1)), draw=draw)
        second = torch.sigmoid(self.fine_last(self.fine_up(z)).float())
        return 0.5 * (first + second), divergence + more


def _latent(code: torch.Tensor, *, draw: bool) -> tuple[torch.Tensor, torch.Tensor]:
    mean, log_variance = latent.gaussian(code)
    z = latent.sample_gaussian(mean, log_variance) if draw else mean
    return z, latent.gaussian_kl(mean, log_variance).sum(1)
