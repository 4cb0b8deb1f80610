"""Numbers on the scale of the normals: mean 0 and standard deviation 1."""

import math
from collections.abc import Iterable

import torch
from torch import nn


def moments(batches: Iterable[torch.Tensor], shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of this shape over all batches ``(B, ...)``, and over its sides of 1; double, CPU."""
    dims = (0, *(dim for dim, side in enumerate(shape, 1) if side == 1))
    total = squares = torch.zeros(shape, dtype=torch.float64)
    count = 0
    for batch in batches:
        values = batch.detach().double().cpu()
        total = total + values.sum(dims, keepdim=True)[0]
        squares = squares + values.square().sum(dims, keepdim=True)[0]
        count += values.numel() // math.prod(shape)
    mean = total / count
    return mean, (squares / count - mean**2).clamp_min(0).sqrt()


class Standard(nn.Module):
    """Takes numbers to standard deviations, which are at least `least`, from the mean of the normals.

    `shape` is what one mean and deviation each are kept for: ``(C, 1, 1)`` for the channels of feature maps, ``(H, W)``
    for the places of anomaly maps, ``(n,)`` for n numbers of an image.
    """

    def __init__(self, shape: tuple[int, ...], least: float = 1e-6) -> None:
        super().__init__()
        self.shape, self.least = shape, least
        self.mean, self.deviation = nn.Buffer(torch.zeros(shape)), nn.Buffer(torch.ones(shape))

    @torch.no_grad()
    def learn(self, batches: Iterable[torch.Tensor]) -> None:
        """Take mean and standard deviation of the normals, given as ``(B, ...)`` at a time."""
        mean, deviation = moments(batches, self.shape)
        self.mean.copy_(mean)
        self.deviation.copy_(self.scale(deviation).clamp_min(self.least))

    def scale(self, deviation: torch.Tensor) -> torch.Tensor:
        """What numbers are divided by, of their standard deviation; by default that."""
        return deviation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, ...)``, standardised."""
        return (x - self.mean) / self.deviation
