"""Residuals of in-painting: how an image differs from what was in-painted, as a map, and what it is in normals."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, Field

from anomalib_med.models.filters import mean_filter
from anomalib_med.models.losses import PixelError, pixel_error
from anomalib_med.models.standard import Standard
from anomalib_med.models.training import StepBatch, TrainedDetector, TrainingConfig

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

    learning_rate: float = Field(1e-4, gt=0)
    relative: bool = True
    """Whether the map counts in deviations above what normals have at that place. Edges of the heart, ribs and vessels
    are in-painted badly in every image; the papers do not account for it."""


class NormalResiduals(Standard):
    """Mean and deviation ``(H, W)`` of the residuals of normals; ours.

    The standard deviation is averaged over 9 x 9 pixels and half of its mean is added: no place counts for too much.
    """

    def scale(self, deviation: torch.Tensor) -> torch.Tensor:
        """Standard deviations ``(H, W)``, averaged and raised."""
        return mean_filter(deviation[None], AROUND)[0] + deviation.mean() / 2


class ResidualDetector(TrainedDetector):
    """A detector whose map is a residual, taken relative to those of normals where the setting `relative` says so."""

    input_size = 128
    config: ResidualConfig

    def initialise(self, shape: tuple[int, ...]) -> None:
        """Build the networks, and the residuals of normals, which are not known yet."""
        super().initialise(shape)
        self.normal = NormalResiduals(shape[1:]).to(self.device)

    @abstractmethod
    def residual(self, x: torch.Tensor) -> torch.Tensor:
        """How images ``(B, C, H, W)`` on the detector's device differ from what was in-painted, ``(B, H, W)``."""

    def after_training(self, batches: Iterator[StepBatch]) -> None:
        """Learn what residuals of normals are like."""
        self.normal.learn(self.each(self.residual, batch.x) for batch in batches)

    def compute_map(self, x: torch.Tensor) -> torch.Tensor:
        """The residual ``(B, H, W)``, relative to those of normals or as it is."""
        residual = self.residual(x)
        return self.normal(residual) if self.config.relative else residual


class HoleFiller(ResidualDetector):
    """A residual detector that can fill holes in images."""

    @abstractmethod
    def network(self, x: torch.Tensor, holes: torch.Tensor) -> torch.Tensor:
        """Images ``(B, C, H, W)`` in-painted where their holes, bool ``(B, H, W)``, are; the pixels inside are 0."""

    def inpaint(self, x: torch.Tensor, holes: torch.Tensor) -> torch.Tensor:
        """Fill holes, bool ``(B, H, W)``, of images ``(B, C, H, W)``; outside them the images stay as they are."""
        x, hidden = x.to(self.device), holes.to(self.device)[:, None]
        return torch.where(hidden, self.network(torch.where(hidden, 0.0, x), hidden[:, 0]), x)


def mean_error(kind: PixelError, x: torch.Tensor, y: torch.Tensor, window: int = 5) -> torch.Tensor:
    """Error ``(B, H, W)`` of that name, averaged over channels and over a square of `window` pixels, an odd number."""
    return mean_filter(pixel_error(kind, x, y).mean(1), window)


def gradient_error(x: torch.Tensor, y: torch.Tensor, levels: int = LEVELS) -> torch.Tensor:
    """One minus the similarity of gradient magnitudes, averaged over a pyramid, float32 ``(B, 1, H, W)`` from 0 to 1.

    Zavrtanik et al. 2021, after Xue et al. 2014: ``GMS = (2 g(x) g(y) + c) / (g(x)^2 + g(y)^2 + c)`` with Prewitt
    gradients g after a median of 3 x 3 pixels, on images ``(B, C, H, W)`` in [0, 1] and `levels` - 1 halvings of them;
    sides are multiples of ``2 ** (levels - 1)``.
    """
    x, y = x.float().mean(1, keepdim=True), y.float().mean(1, keepdim=True)
    size, total = x.shape[-2:], torch.zeros_like(x)
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
