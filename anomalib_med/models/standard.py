"""Frozen features on the scale of the normals: each channel with mean 0 and standard deviation 1."""

from collections.abc import Iterable

import torch
from torch import nn


class Standard(nn.Module):
    """Takes each channel of ``(B, C, h, w)`` to mean 0 and standard deviation 1 of the normals."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean: torch.Tensor
        self.deviation: torch.Tensor
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("deviation", torch.ones(channels, 1, 1))

    @torch.no_grad()
    def learn(self, batches: Iterable[torch.Tensor]) -> None:
        """Take the mean and the standard deviation of features ``(B, C, h, w)`` of the normals."""
        total = squares = torch.zeros((), dtype=torch.float64)
        count = 0
        for features in batches:
            values = features.double().cpu()
            total = total + values.sum((0, 2, 3))
            squares = squares + values.square().sum((0, 2, 3))
            count += values.numel() // values.shape[1]
        mean = total / count
        self.mean.copy_(mean[:, None, None])
        self.deviation.copy_((squares / count - mean**2).clamp_min(1e-12).sqrt()[:, None, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Standardised, the same shape."""
        return (x.float() - self.mean) / self.deviation
