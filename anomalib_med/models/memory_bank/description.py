"""An image as one vector: the mean and the standard deviation of its features over the valid cells.

What the detectors that compare whole images share, and the way back from a distance between such vectors to the cells.
"""

import torch

from anomalib_med.models.pooling import valid_cells


def describe(features: torch.Tensor) -> torch.Tensor:
    """Mean and standard deviation, float32 ``(2 D,)``, of features ``(D, cells)``."""
    values = features.float()
    return torch.cat([values.mean(1), values.std(1, correction=0)])


def describe_batch(features: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Descriptions, float32 ``(B, 2 D)``, of features ``(B, D, h, w)`` over the valid cells.

    Parameters
    ----------
    valid
        bool ``(B, H, W)`` of any resolution, see :func:`anomalib_med.models.pooling.valid_cells`.
    """
    cells = valid_cells(valid, (features.shape[2], features.shape[3])).to(features.device)
    # One image at a time: a sum over a batch rounds differently.
    return torch.stack([describe(grid.flatten(1)[:, c.flatten()]) for grid, c in zip(features, cells, strict=True)])


def spread(described: torch.Tensor) -> torch.Tensor:
    """Standard deviation ``(2 D,)`` of each number among descriptions ``(N, 2 D)``; 1 where it does not vary."""
    if len(described) < 2:
        return torch.ones_like(described[0])
    deviation = described.std(0)
    return torch.where(deviation > 0, deviation, torch.ones_like(deviation))
