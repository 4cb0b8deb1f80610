"""Maps of different resolution brought to one grid."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def to_grid(maps: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """Bring maps ``(B, C, h, w)`` to the rows and columns of a grid by bilinear interpolation in float32.

    Returns ``(B, C, *grid)`` in the type of `maps`; `maps` itself where it has that grid.
    """
    if tuple(maps.shape[-2:]) == tuple(grid):
        return maps
    return F.interpolate(maps.float(), size=tuple(grid), mode="bilinear", align_corners=False).to(maps.dtype)
