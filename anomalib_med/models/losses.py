"""Differences between images ``(B, C, H, W)`` as maps, at least 0 and in float32, for training and scoring alike."""

from functools import partial
from typing import Literal

import torch

from anomalib_med.models.filters import gaussian_blur

PixelError = Literal["l2", "l1", "ssim"]

C1, C2 = 0.01**2, 0.03**2  # Wang et al. 2004, for values between 0 and 1
SIGMA = 1.5  # pixels, of the Gaussian window


def squared_error(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Squared difference, ``(B, C, H, W)``."""
    return (x.float() - y.float()) ** 2


def absolute_error(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Absolute difference, ``(B, C, H, W)``."""
    return (x.float() - y.float()).abs()


def ssim(x: torch.Tensor, y: torch.Tensor, *, window: int = 11) -> torch.Tensor:
    """Structural similarity of each channel around each pixel, 1 where the two are alike, at least -1.

    Wang et al., IEEE TIP 2004, equation 13, with a Gaussian window of so many pixels (odd); its constants are made for
    values between 0 and 1.
    """
    blur = partial(gaussian_blur, window=window, sigma=SIGMA)
    with torch.autocast(x.device.type, enabled=False):
        x, y = x.float(), y.float()
        mean_x, mean_y = blur(x), blur(y)
        variances = blur(x * x + y * y) - mean_x * mean_x - mean_y * mean_y
        covariance = blur(x * y) - mean_x * mean_y
        alike = (2 * mean_x * mean_y + C1) / (mean_x * mean_x + mean_y * mean_y + C1)
        return alike * (2 * covariance + C2) / (variances + C2)


def ssim_error(x: torch.Tensor, y: torch.Tensor, *, window: int = 11) -> torch.Tensor:
    """``1 - ssim``, from 0 to 2; see :func:`ssim`."""
    return 1 - ssim(x, y, window=window)


def pixel_error(kind: PixelError, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The error of that name, ``(B, C, H, W)``, for images in [0, 1]."""
    return {"l2": squared_error, "l1": absolute_error, "ssim": ssim_error}[kind](x, y)


def pixel_loss(kind: PixelError, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean of the error of that name, as it is for images in [-1, 1], for which papers weight it."""
    return {"l2": 4.0, "l1": 2.0, "ssim": 1.0}[kind] * pixel_error(kind, x, y).mean()


def perceptual_error(x: torch.Tensor, y: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """Relative L1 difference of features ``(B, D, h, w)`` of an image and of its reconstruction, standardised.

    Tuluptceva et al., "Anomaly Detection with Deep Perceptual Autoencoders", 2020, equation 3, for each image: the
    difference's mean over channels, over the mean size of the image's features, float32 ``(B, 1, h, w)``.
    """
    x, y = x.float(), y.float()
    return (x - y).abs().mean(1, keepdim=True) / (x.abs().mean((1, 2, 3), keepdim=True) + eps)
