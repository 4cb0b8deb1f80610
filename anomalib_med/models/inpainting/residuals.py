"""Residuals of in-painting: how an image differs from what was in-painted, as a map, for training and for scoring."""

from collections.abc import Iterable
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, Field

from anomalib_med.models.filters import mean_filter
from anomalib_med.models.standard import Standard, moments
from anomalib_med.models.training.schedule import TrainingConfig

GMS_C = 0.0026  # Xue et al. 2014, for values between 0 and 1
LEVELS = 4
AROUND = 9  # pixels over which the deviation of normals is averaged


def _odd(window: int) -> int:
    if window % 2 == 0:
        raise ValueError("the window must be odd, to have a middle")
    return window


Window = Annotated[int, Field(ge=1), AfterValidator(_odd)]


class ResidualConfig(TrainingConfig):
    """Settings of a detector whose map is a residual."""

    relative: bool = True
    """Whether the map counts in deviations above what normals have at that place. Edges of the heart, ribs and vessels
    are in-painted badly in every image; the papers do not account for it.
    """


class NormalResiduals(Standard):
    """What residuals of normals are like, place by place; ours.

    Parameters
    ----------
    shape
        Shape of an image, ``(C, H, W)``.
    relative
        Whether :meth:`relate` takes residuals relative to those of normals or leaves them as they are.

    Attributes
    ----------
    mean, deviation
        ``(H, W)``: mean over the normals; their standard deviation, averaged over 9 x 9 pixels, and half of its mean
        added, so that no place counts for too much.
    """

    def __init__(self, shape: tuple[int, ...], *, relative: bool = True) -> None:
        super().__init__(shape[1:])
        self.relative = relative

    @torch.no_grad()
    def learn(self, batches: Iterable[torch.Tensor]) -> None:
        """Take the residuals of normals, ``(B, H, W)`` at a time."""
        mean, deviation = moments(batches, self.shape)
        smooth = mean_filter(deviation[None], AROUND)[0] + deviation.mean() / 2
        self.mean.copy_(mean)
        self.deviation.copy_(smooth.clamp_min(self.least))

    def relate(self, residual: torch.Tensor) -> torch.Tensor:
        """Residuals ``(B, H, W)``, in deviations above the mean of normals at that place where that was asked for."""
        related: torch.Tensor = self(residual) if self.relative else residual
        return related


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


def grow(holes: torch.Tensor, pixels: int) -> torch.Tensor:
    """Holes bool ``(B, H, W)`` and all within so many pixels of them, row- and column-wise."""
    return F.max_pool2d(holes[:, None].float(), 2 * pixels + 1, 1, pixels)[:, 0] > 0


def _gradient(x: torch.Tensor) -> torch.Tensor:
    """Prewitt magnitude ``(B, 1, H, W)`` after a median of 3 x 3; the edge is continued."""
    height, width = x.shape[-2:]
    # Not filters.median_filter: where values are equal it would pass the gradient to another of them.
    around = F.unfold(F.pad(x, (1, 1, 1, 1), "replicate"), 3).reshape(len(x), 9, height, width)
    x = F.pad(around.median(1, keepdim=True).values, (1, 1, 1, 1), "replicate")
    rows = (x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]) / 3
    columns = (x[..., :-2] + x[..., 1:-1] + x[..., 2:]) / 3
    across, down = rows[..., 2:] - rows[..., :-2], columns[:, :, 2:] - columns[:, :, :-2]
    # The root has no gradient at 0.
    return (across**2 + down**2 + 1e-12).sqrt()
