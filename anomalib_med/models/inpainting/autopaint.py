"""AutoPaint: marks what looks wrong, in-paints it from its surroundings, and looks again.

Astaraki et al. 2023, https://arxiv.org/abs/2305.12358; what it leaves open is named in the card. Partial convolutions:
Liu et al., ECCV 2018, https://arxiv.org/abs/1804.07723.
"""

from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from anomalib_med.models.blocks import Norm, norm_layer
from anomalib_med.models.inpainting.holes import inpaint_everywhere, lattice_holes, shape_holes, smooth_fill
from anomalib_med.models.inpainting.residuals import HoleFiller, ResidualConfig, grow, mean_error
from anomalib_med.models.losses import absolute_error
from anomalib_med.models.training import StepBatch

MOST = 0.25  # of an image that may be marked
WIDTHS = 1, 2, 4, 8, 8  # of the U-Net, as multiples of the first


class AutoPaint(HoleFiller):
    """In-paints an image with a model of the healthy, first everywhere, then where it differed."""

    name = "autopaint"
    title = "AutoPaint, self-inpainting with partial convolutions (Astaraki et al., 2023)"

    class Config(ResidualConfig):
        """Settings of AutoPaint."""

        pooling: str = "top1%"
        epochs: int = Field(50, ge=1)
        batch_size: int = Field(16, ge=1)
        learning_rate: float = Field(2e-4, gt=0)
        cell: int = Field(16, ge=1)
        """Side of the squares that are hidden in turn in the first round, in pixels; ours."""
        rounds: int = Field(3, ge=0)
        """How often what differs is marked and in-painted anew; with 0 there is the first round alone."""
        threshold: float = Field(2.0, gt=0)
        """What differs by more than so many deviations of normals at that place is marked; ours."""
        margin: int = Field(5, ge=0)
        """Number of pixels by which what is marked is grown before it is in-painted; ours."""
        hole_weight: float = Field(6.0, gt=0)
        """Weight of the error inside the holes, as in Liu et al.; outside of them it is 1."""
        smooth_weight: float = Field(0.1, ge=0)
        """Weight of the total variation around the holes, as in Liu et al."""
        width: int = Field(32, ge=1)
        """Channels of the U-Net at the first of five halvings; they double three times. Liu et al. have 64."""

        @property
        def multiple(self) -> int:
            """The sides are halved five times."""
            return 1 << len(WIDTHS)

    config: Config

    def build(self, shape: tuple[int, ...]) -> None:
        """Build the U-Net."""
        self.unet = PartialUNet(shape[0], tuple(self.config.width * n for n in WIDTHS))

    def training_step(self, batch: StepBatch) -> dict[str, torch.Tensor]:
        """Absolute error inside and outside of random holes, and total variation around them."""
        c, x = self.config, batch.x
        holes = shape_holes(len(x), (x.shape[2], x.shape[3])).to(x.device)
        hidden = holes[:, None]
        y = self.network(torch.where(hidden, 0.0, x), holes)
        error = absolute_error(x, y)
        losses = {
            "outside": torch.where(hidden, 0.0, error).mean(),
            "inside": c.hole_weight * torch.where(hidden, error, 0.0).mean(),
        }
        if c.smooth_weight:
            around = torch.where(grow(holes, 1)[:, None], torch.where(hidden, y, x), 0.0)
            losses["smooth"] = c.smooth_weight * (around.diff(dim=2).abs().mean() + around.diff(dim=3).abs().mean())
        return losses

    def after_training(self, batches: Iterator[StepBatch]) -> None:
        """Learn what residuals of normals are like after the first round."""
        self.normal.learn(self.each(lambda x: mean_error("l1", x, self.first_round(x)), batch.x) for batch in batches)

    def first_round(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``(B, C, H, W)`` in-painted everywhere."""
        return inpaint_everywhere(self.network, x, lattice_holes((x.shape[2], x.shape[3]), self.config.cell))

    def inpainted(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images ``(B, C, H, W)`` as in-painted after all rounds, and what was marked last, bool ``(B, H, W)``."""
        y = self.first_round(x)
        holes = torch.zeros(len(x), *x.shape[2:], dtype=torch.bool, device=x.device)
        # Always all rounds: where a mark is stable another one changes nothing, and no image waits for another.
        for _ in range(self.config.rounds):
            deviations = self.normal(mean_error("l1", x, y))
            # Something must be left to in-paint from.
            least = deviations.flatten(1).quantile(1 - MOST, dim=1).clamp_min(self.config.threshold)
            holes = grow(deviations > least[:, None, None], self.config.margin)
            y = torch.where(holes[:, None], self.inpaint(x, holes), y)
        return y, holes

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        """Absolute difference ``(B, H, W)`` to what was in-painted after all rounds."""
        return mean_error("l1", x, self.inpainted(x)[0])

    def network(self, x: torch.Tensor, holes: torch.Tensor) -> torch.Tensor:
        """What the U-Net adds to a smooth fill, and that fill."""
        return smooth_fill(x, holes) + cast(torch.Tensor, self.unet(x, ~holes))


class PartialConv(nn.Module):
    """A convolution of what is known, weighted by how much that is; norm and activation follow (Liu et al. 2018).

    ``y = W (x m) size / sum(m) + b`` where a window holds a known value, else 0; what is known
    afterwards are those places. What lies beyond the border counts as unknown.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, norm: Norm, activation: nn.Module) -> None:
        super().__init__()
        self.window = kernel, stride, kernel // 2
        self.conv = nn.Conv2d(inputs, outputs, *self.window, bias=False)
        self.bias = nn.Parameter(torch.zeros(outputs, 1, 1))
        self.after = nn.Sequential(norm_layer(norm, outputs), activation)

    def forward(self, x: torch.Tensor, known: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Values ``(B, inputs, H, W)``, 0 where unknown, and the share known, ``(B, 1, H, W)``: both of the output."""
        share = F.avg_pool2d(known, *self.window)
        known = (share > 0).float()
        y = self.after(self.conv(x) / share.clamp_min(1e-6) + self.bias)
        return y * known, known


class PartialUNet(nn.Module):
    """U-Net of partial convolutions that fills what is unknown; sides are multiples of ``2 ** len(widths)``."""

    def __init__(self, channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        kernels, inputs = (7, 5, 5, *[3] * len(widths)), (channels, *widths[:-1])
        self.down = nn.ModuleList(
            PartialConv(i, o, k, 2, norm="group" if n else "none", activation=nn.ReLU())
            for n, (i, o, k) in enumerate(zip(inputs, widths, kernels, strict=False))
        )
        pairs = zip(inputs[:0:-1], widths[:0:-1], strict=True)
        ups = (PartialConv(o + i, i, 3, 1, norm="group", activation=nn.LeakyReLU(0.2)) for i, o in pairs)
        self.up = nn.ModuleList(ups)
        self.last = PartialConv(widths[0] + channels, channels, 3, 1, norm="none", activation=nn.Identity())
        nn.init.zeros_(self.last.conv.weight)

    def forward(self, x: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        """Images ``(B, C, H, W)``, 0 where unknown, and known pixels bool ``(B, H, W)``, to ``(B, C, H, W)``."""
        part = known[:, None].float()
        across = [(x, part)]
        for block in self.down:
            x, part = block(x, part)
            across.append((x, part))
        across.pop()
        for block in (*self.up, self.last):
            skip, skip_part = across.pop()
            coarse, coarse_part = (F.interpolate(v, scale_factor=2.0, mode="nearest") for v in (x, part))
            a, b = coarse.shape[1], skip.shape[1]
            x, part = block(torch.cat([coarse, skip], dim=1), (a * coarse_part + b * skip_part) / (a + b))
        return x
