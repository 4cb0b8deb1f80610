"""CVAD: a variational autoencoder in two stages, and a discriminator that knows images from reconstructions."""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Literal, cast

import torch
from pydantic import Field
from torch import nn
from torch.optim import Optimizer

from anomalib_med.models.blocks import Decoder, Encoder, UpBlock, dense_bottleneck, dense_encoder, halved
from anomalib_med.models.losses import squared_error
from anomalib_med.models.reconstruction import latent
from anomalib_med.models.reconstruction.base import LatentConfig, Reconstruction
from anomalib_med.models.standard import Standard
from anomalib_med.models.training import StepBatch

SHALLOW = 3  # halvings before the second stage takes over


class Cvad(Reconstruction):
    """Reconstructs the coarse of an image from one latent vector and the fine from another, and judges the image.

    The score is the mean of two numbers, each in standard deviations from the normals' mean: the loss of the
    autoencoder, and how much the discriminator takes the image for a reconstruction.
    """

    name = "cvad"
    title = "CVAD, cascade variational autoencoder and discriminator (Guo et al. 2021)"
    input_size = 128
    error = "l1"

    class Config(LatentConfig):
        """Settings of CVAD; defaults are those of the official code."""

        batch_size: int = Field(64, ge=1)
        weight_decay: float = Field(1e-6, ge=0)
        latent: int = Field(512, ge=1)
        """How many numbers the coarse stage reconstructs an image from."""
        fine_latent: int = Field(512, ge=1)
        """How many numbers the fine stage reconstructs an image from: 2048 in the code, here less to save weights."""
        widths: tuple[int, ...] = Field((16, 32, 64, 128, 256), min_length=SHALLOW + 1)
        beta: float = Field(1.0, ge=0)
        """Weight of the divergence from the prior."""
        vae_share: float = Field(0.9, gt=0, le=1)
        """Share of the steps in which the autoencoder learns beside the discriminator, which then learns alone."""
        image: Literal["cascade", "map"] = "cascade"
        """What gives the score of an image: both networks ("cascade") or the map, pooled ("map")."""

    config: Config

    def build(self, shape: tuple[int, ...]) -> None:
        """Build autoencoder, discriminator and the scale of their two numbers."""
        c = self.config
        self.vae = CascadeVAE(shape, c.widths, c.latent, c.fine_latent)
        self.discriminator = dense_encoder(shape, c.widths, c.latent, 1)
        self.normal = Standard((2,), least=1e-12)

    def optimizers(self) -> dict[str, Optimizer]:
        """One Adam for each network."""
        return {"vae": self.adam(self.vae), "discriminator": self.adam(self.discriminator)}

    def training_step(self, batch: StepBatch) -> dict[str, torch.Tensor]:
        """Error and divergence of the autoencoder, or cross entropy of the discriminator, as `batch.optimizer` says."""
        x = batch.x
        if batch.optimizer == "vae":
            if batch.step >= self.config.vae_share * batch.steps:
                return {}
            reconstructed, divergence = self.vae(x, draw=True)
            divergence = self.config.beta * divergence.mean() / x[0].numel()
            return {"error": squared_error(x, reconstructed).mean(), "divergence": divergence}
        return {"discriminator": self.cross_entropy(self.discriminator, x, label=0)}

    def after_training(self, batches: Iterator[StepBatch]) -> None:
        """Learn the scale of both numbers from the normals."""
        self.normal.learn(self.each(self.numbers, batch.x) for batch in batches)

    def reconstructed(self, x: torch.Tensor) -> torch.Tensor:
        """Reconstructions ``(B, C, H, W)``."""
        return cast(torch.Tensor, self.vae(x)[0])

    def own_score(self, x: torch.Tensor) -> torch.Tensor:
        """Mean ``(B,)`` of both numbers, standardised."""
        return cast(torch.Tensor, self.normal(self.numbers(x))).mean(1)

    def numbers(self, x: torch.Tensor) -> torch.Tensor:
        """Loss of the autoencoder and logit of the discriminator, ``(B, 2)``."""
        reconstructed, divergence = self.vae(x)
        loss = squared_error(x, reconstructed).mean((1, 2, 3)) + self.config.beta * divergence / x[0].numel()
        return torch.stack([loss, self.discriminator(x)[:, 0].float()], dim=1)


class CascadeVAE(nn.Module):
    """Two variational autoencoders: the second sees the first one's features on the way down and on the way up.

    `coarse` and `fine` are the lengths of their latent vectors, `widths` the channels of the encoder at each halving of
    an image ``(C, H, W)``; the second stage works at the resolution of the third.
    """

    def __init__(self, shape: tuple[int, ...], widths: tuple[int, ...], coarse: int, fine: int) -> None:
        super().__init__()
        channels, shallow, deep = shape[0], widths[:SHALLOW], widths[SHALLOW:]
        middle = halved(shape, shallow)
        self.shallow = Encoder(channels, shallow)
        self.deep = Encoder(shallow[-1], deep)
        self.coarse_down, self.coarse_up = dense_bottleneck(halved(shape, widths), coarse, 0, heads=2)
        self.up = nn.Sequential(*(UpBlock(i, o) for i, o in pairwise((*reversed(deep), shallow[-1]))))
        self.coarse_last = Decoder(channels, shallow)
        self.fine_down = nn.Linear(2 * math.prod(middle), 2 * fine)
        self.fine_up = nn.Sequential(nn.Linear(fine, math.prod(middle)), nn.Unflatten(1, middle))
        self.fine_last = Decoder(channels, shallow)

    def forward(self, x: torch.Tensor, *, draw: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Reconstruction ``(B, C, H, W)`` in [0, 1] and divergence ``(B,)`` summed over both latent vectors."""
        down = self.shallow(x)
        z, divergence = latent.gaussian(self.coarse_down(self.deep(down)), draw=draw)
        up = self.up(self.coarse_up(z))
        first = torch.sigmoid(self.coarse_last(up).float())
        z, more = latent.gaussian(self.fine_down(torch.cat([up, down], dim=1).flatten(1)), draw=draw)
        second = torch.sigmoid(self.fine_last(self.fine_up(z)).float())
        return 0.5 * (first + second), divergence.sum(1) + more.sum(1)
