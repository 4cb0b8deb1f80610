"""Time of the greedy k-centre selection: in blocks against one pick at a time, and whether the picks are equal.

    python benchmarks/coreset.py [--points 150000] [--centres 3000] [--dimensions 128] [--reference 300]

One pick at a time is measured in its two usual forms over the first ``--reference`` picks, and extended in proportion:
every pick costs the same pass over all points.
"""

import time

import torch
from shared import command_line

from anomalib_med.models.memory_bank.coreset import greedy_in_blocks, to_grid


def by_difference(x: torch.Tensor, count: int) -> list[int]:
    """Distances as they are written down: the norm of the difference."""
    picks = [int((x * x).sum(1).argmin())]
    nearest = ((x - x[picks[0]]) ** 2).sum(1)
    while len(picks) < count:
        picks.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, ((x - x[picks[-1]]) ** 2).sum(1))
    return picks


def by_product(x: torch.Tensor, count: int) -> list[int]:
    """Distances through one matrix-vector product for each pick."""
    squared = (x * x).sum(1)
    picks = [int(squared.argmin())]
    nearest = squared + squared[picks[0]] - 2 * (x @ x[picks[0]])
    while len(picks) < count:
        picks.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, squared + squared[picks[-1]] - 2 * (x @ x[picks[-1]]))
    return picks


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--points", type=int, default=150_000)
    parser.add_argument("--centres", type=int, default=3_000)
    parser.add_argument("--dimensions", type=int, default=128)
    parser.add_argument(
        "--reference", type=int, default=300, help="picks that the references are timed over; 0 for all"
    )
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    # Clusters of different width, as patches of images are.
    centres = torch.randn(200, options.dimensions, generator=generator) * 3
    widths = torch.rand(200, 1, generator=generator) + 0.2
    which = torch.randint(200, (options.points,), generator=generator)
    x = to_grid(centres[which] + widths[which] * torch.randn(options.points, options.dimensions, generator=generator))
    start = time.perf_counter()
    picks = greedy_in_blocks(x, options.centres).tolist()
    seconds = time.perf_counter() - start
    print(f"{options.points} x {options.dimensions}, {options.centres} centres, {torch.get_num_threads()} threads")
    print(f"in blocks             {seconds:8.1f} s")
    count = options.reference or options.centres
    for name, reference in (("one by one, product", by_product), ("one by one, difference", by_difference)):
        start = time.perf_counter()
        expected = reference(x, count)
        whole = (time.perf_counter() - start) * options.centres / count
        equal = "equal" if expected == picks[:count] else "DIFFERENT"
        print(f"{name:<22}{whole:7.1f} s   {whole / seconds:6.1f} times   first {count} picks {equal}")


if __name__ == "__main__":
    main()
