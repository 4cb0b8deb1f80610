"""RIAD: the image is cut into cells, cells are hidden in turn and in-painted from the others, at several scales.

Zavrtanik et al. 2021, https://doi.org/10.1016/j.patcog.2020.107706. There is no official code; details as in the
re-implementation plutoyuxie/Reconstruction-by-inpainting-for-visual-anomaly-detection.
"""

import math
from typing import Annotated, cast

import torch
from pydantic import Field
from torch import nn

from anomalib_med.models.blocks import UNet
from anomalib_med.models.filters import mean_filter
from anomalib_med.models.inpainting.holes import cell_holes, inpaint_everywhere, seeded, smooth_fill
from anomalib_med.models.inpainting.residuals import LEVELS, HoleFiller, ResidualConfig, Window, gradient_error
from anomalib_med.models.losses import absolute_error, squared_error, ssim_error
from anomalib_med.models.training import StepBatch

WIDTHS = 1, 2, 4, 8, 8  # of the U-Net, as multiples of the first


class Riad(HoleFiller):
    """In-paints every pixel from its surroundings, at several scales; the map shows how gradients and greys differ."""

    name = "riad"
    title = "RIAD, reconstruction by in-painting (Zavrtanik et al., Pattern Recognition 2021)"

    class Config(ResidualConfig):
        """Settings of RIAD."""

        pooling: str = "max"
        epochs: int = Field(300, ge=1)
        batch_size: int = Field(8, ge=1)
        weight_decay: float = Field(1e-5, ge=0)
        cells: tuple[Annotated[int, Field(ge=1)], ...] = Field((2, 4, 8, 16), min_length=1)
        """Sides of the hidden cells in pixels, one for each scale, as in the paper."""
        parts: int = Field(3, ge=2)
        """Sets of cells that are hidden in turn, as many as in the paper."""
        intensity: float = Field(1.0, ge=0)
        """Weight of the absolute difference of grey values beside that of gradients; 0 in the paper."""
        window: Window = 21
        """Side of the square over which the map is averaged, in pixels, odd, as in the paper."""
        width: int = Field(32, ge=1)
        """Channels of the U-Net at the first of five resolutions; they double three times."""

        @property
        def multiple(self) -> int:
            """The sides are cut into cells, and halved by the U-Net and by the pyramid of gradients."""
            return math.lcm(*self.cells, 1 << (len(WIDTHS) - 1), 1 << (LEVELS - 1))

    config: Config

    def build(self, shape: tuple[int, ...]) -> None:
        """Build the U-Net."""
        self.unet = UNet(shape[0], tuple(self.config.width * n for n in WIDTHS))
        nn.init.zeros_(self.unet.last.weight)

    def training_step(self, batch: StepBatch) -> dict[str, torch.Tensor]:
        """Squared error, gradients and SSIM of the in-painted image, with cells of one random size."""
        c = self.config
        cell = c.cells[int(torch.randint(len(c.cells), ()))]
        holes = cell_holes((batch.x.shape[2], batch.x.shape[3]), cell, c.parts)
        y = inpaint_everywhere(self.network, batch.x, holes)
        return {
            "l2": squared_error(batch.x, y).mean(),
            "gradients": gradient_error(batch.x, y).mean(),
            "ssim": ssim_error(batch.x, y).mean(),
        }

    def inpainted(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``(B, C, H, W)`` in-painted everywhere, for each size of cells: ``(len(cells), B, C, H, W)``."""
        c, shape = self.config, (x.shape[2], x.shape[3])
        holes = (cell_holes(shape, cell, c.parts, seeded(c.seed)) for cell in c.cells)
        return torch.stack([inpaint_everywhere(self.network, x, hole) for hole in holes])

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        """Difference ``(B, H, W)`` to what was in-painted, the mean over the sizes of cells and over `window`."""
        c = self.config
        errors = [gradient_error(x, y)[:, 0] + c.intensity * absolute_error(x, y).mean(1) for y in self.inpainted(x)]
        return mean_filter(torch.stack(errors).mean(0), c.window)

    def network(self, x: torch.Tensor, holes: torch.Tensor) -> torch.Tensor:
        """What the U-Net adds to a smooth fill, and that fill."""
        return smooth_fill(x, holes) + cast(torch.Tensor, self.unet(x))
