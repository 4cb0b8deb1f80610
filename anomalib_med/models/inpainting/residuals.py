"""Residuals of in-painting: how an image differs from what was in-painted, as a map, for training and for scoring."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

GMS_C = 0.0026  # Xue et al. 2014, for values between 0 and 1
LEVELS = 4
AROUND = 9  # pixels over which the deviation of normals is averaged


def gradient_error(x: torch.Tensor, y: torch.Tensor, levels: int = LEVELS) -> torch.Tensor:
    """One minus the similarity of gradient magnitudes, averaged over a pyramid.

    Zavrtanik et al. 2021, after Xue et al. 2014: ``GMS = (2 g(x) g(y) + c) / (g(x)^2 + g(y)^2 + c)`` with Prewitt
    gradients g, on the image and on `levels` - 1 halvings of it. As in the known re-implementation a median of 3 x 3
    pixels comes first.

    Parameters
    ----------
    x, y
        ``(B, C, H, W)`` in [0, 1]; sides are multiples of ``2 ** (levels - 1)``.

    Returns
    -------
    float32 ``(B, 1, H, W)``, from 0 (alike) to 1.
    """
    x, y = x.float().mean(1, keepdim=True), y.float().mean(1, keepdim=True)
    size = x.shape[-2:]
    total = torch.zeros_like(x)
    for level in range(levels):
        if level:
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        gx, gy = _gradient(x), _gradient(y)
        error = 1 - (2 * gx * gy + GMS_C) / (gx**2 + gy**2 + GMS_C)
        total = total + F.interpolate(error, size, mode="bilinear", align_corners=False)
    return total / levels


def mean_filter(maps: torch.Tensor, window: int) -> torch.Tensor:
    """Mean of ``(B, h, w)`` over a square of `window` pixels, an odd number, cut at the border."""
    return F.avg_pool2d(maps[:, None], window, 1, window // 2, count_include_pad=False)[:, 0]


class NormalResiduals(nn.Module):
    """What residuals of normals are like, place by place; a residual is then taken relative to that.

    Edges of the heart, ribs and vessels are in-painted badly in every normal image too. Ours.

    Attributes
    ----------
    mean, deviation
        ``(H, W)``: mean over the normals; their standard deviation, averaged over 9 x 9 pixels, and half of its mean
        added, so that no place counts for too much.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__()
        self.mean: torch.Tensor
        self.deviation: torch.Tensor
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("deviation", torch.ones(shape))

    def learn(self, residuals: Iterable[torch.Tensor]) -> None:
        """Take the residuals of normals, ``(B, H, W)`` at a time."""
        total, squares, count = torch.zeros(()), torch.zeros(()), 0
        for each in residuals:
            values = each.detach().cpu().double()
            total, squares, count = total + values.sum(0), squares + values.square().sum(0), count + len(values)
        mean = total / count
        deviation = (squares / count - mean**2).clamp_min(0).sqrt()
        smooth = mean_filter(deviation[None], AROUND)[0] + deviation.mean() / 2
        self.mean.copy_(mean)
        self.deviation.copy_(smooth.clamp_min(1e-6))

    def forward(self, residual: torch.Tensor) -> torch.Tensor:
        """``(B, H, W)`` in deviations above the mean of normals at that place."""
        return (residual - self.mean) / self.deviation


def grow(holes: torch.Tensor, pixels: int) -> torch.Tensor:
    """Holes bool ``(B, H, W)`` and all within so many pixels of them, row- and column-wise."""
    return F.max_pool2d(holes[:, None].float(), 2 * pixels + 1, 1, pixels)[:, 0] > 0


def _gradient(x: torch.Tensor) -> torch.Tensor:
    """Prewitt magnitude ``(B, 1, H, W)`` after a median of 3 x 3; the edge is continued."""
    height, width = x.shape[-2:]
    around = F.unfold(F.pad(x, (1, 1, 1, 1), "replicate"), 3).reshape(len(x), 9, height, width)
    x = F.pad(around.median(1, keepdim=True).values, (1, 1, 1, 1), "replicate")
    rows = (x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]) / 3
    columns = (x[..., :-2] + x[..., 1:-1] + x[..., 2:]) / 3
    across, down = rows[..., 2:] - rows[..., :-2], columns[:, :, 2:] - columns[:, :, :-2]
    # The root has no gradient at 0.
    return (across**2 + down**2 + 1e-12).sqrt()
