"""Pieces of the diffusion detectors: how much of an image is left at a time, and the network that takes noise away.

Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020; Nichol & Dhariwal, "Improved Denoising Diffusion
Probabilistic Models", ICML 2021; Song et al., "Denoising Diffusion Implicit Models", ICLR 2021. Images are in [-1, 1].
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from anomalib_med.models.blocks import norm_layer

TIMES = 1000
HEADS = 4

Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def linear_signal() -> torch.Tensor:
    """Share of the variance that is still the image's after each of 1000 times, float32: Ho et al. 2020."""
    return (1 - torch.linspace(1e-4, 0.02, TIMES, dtype=torch.float64)).cumprod(0).float()


def cosine_signal() -> torch.Tensor:
    """The same with the cosine of Nichol & Dhariwal 2021, equation 17; betas are at most 0.999."""
    f = torch.cos((torch.arange(TIMES + 1, dtype=torch.float64) / TIMES + 0.008) / 1.008 * math.pi / 2) ** 2
    return (f[1:] / f[:-1]).clamp_min(0.001).cumprod(0).float()


def noised(x: torch.Tensor, noise: torch.Tensor, signal: torch.Tensor) -> torch.Tensor:
    """Images ``(B, C, H, W)`` at a time at which `signal`, ``(B,)``, of their variance is left."""
    left = signal.to(x.device)[:, None, None, None]
    return left.sqrt() * x + (1 - left).sqrt() * noise


def denoised(predict: Predict, x: torch.Tensor, signal: torch.Tensor, times: Sequence[int]) -> torch.Tensor:
    """Take the noise out of images step by step, without drawing any (DDIM with eta 0, Song et al. 2021, equation 12).

    Parameters
    ----------
    predict
        The noise in images ``(B, C, H, W)`` at times ``(B,)``.
    x
        Images at the first of the times.
    signal
        Of every time, ``(1000,)``.
    times
        Falling; the step after the last leads to the image without noise.

    Returns
    -------
    ``(B, C, H, W)`` in [-1, 1].
    """
    for now, after in pairwise((*times, -1)):
        noise = predict(x, torch.full((len(x),), now, device=x.device))
        image = ((x - (1 - signal[now]).sqrt() * noise) / signal[now].sqrt()).clamp(-1, 1)
        x = image if after < 0 else signal[after].sqrt() * image + (1 - signal[after]).sqrt() * noise
    return x


def follow(average: nn.Module, network: nn.Module, step: int, decay: float) -> None:
    """Move the running mean of a network's weights on; in the first steps it forgets faster than `decay` says."""
    kept = min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for mean, weight in zip(average.parameters(), network.parameters(), strict=True):
            mean.lerp_(weight, 1 - kept)


class DenoisingUNet(nn.Module):
    """U-Net of residual blocks that know the time, with attention at the coarsest resolution (Ho et al. 2020).

    Parameters
    ----------
    channels
        Of an image.
    widths
        Of each resolution, finest first; sides must be multiples of ``2 ** (len(widths) - 1)``.
    """

    def __init__(self, channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.width, known = widths[0], 4 * widths[0]
        self.time = nn.Sequential(nn.Linear(widths[0], known), nn.SiLU(), nn.Linear(known, known), nn.SiLU())
        self.first = nn.Conv2d(channels, widths[0], 3, padding=1)
        inputs = (widths[0], *widths[:-1])
        self.down = nn.ModuleList(TimedBlock(i, o, known) for i, o in zip(inputs, widths, strict=True))
        self.middle = nn.ModuleList(
            [
                TimedBlock(widths[-1], widths[-1], known),
                Attention(widths[-1]),
                TimedBlock(widths[-1], widths[-1], known),
            ]
        )
        self.up = nn.ModuleList(TimedBlock(2 * o, i, known) for i, o in zip(inputs[::-1], widths[::-1], strict=True))
        self.last = nn.Sequential(norm_layer("group", widths[0]), nn.SiLU(), _empty(widths[0], channels))

    def forward(self, x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """Images ``(B, C, H, W)`` and times ``(B,)``, from 0 to 999, to ``(B, C, H, W)``."""
        time = self.time(waves(times, self.width).to(x.dtype))
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
        y: torch.Tensor = self.last(x)
        return y.float()


class TimedBlock(nn.Module):
    """Two convolutions around which the input is passed; the time scales and shifts between them."""

    def __init__(self, inputs: int, outputs: int, known: int) -> None:
        super().__init__()
        self.first = nn.Sequential(norm_layer("group", inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.time = nn.Linear(known, 2 * outputs)
        self.norm = norm_layer("group", outputs)
        self.second = nn.Sequential(nn.SiLU(), _empty(outputs, outputs))
        self.passed = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """``(B, inputs, H, W)`` and what is known of the time, ``(B, known)``, to ``(B, outputs, H, W)``."""
        scale, shift = self.time(time)[:, :, None, None].chunk(2, dim=1)
        y: torch.Tensor = self.second(self.norm(self.first(x)) * (1 + scale) + shift)
        return y + cast(torch.Tensor, self.passed(x))


class Attention(nn.Module):
    """Every place looks at every other, and adds what it found."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = HEADS if channels % HEADS == 0 else 1
        self.norm = norm_layer("group", channels)
        self.looking = nn.Conv2d(channels, 3 * channels, 1)
        self.found = _empty(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, C, H, W)`` to the same shape."""
        query, key, value = (
            v.flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3)
            for v in self.looking(self.norm(x)).chunk(3, dim=1)
        )
        found = F.scaled_dot_product_attention(query, key, value).transpose(2, 3).reshape(x.shape)
        return x + cast(torch.Tensor, self.found(found))


def waves(times: torch.Tensor, width: int) -> torch.Tensor:
    """Cosines and sines of times, ``(B, width)``, from fast to slow (Vaswani et al. 2017)."""
    half = width // 2
    rates = torch.exp(-math.log(10_000) * torch.arange(half, device=times.device) / half)
    angles = times.float()[:, None] * rates
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, width % 2))


def _empty(inputs: int, outputs: int, kernel: int = 3) -> nn.Conv2d:
    """A convolution that gives 0 until it has learnt."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(cast(torch.Tensor, conv.bias))
    return conv
