"""Holes in images, True where a pixel is hidden, and how hidden pixels are put together again.

For training, holes are drawn anew at every step; for scoring they follow from a seed and together hide every pixel.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

Inpaint = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

MOST_SHAPES = 8  # in one union
RADII = 0.05, 0.2  # of a shape, as a part of the shorter side
SWEEPS = 8  # of each level of a smooth fill


def seeded(seed: int) -> torch.Generator:
    """A generator for holes that are the same at every call; on the CPU whatever the device."""
    return torch.Generator().manual_seed(seed)


def cell_holes(shape: tuple[int, int], cell: int, parts: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """Split an image ``(H, W)`` at random into `parts` sets of square cells; each set is one hole.

    Bool ``(parts, H, W)`` on the CPU, after Zavrtanik et al. 2021: every pixel is hidden in exactly one, and sizes
    differ by at most one cell. Without a generator the split is drawn by that of torch.
    """
    rows, columns = shape[0] // cell, shape[1] // cell
    if (rows * cell, columns * cell) != tuple(shape):
        raise ValueError(f"{shape[0]} x {shape[1]} pixels cannot be cut into cells of {cell}")
    owner = (torch.randperm(rows * columns, generator=generator) % parts).reshape(rows, columns)
    owner = owner.repeat_interleave(cell, 0).repeat_interleave(cell, 1)
    return owner == torch.arange(parts)[:, None, None]


def lattice_holes(shape: tuple[int, int], cell: int) -> torch.Tensor:
    """Four holes of square cells, every other cell of every other row; no two cells of one hole touch.

    Bool ``(4, H, W)`` on the CPU; every pixel is hidden in exactly one. Cells at the border may be cut.
    """
    rows, columns = (torch.arange(side) // cell % 2 for side in shape)
    return 2 * rows[:, None] + columns == torch.arange(4)[:, None, None]


def block_holes(shape: tuple[int, int], parts: int) -> torch.Tensor:
    """An image cut into ``parts x parts`` rectangles, each one hole, as bool ``(parts ** 2, H, W)`` on the CPU.

    Every pixel is hidden in exactly one; sizes differ by at most one pixel.
    """
    rows, columns = (torch.arange(side) * parts // side for side in shape)
    return parts * rows[:, None] + columns == torch.arange(parts**2)[:, None, None]


def shape_holes(count: int, shape: tuple[int, int], generator: torch.Generator | None = None) -> torch.Tensor:
    """Unions of 1 to 8 circles, squares and ellipses of random size, place and turn, bool ``(count, H, W)`` on the CPU.

    As in AutoPaint (Astaraki et al. 2023). Radii are 5 to 20 % of the shorter side (ours).
    """
    height, width = shape

    def draw(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand((count, MOST_SHAPES, 1, 1), generator=generator)

    kind = torch.randint(3, (count, MOST_SHAPES, 1, 1), generator=generator)  # circle, square, ellipse
    present = torch.arange(MOST_SHAPES) < torch.randint(1, MOST_SHAPES + 1, (count, 1), generator=generator)
    radius, flatness = draw(*RADII) * min(shape), draw(0.4, 1.0)
    turn = draw(0, torch.pi) * (kind == 2)
    y = torch.arange(height)[:, None] - draw(0, height)
    x = torch.arange(width)[None, :] - draw(0, width)
    along, across = x * turn.cos() + y * turn.sin(), y * turn.cos() - x * turn.sin()
    round_ = along**2 + (across / torch.where(kind == 2, flatness, 1.0)) ** 2 <= radius**2
    square = torch.maximum(along.abs(), across.abs()) <= radius
    return (torch.where(kind == 1, square, round_) & present[:, :, None, None]).any(1)


def smooth_fill(x: torch.Tensor, holes: torch.Tensor) -> torch.Tensor:
    """Fill holes, bool ``(B, H, W)``, of images ``(B, C, H, W)`` smoothly from their rims.

    Nearly the solution of Laplace's equation: what is missing at a level of a pyramid is taken from the next coarser
    one and becomes the mean of its four neighbours, a few times. Where nothing is known the fill is 0.
    """
    known = (~holes)[:, None].to(x.dtype)
    x = x * known
    levels = [(x, known)]
    while max(x.shape[2:]) > 1:
        share = F.avg_pool2d(known, 2, ceil_mode=True)
        x = F.avg_pool2d(x * known, 2, ceil_mode=True) / share.clamp_min(1e-6)
        known = (share > 0).to(x.dtype)
        levels.append((x, known))
    for finer, known in reversed(levels[:-1]):
        x = F.interpolate(x, finer.shape[2:], mode="bilinear", align_corners=False)
        for _ in range(SWEEPS):
            x = torch.where(known > 0, finer, x)
            p = F.pad(x, (1, 1, 1, 1), "replicate")
            x = (p[:, :, :-2, 1:-1] + p[:, :, 2:, 1:-1] + p[:, :, 1:-1, :-2] + p[:, :, 1:-1, 2:]) / 4
        x = torch.where(known > 0, finer, x)
    return x


def inpaint_everywhere(inpaint: Inpaint, x: torch.Tensor, holes: torch.Tensor) -> torch.Tensor:
    """Each pixel of images ``(B, C, H, W)`` as it is in-painted where it is hidden; the mean where it is so repeatedly.

    `inpaint` gives images ``(N, C, H, W)`` from those with 0 inside their holes, so that nothing can leak, and the
    holes, bool ``(N, H, W)``. `holes` are bool ``(P, H, W)``; a ValueError says that a pixel is hidden in none.
    """
    times = holes.sum(0)
    if not bool((times > 0).all()):
        raise ValueError("these holes leave pixels that are never hidden")
    batch, passes = len(x), len(holes)
    hidden = holes.to(x.device).expand(batch, *holes.shape)
    masked = torch.where(hidden[:, :, None], 0.0, x[:, None])
    y = inpaint(masked.flatten(0, 1), hidden.flatten(0, 1)).reshape(batch, passes, *x.shape[1:])
    return (y * hidden[:, :, None]).sum(1) / times.to(x.device)
