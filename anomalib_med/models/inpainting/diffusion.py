"""What the diffusion detectors share: how much of an image is left at a time, and the network that takes noise away.

Ho et al., NeurIPS 2020; Nichol & Dhariwal, ICML 2021; Song et al. (DDIM), ICLR 2021. Images are in [-1, 1].
"""

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from anomalib_med.models.blocks import norm_layer
from anomalib_med.models.inpainting.noise import octaves_of_noise
from anomalib_med.models.inpainting.residuals import ResidualConfig, ResidualDetector
from anomalib_med.models.training import StepBatch

TIMES = 1000
HEADS = 4

Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class DiffusionConfig(ResidualConfig):
    """Settings of a detector that noises images with simplex noise and denoises them."""

    pooling: str = "mean"
    start: int = Field(250, ge=1, le=TIMES)
    """Time from 1 to 1000 to which an image is noised for its score: the later, the larger the lesion that goes, and
    the more of the image with it."""
    period: float = Field(0.25, gt=0)
    """Period of the coarsest noise, as a part of the shorter side."""
    octaves: int = Field(6, ge=1)
    """How many octaves of noise are summed, each half as coarse as the one before, if not finer than two pixels."""
    persistence: float = Field(0.8, gt=0)
    """Amplitude of each octave as a part of the one before."""
    widths: tuple[int, ...] = Field((64, 64, 128, 256), min_length=2)
    """Channels of the U-Net at each resolution, finest first."""
    average: float = Field(0.9999, ge=0, lt=1)
    """Decay of the exponential moving average of the weights, which is what scores; with 0 the last weights do."""

    @property
    def multiple(self) -> int:
        """The sides are halved between the resolutions of the U-Net."""
        return 1 << (len(self.widths) - 1)


class Diffusion(ResidualDetector):
    """A detector that noises images and denoises them by the moving average `ema` of a U-Net's weights."""

    config: DiffusionConfig

    def build(self, shape: tuple[int, ...]) -> None:
        """Build the U-Net and the moving average of its weights."""
        self.unet = DenoisingUNet(shape[0], self.config.widths)
        self.ema = copy.deepcopy(self.unet).requires_grad_(False)

    def training_step(self, batch: StepBatch) -> dict[str, torch.Tensor]:
        """:meth:`loss` of images at random times; while training, the last step's weights enter the average first."""
        if self.unet.training:
            update_average(self.ema, self.unet, batch.step, self.config.average)
        return self.loss(2 * batch.x - 1)

    def noise(self, x: torch.Tensor, count: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """Noise ``(count, C, H, W)`` for images, alike in each channel, see :func:`octaves_of_noise`."""
        c, shape = self.config, (x.shape[2], x.shape[3])
        period = c.period * min(shape)
        fields = octaves_of_noise(count, shape, period, c.octaves, c.persistence, generator=generator, device=x.device)
        return fields[:, None].expand(-1, x.shape[1], -1, -1)

    @abstractmethod
    def loss(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Loss by its name of images ``(B, C, H, W)`` in [-1, 1], from the U-Net."""


def linear_alpha_bar() -> torch.Tensor:
    """Cumulative product of alpha, the share of the image in the variance, at 1000 times, float32: Ho et al. 2020."""
    return (1 - torch.linspace(1e-4, 0.02, TIMES, dtype=torch.float64)).cumprod(0).float()


def cosine_alpha_bar() -> torch.Tensor:
    """The same with the cosine of Nichol & Dhariwal 2021, equation 17; betas are at most 0.999."""
    f = torch.cos((torch.arange(TIMES + 1, dtype=torch.float64) / TIMES + 0.008) / 1.008 * math.pi / 2) ** 2
    return (f[1:] / f[:-1]).clamp_min(0.001).cumprod(0).float()


def noised(x: torch.Tensor, noise: torch.Tensor, alpha_bar: torch.Tensor) -> torch.Tensor:
    """Images ``(B, C, H, W)`` at times with this cumulative alpha, ``(B,)``."""
    share = alpha_bar.to(x.device)[:, None, None, None]
    return share.sqrt() * x + (1 - share).sqrt() * noise


def denoised(predict: Predict, x: torch.Tensor, alpha_bar: torch.Tensor, times: Sequence[int]) -> torch.Tensor:
    """Take the noise out of images step by step, without drawing any (DDIM with eta 0, Song et al. 2021, equation 12).

    `predict` gives the noise in images ``(B, C, H, W)`` at times ``(B,)``. `x` are images at the first of the falling
    times; the step after the last leads to the image without noise, in [-1, 1]. `alpha_bar` is ``(1000,)``.
    """
    for now, after in pairwise((*times, -1)):
        noise = predict(x, torch.full((len(x),), now, device=x.device))
        image = ((x - (1 - alpha_bar[now]).sqrt() * noise) / alpha_bar[now].sqrt()).clamp(-1, 1)
        x = image if after < 0 else alpha_bar[after].sqrt() * image + (1 - alpha_bar[after]).sqrt() * noise
    return x


def update_average(average: nn.Module, network: nn.Module, step: int, decay: float) -> None:
    """Update the exponential moving average of a network's weights; in the first steps it forgets faster."""
    kept = min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for mean, weight in zip(average.parameters(), network.parameters(), strict=True):
            mean.lerp_(weight, 1 - kept)


class DenoisingUNet(nn.Module):
    """U-Net of residual blocks that know the time, with attention at the coarsest resolution (Ho et al. 2020).

    `widths` are the channels at each resolution, finest first; sides are multiples of ``2 ** (len(widths) - 1)``.
    """

    def __init__(self, channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.width, known, deep = widths[0], 4 * widths[0], widths[-1]
        self.time = nn.Sequential(nn.Linear(widths[0], known), nn.SiLU(), nn.Linear(known, known), nn.SiLU())
        self.first = nn.Conv2d(channels, widths[0], 3, padding=1)
        pairs = list(pairwise((widths[0], *widths)))
        self.down = nn.ModuleList(TimedBlock(i, o, known) for i, o in pairs)
        self.middle = nn.ModuleList([TimedBlock(deep, deep, known), Attention(deep), TimedBlock(deep, deep, known)])
        self.up = nn.ModuleList(TimedBlock(2 * o, i, known) for i, o in reversed(pairs))
        self.last = nn.Sequential(norm_layer("group", widths[0]), nn.SiLU(), zero_conv(widths[0], channels))

    def forward(self, x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """Images ``(B, C, H, W)`` and times ``(B,)``, from 0 to 999, to ``(B, C, H, W)``."""
        time = self.time(sinusoidal_embedding(times, self.width).to(x.dtype))
        x = self.first(x)
        across = []
        for number, block in enumerate(self.down):
            x = block(x if number == 0 else F.avg_pool2d(x, 2), time)
            across.append(x)
        before, attention, after = self.middle
        x = after(attention(before(x, time)), time)
        for number, block in enumerate(self.up):
            x = x if number == 0 else F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = block(torch.cat([across.pop(), x], dim=1), time)
        return cast(torch.Tensor, self.last(x)).float()


class TimedBlock(nn.Module):
    """Two convolutions around which the input is passed; the time scales and shifts between them."""

    def __init__(self, inputs: int, outputs: int, known: int) -> None:
        super().__init__()
        self.first = nn.Sequential(norm_layer("group", inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.time = nn.Linear(known, 2 * outputs)
        self.norm = norm_layer("group", outputs)
        self.second = nn.Sequential(nn.SiLU(), zero_conv(outputs, outputs))
        self.passed = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """``(B, inputs, H, W)`` and what is known of the time, ``(B, known)``, to ``(B, outputs, H, W)``."""
        scale, shift = self.time(time)[:, :, None, None].chunk(2, dim=1)
        y = self.second(self.norm(self.first(x)) * (1 + scale) + shift)
        return cast(torch.Tensor, y + self.passed(x))


class Attention(nn.Module):
    """Self-attention between all places, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = HEADS if channels % HEADS == 0 else 1
        self.norm = norm_layer("group", channels)
        self.query_key_value = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero_conv(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, C, H, W)`` to the same shape."""
        parts = self.query_key_value(self.norm(x)).chunk(3, dim=1)
        query, key, value = (part.flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3) for part in parts)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(2, 3).reshape(x.shape)
        return x + cast(torch.Tensor, self.out(attended))


def sinusoidal_embedding(times: torch.Tensor, width: int) -> torch.Tensor:
    """Cosines and sines of times, ``(B, width)``, from fast to slow (Vaswani et al. 2017)."""
    pairs = width // 2
    rates = torch.exp(-math.log(10_000) * torch.arange(pairs, device=times.device) / pairs)
    angles = times.float()[:, None] * rates
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, width % 2))


def zero_conv(inputs: int, outputs: int, kernel: int = 3) -> nn.Conv2d:
    """A convolution that gives 0 until it has learnt."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(cast(torch.Tensor, conv.bias))
    return conv
