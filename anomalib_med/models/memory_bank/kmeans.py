"""K-means (Lloyd, "Least squares quantization in PCM", 1982) in blocks of bounded memory."""

import torch

from anomalib_med.records import Progress, silent

ROUNDS = 10
SAMPLE = 50  # points for each centre that the centres are moved by
BLOCK_BYTES = 64 * 2**20  # of distances held at once


def kmeans(
    points: torch.Tensor, count: int, weights: torch.Tensor | None, *, seed: int = 0, progress: Progress = silent
) -> torch.Tensor:
    """Centres of clusters, float32 ``(count, D)``, of points ``(N, D)`` that count by `weights` ``(N,)``, or all alike.

    It looks at 50 random points for each centre. All points come back where there are no more than `count`.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(points), generator=generator)[: SAMPLE * count].to(points.device)
    x = points[order].float()
    # Sums are made on the CPU, in one order: a GPU adds in any.
    share = torch.ones(len(x)) if weights is None else weights.cpu()[order.cpu()].float()
    weighted = x.cpu() * share[:, None]
    centres = x[:count].clone()
    if len(x) <= count:
        return centres
    for done in range(1, ROUNDS + 1):
        squared = (centres * centres).sum(1)
        parts = torch.split(x, max(1, BLOCK_BYTES // (4 * count)))
        nearest = torch.cat([torch.addmm(squared[None], p, centres.T, alpha=-2).argmin(1) for p in parts]).cpu()
        total = torch.zeros(count).index_add_(0, nearest, share)
        sums = torch.zeros(count, x.shape[1]).index_add_(0, nearest, weighted)
        moved = total > 0  # a centre that no point is nearest to stays where it was
        centres[moved.to(centres.device)] = (sums[moved] / total[moved, None]).to(centres.device)
        progress("choosing the bank", done, ROUNDS)
    return centres
