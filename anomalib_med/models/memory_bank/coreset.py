"""Greedy k-centre selection (farthest first), exactly, in blocks.

Sener and Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set Approach", ICLR 2018, algorithm 1,
as PatchCore uses it on a random projection.

The blocks here give the same picks as the greedy rule, which reads every point once for each centre, with few such
passes: among the few thousand farthest points, the next pick is the global one for as long as its distance stays above
that of every point outside, because distances only shrink. Points are first put on an integer grid that float32 holds
every product and sum of exactly (Cauchy-Schwarz bounds each partial sum by the squared largest norm), so picks are the
same whatever the block size, the number of threads or the device.
"""

import torch

from anomalib_med.records import Progress, silent

GRID = 2047  # largest norm on the grid: 4 * 2047**2 < 2**24, the last integer up to which float32 is exact
PROJECTION = 128
NARROW = 160  # dimensions up to which projecting saves next to nothing
CANDIDATES = 4096
ROWS = 65536  # of one matrix product with the new centres


def k_center(points: torch.Tensor, count: int, *, seed: int = 0, progress: Progress = silent) -> torch.Tensor:
    """Choose points ``(N, D)`` so that the farthest of the others is near to one of them.

    Rows int64 ``(count,)`` come back in the order of choice, fewer where fewer points differ, and all in their order
    where there are no more. The first is nearest to the mean; ties go to the lowest row. The seed is that of the random
    projection to 128 dimensions, which is made where D is above 160.
    """
    if count >= len(points):
        return torch.arange(len(points))
    return greedy_in_blocks(to_grid(project(points, seed)), count, progress=progress)


def project(points: torch.Tensor, seed: int) -> torch.Tensor:
    """Gaussian random projection to 128 dimensions (Johnson-Lindenstrauss), float32; up to 160 are left as they are."""
    if points.shape[1] <= NARROW:
        return points
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(points.shape[1], PROJECTION, generator=generator).div_(PROJECTION**0.5).to(points.device)
    projected = torch.empty(len(points), PROJECTION, device=points.device)
    for start in range(0, len(points), ROWS):
        projected[start : start + ROWS] = points[start : start + ROWS].float() @ matrix
    return projected


def to_grid(points: torch.Tensor) -> torch.Tensor:
    """Centre points and round them to integers of norm at most 2047, kept as float32."""
    centre = torch.zeros(points.shape[1], dtype=torch.float64, device=points.device)
    for part in torch.split(points, ROWS):  # a sum in float64 of all at once would copy them
        centre += part.sum(0, dtype=torch.float64)
    centred = points.to(torch.float32, copy=True).sub_((centre / len(points)).float())
    largest = max(float(part.norm(dim=1).max()) for part in torch.split(centred, ROWS))
    # Rounding can lengthen a vector by half a step in each dimension.
    scale = (GRID - 0.5 * points.shape[1] ** 0.5) / largest if largest > 0 else 1.0
    return centred.mul_(scale).round_()


def greedy_in_blocks(
    x: torch.Tensor, count: int, *, candidates: int = CANDIDATES, progress: Progress = silent
) -> torch.Tensor:
    """Farthest-first choice among points ``(N, D)`` that lie on the integer grid of :func:`to_grid`.

    So many `candidates` compete within a block: their number changes the time and nothing else.
    """
    squared = torch.cat([(part * part).sum(1) for part in torch.split(x, ROWS)])
    picks = [int(squared.argmin())]
    nearest = torch.full_like(squared, torch.inf)
    _update(nearest, x, squared, picks)
    while len(picks) < min(count, len(x)) and float(nearest.max()) > 0:  # at 0, all that are left are copies
        block = _pick_block(x, squared, nearest, min(count, len(x)) - len(picks), candidates)
        _update(nearest, x, squared, block)
        picks += block
        progress("choosing the bank", len(picks), count)
    return torch.tensor(picks)


def _pick_block(
    x: torch.Tensor, squared: torch.Tensor, nearest: torch.Tensor, wanted: int, candidates: int
) -> list[int]:
    """The next picks that are certain to be the global ones; at least one."""
    outside, rows = -1.0, torch.arange(len(x), device=x.device)
    if candidates < len(x):
        values, rows = nearest.topk(candidates + 1)
        outside, rows = float(values[-1]), rows[:-1].sort().values  # sorted: argmax resolves ties by row
    if float(nearest.max()) <= outside:
        return [int(nearest.argmax())]  # more points share the largest distance than there are candidates
    distance, points, lengths = nearest[rows], x[rows], squared[rows]
    chosen: list[int] = []
    while len(chosen) < wanted:
        best = int(distance.argmax())
        if float(distance[best]) <= max(outside, 0.0):
            break
        chosen.append(best)
        torch.minimum(distance, lengths + lengths[best] - 2 * (points @ points[best]), out=distance)
    return [int(row) for row in rows[chosen]]


def _update(nearest: torch.Tensor, x: torch.Tensor, squared: torch.Tensor, centres: list[int]) -> None:
    """Lower the distance of every point to that of the nearest of these centres, in place."""
    points, lengths = x[centres], squared[centres]
    for start in range(0, len(x), ROWS):
        rows = slice(start, start + ROWS)
        closest = torch.addmm(lengths[None], x[rows], points.T, alpha=-2).amin(1).add_(squared[rows])
        torch.minimum(nearest[rows], closest, out=nearest[rows])
