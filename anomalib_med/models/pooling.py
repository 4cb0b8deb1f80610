"""Image-level score from an anomaly map: the maximum, the mean, or the mean of the highest share of its valid cells."""

import re

import torch
import torch.nn.functional as F

from anomalib_med.errors import ConfigError

_TOP = re.compile(r"top(\d+(?:\.\d+)?)%")


def top_share(pooling: str) -> float:
    """Share of the cells that a pooling averages: 0 for "max", 1 for "mean", 0.1 for "top10%".

    Raises
    ------
    ConfigError
        For any other text.
    """
    if pooling in ("max", "mean"):
        return float(pooling == "mean")
    match = _TOP.fullmatch(pooling)
    if match and 0 < float(match[1]) <= 100:
        return float(match[1]) / 100
    raise ConfigError(
        f'pooling "{pooling}" is not known: use "max", "mean" or the share of the highest cells, as in "top10%"'
    )


def pool(maps: torch.Tensor, valid: torch.Tensor, pooling: str) -> torch.Tensor:
    """Pool anomaly maps to one score an image.

    Parameters
    ----------
    maps
        ``(B, h, w)``, higher is more anomalous.
    valid
        bool ``(B, H, W)`` of any resolution: a cell counts where at least half of it is valid. An image without such a
        cell is pooled over all.
    pooling
        "max", "mean" or "top<q>%": the mean of the highest q percent of the valid cells, at least one.

    Returns
    -------
    float32 ``(B,)``.
    """
    share = top_share(pooling)
    cells = valid_cells(valid, (maps.shape[1], maps.shape[2])).to(maps.device)
    scores = []
    for values, counted in zip(maps.float(), cells, strict=True):
        kept = values[counted]
        highest = max(1, round(share * kept.numel()))
        scores.append(kept.mean() if highest == kept.numel() else kept.topk(highest).values.mean())
    return torch.stack(scores)


def valid_cells(valid: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Cells of a ``(h, w)`` grid that lie at least half in the valid area of ``(B, H, W)``; all where none does."""
    share = F.adaptive_avg_pool2d(valid[:, None].float(), grid)[:, 0]
    cells = share >= 0.5
    cells[~cells.flatten(1).any(1)] = True
    return cells
