"""Filters of images and of anomaly maps: mean, median and Gaussian."""

from functools import lru_cache

import torch
import torch.nn.functional as F


def mean_filter(maps: torch.Tensor, window: int) -> torch.Tensor:
    """Mean of ``(B, h, w)`` over a square of `window` pixels, an odd number, cut at the border."""
    return F.avg_pool2d(maps[:, None], window, 1, window // 2, count_include_pad=False)[:, 0]


def median_filter(maps: torch.Tensor, window: int) -> torch.Tensor:
    """Median of ``(B, H, W)`` over a square of `window` pixels, an odd number; the border is continued."""
    padded = F.pad(maps[:, None], [window // 2] * 4, mode="replicate")
    windows = padded.unfold(2, window, 1).unfold(3, window, 1)
    return windows.reshape(*maps.shape, -1).median(-1).values


def gaussian_blur(x: torch.Tensor, window: int, sigma: float) -> torch.Tensor:
    """Gaussian mean around each pixel of ``(..., H, W)``; window (odd) and standard deviation are in pixels.

    The window is cut at the border, and its weights sum to one again.
    """
    # Two products with a banded matrix: on a CPU, for hundreds of channels, far faster than a convolution.
    rows, columns = (_blur_matrix(side, window, sigma).to(x.device) for side in x.shape[-2:])
    return rows @ (x @ columns.T)


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # kept for trainings that come after a scoring
def _blur_matrix(side: int, window: int, sigma: float) -> torch.Tensor:
    """``(side, side)``: row i holds the window's weights around i, and sums to one."""
    distance = torch.arange(side)[:, None] - torch.arange(side)
    weights = torch.exp(-(distance.double() ** 2) / (2 * sigma**2)) * (distance.abs() <= window // 2)
    return (weights / weights.sum(1, keepdim=True)).float()
