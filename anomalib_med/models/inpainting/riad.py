"""RIAD: the image is cut into cells, cells are hidden in turn and in-painted from the others, at several scales.

Zavrtanik et al., "Reconstruction by inpainting for visual anomaly detection", Pattern Recognition 2021,
https://doi.org/10.1016/j.patcog.2020.107706. There is no official code; details as in the re-implementation
plutoyuxie/Reconstruction-by-inpainting-for-visual-anomaly-detection.
"""

import math
from collections.abc import Iterator

import torch
from pydantic import Field, field_validator
from torch import nn

from anomalib_med.models.blocks import UNet
from anomalib_med.models.inpainting.holes import cell_holes, inpaint_everywhere, seeded, smooth_fill
from anomalib_med.models.inpainting.residuals import LEVELS, NormalResiduals, gradient_error, mean_filter
from anomalib_med.models.losses import absolute_error, squared_error, ssim_error
from anomalib_med.models.training.normals import StepBatch
from anomalib_med.models.training.schedule import TrainingConfig
from anomalib_med.models.training.trainer import TrainedDetector

WIDTHS = 1, 2, 4, 8, 8  # of the U-Net, as multiples of the first


class Riad(TrainedDetector):
    """In-paints every pixel from its surroundings, at several scales; what is not normal comes out otherwise.

    The anomaly map is the difference of gradients between image and in-painted image, and of grey values.
    """

    name = "riad"
    title = "RIAD, reconstruction by in-painting (Zavrtanik et al., Pattern Recognition 2021)"
    input_size = 128
    at_once = 0

    class Config(TrainingConfig):
        """Settings of RIAD.

        Parameters
        ----------
        cells
            Sides of the hidden cells in pixels, one for each scale.
        parts
            Sets of cells that are hidden in turn.
        intensity
            Weight of the absolute difference of grey values beside that of gradients; 0: the paper's score.
        window
            Side of the square over which the map is averaged, in pixels, odd.
        relative
            Whether the map counts in deviations above what normals have at that place; False: as in the paper.
        width
            Channels of the U-Net at the first of five resolutions; they double three times.
        """

        pooling: str = "max"
        epochs: int = Field(300, ge=1)
        batch_size: int = Field(8, ge=1)
        learning_rate: float = Field(1e-4, gt=0)
        weight_decay: float = Field(1e-5, ge=0)
        cells: tuple[int, ...] = Field((2, 4, 8, 16), min_length=1)
        parts: int = Field(3, ge=2)
        intensity: float = Field(1.0, ge=0)
        window: int = Field(21, ge=1)
        relative: bool = True
        width: int = Field(32, ge=1)

        @field_validator("cells", mode="before")
        @classmethod
        def _split(cls, cells: object) -> object:
            return cells.split(",") if isinstance(cells, str) else cells

        @field_validator("cells")
        @classmethod
        def _at_least_one(cls, cells: tuple[int, ...]) -> tuple[int, ...]:
            if min(cells) < 1:
                raise ValueError("cells are at least 1 pixel wide")
            return cells

        @field_validator("window")
        @classmethod
        def _odd(cls, window: int) -> int:
            if window % 2 == 0:
                raise ValueError("the window must be odd, to have a middle")
            return window

        @property
        def multiple(self) -> int:
            """The sides are cut into cells, and halved by the U-Net and by the pyramid of gradients."""
            return math.lcm(*self.cells, 1 << (len(WIDTHS) - 1), 1 << (LEVELS - 1))

    config: Config

    def build(self, shape: tuple[int, ...]) -> None:
        """The U-Net, for images ``(C, H, W)``."""
        self.unet = UNet(shape[0], shape[0], tuple(self.config.width * n for n in WIDTHS))
        nn.init.zeros_(self.unet.last.weight)
        self.normal = NormalResiduals((shape[1], shape[2]))

    def training_step(self, batch: StepBatch) -> dict[str, torch.Tensor]:
        """Squared error, gradients and SSIM of the in-painted image, with cells of one random size."""
        c = self.config
        cell = c.cells[int(torch.randint(len(c.cells), ()))]
        holes = cell_holes((batch.x.shape[2], batch.x.shape[3]), cell, c.parts)
        y = inpaint_everywhere(self._network, batch.x, holes)
        return {
            "l2": squared_error(batch.x, y).mean(),
            "gradients": gradient_error(batch.x, y).mean(),
            "ssim": ssim_error(batch.x, y).mean(),
        }

    def after_training(self, batches: Iterator[StepBatch]) -> None:
        """What residuals of normals are like."""
        self.normal.learn(self.residual(batch.x) for batch in batches)

    def inpaint(self, x: torch.Tensor, holes: torch.Tensor) -> torch.Tensor:
        """Fill holes, bool ``(B, H, W)``, of images ``(B, C, H, W)``; outside them the images stay as they are."""
        x, hidden = x.to(self.device), holes.to(self.device)[:, None]
        masked = torch.where(hidden, 0.0, x)
        return torch.where(hidden, self._network(masked, holes), x)

    def inpainted(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``(B, C, H, W)`` in-painted everywhere, for each size of cells: ``(len(cells), B, C, H, W)``."""
        c, shape = self.config, (x.shape[2], x.shape[3])
        return torch.stack(
            [inpaint_everywhere(self._network, x, cell_holes(shape, cell, c.parts, seeded(c.seed))) for cell in c.cells]
        )

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        """Difference ``(B, H, W)`` to what was in-painted, the mean over the sizes of cells and over `window`."""
        c = self.config

        def difference(one: torch.Tensor) -> torch.Tensor:
            errors = [
                gradient_error(one, y)[:, 0] + c.intensity * absolute_error(one, y).mean(1) for y in self.inpainted(one)
            ]
            return mean_filter(torch.stack(errors).mean(0), c.window)

        return self.each(difference, x)

    def compute_map(self, x: torch.Tensor) -> torch.Tensor:
        """The residual ``(B, H, W)``, relative to those of normals or as it is."""
        residual = self.residual(x)
        return self.normal(residual) if self.config.relative else residual

    def _network(self, masked: torch.Tensor, holes: torch.Tensor) -> torch.Tensor:
        # The network adds to a smooth fill, from which it starts.
        y: torch.Tensor = smooth_fill(masked, holes) + self.unet(masked)
        return y
