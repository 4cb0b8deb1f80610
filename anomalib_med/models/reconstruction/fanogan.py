"""f-AnoGAN: a generator learns to draw normals; an encoder finds the one that is nearest to an image."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, cast

import torch
from pydantic import Field
from torch import nn
from torch.optim import Optimizer

from anomalib_med.models.blocks import ConvBlock, ResidualBlock, VectorEncoder, halved, leaky, norm_layer
from anomalib_med.models.losses import squared_error
from anomalib_med.models.reconstruction.base import LatentConfig, Reconstruction
from anomalib_med.models.training import StepBatch

ENCODER_EVERY = 10  # steps in which the GAN learns too


class FAnoGan(Reconstruction):
    """A Wasserstein GAN of normals and an encoder into its latent space: what it cannot draw is abnormal.

    The score is the mean squared error of the reconstruction plus `kappa` times that of the critic's features; the
    anomaly map is the absolute difference.
    """

    name = "fanogan"
    title = "f-AnoGAN, Wasserstein GAN and encoder (Schlegl et al., MedIA 2019)"
    error = "l1"

    class Config(LatentConfig):
        """Settings of f-AnoGAN."""

        epochs: int = Field(200, ge=1)
        learning_rate: float = Field(2e-4, gt=0)
        schedule: Literal["constant"] = "constant"
        """The rate is constant: a falling one would leave nothing to the encoder, which learns last."""
        latent: int = Field(128, ge=1)
        widths: tuple[int, ...] = Field((32, 64, 128, 128), min_length=1)
        gan_share: float = Field(0.5, ge=0, le=1)
        """Share of the steps in which generator and critic learn, and at every tenth the encoder, which then learns
        alone, from networks that stand still."""
        critic_steps: int = Field(5, ge=1)
        """Steps of the critic for each step of the generator, as in Gulrajani et al."""
        penalty: float = Field(10.0, ge=0)
        """Weight of the gradient penalty, as in Gulrajani et al."""
        kappa: float = Field(1.0, ge=0)
        """Weight of the critic's features, for the encoder's loss and for the score."""
        image: Literal["features", "map"] = "features"
        """What gives the score of an image: image and features ("features") or the map, pooled ("map")."""

    config: Config

    def build(self, shape: tuple[int, ...]) -> None:
        """Build encoder, critic and generator."""
        c = self.config
        self.encoder = residual_encoder(shape, c.widths, c.latent)
        self.critic = residual_encoder(shape, c.widths, 1)
        self.generator = Generator(shape, c.widths, c.latent)

    def optimizers(self) -> dict[str, Optimizer]:
        """One Adam for each network; the encoder's is the first, as its loss is the one that tells of a plateau."""
        players = {"critic": self.critic, "generator": self.generator}
        return {"encoder": self.adam(self.encoder)} | {k: self.adam(n, betas=(0.0, 0.9)) for k, n in players.items()}

    def training_step(self, batch: StepBatch) -> dict[str, torch.Tensor]:
        """The two errors of the encoder, the critic's loss or the generator's, as `batch.optimizer` says."""
        c, x = self.config, batch.x
        playing = batch.step < c.gan_share * batch.steps
        if batch.optimizer == "encoder":
            if playing and batch.step % ENCODER_EVERY and self.encoder.training:
                return {}
            error, feature_error = self._errors(x)
            return {"error": error.mean(), "features": c.kappa * feature_error.mean()}
        if not playing or (batch.optimizer == "generator" and batch.step % c.critic_steps):
            return {}
        z = torch.randn(len(x), c.latent, device=x.device)
        if batch.optimizer == "generator":
            return {"generator": -self.critic(self.generator(z)).float().mean()}
        with torch.no_grad():
            drawn = self.generator(z).float()
        with torch.autocast(x.device.type, enabled=False):  # the gradient of a gradient is too small for bfloat16
            distance = self.critic(x).mean() - self.critic(drawn).mean()
            return {"critic": -distance, "penalty": c.penalty * gradient_penalty(self.critic, x, drawn)}

    def reconstructed(self, x: torch.Tensor) -> torch.Tensor:
        """Reconstructions ``(B, C, H, W)`` in [0, 1]."""
        return cast(torch.Tensor, self.generator(self.encoder(x)))

    def own_score(self, x: torch.Tensor) -> torch.Tensor:
        """Error ``(B,)`` of the image plus `kappa` times that of the features."""
        error, feature_error = self._errors(x)
        return error + self.config.kappa * feature_error

    def _errors(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean squared errors ``(B,)`` of images and of the critic's features."""
        drawn = self.reconstructed(x)
        features = squared_error(self.critic.features(x), self.critic.features(drawn)).mean(1)
        # The paper's images lie in [-1, 1], where a squared error is four times as large.
        return 4 * squared_error(x, drawn).mean((1, 2, 3)), features


class Generator(nn.Sequential):
    """Latent numbers ``(B, latent)`` to images ``(B, C, H, W)`` in [0, 1]; `widths` are in the order of the encoder."""

    def __init__(self, shape: tuple[int, ...], widths: Sequence[int], latent: int) -> None:
        coarse = halved(shape, widths)
        first = nn.Linear(latent, math.prod(coarse)), nn.Unflatten(1, coarse)
        blocks = [ResidualBlock(i, o, "up") for i, o in pairwise(reversed(widths))]
        # A transposed convolution would leave a grid of pixels.
        last = nn.Upsample(scale_factor=2.0), nn.Conv2d(widths[0], shape[0], 3, padding=1)
        super().__init__(*first, *blocks, norm_layer("group", widths[0]), leaky(), *last)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """``(B, latent)`` to ``(B, C, H, W)``."""
        return torch.sigmoid(super().forward(z).float())  # type: ignore[no-untyped-call]


def residual_encoder(shape: tuple[int, ...], widths: Sequence[int], outputs: int) -> VectorEncoder:
    """Residual blocks for images ``(C, H, W)`` and a linear layer, without batch norms: a critic or an encoder."""
    blocks = (ResidualBlock(i, o, "down") for i, o in pairwise(widths))
    last = norm_layer("group", widths[-1]), leaky(), nn.Flatten()
    layers = nn.Sequential(ConvBlock(shape[0], widths[0], 4, 2, norm="none"), *blocks, *last)
    return VectorEncoder(layers, math.prod(halved(shape, widths)), outputs)


def gradient_penalty(critic: nn.Module, real: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """Mean squared deviation from 1 of the critic's slope between images and drawn ones, Gulrajani et al., equation 3.

    The critic takes images ``(B, C, H, W)`` to ``(B, 1)``; each output must depend on its own image only.
    """
    share = torch.rand(len(real), 1, 1, 1, device=real.device)
    between = (share * real + (1 - share) * drawn).detach().requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return cast(torch.Tensor, ((slope.flatten(1).norm(dim=1) - 1) ** 2).mean())
