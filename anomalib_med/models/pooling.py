"""Image-level score from an anomaly map: its maximum, its mean, or one of two ways between them."""

import re

import torch
import torch.nn.functional as F

from anomalib_med.errors import ConfigError

_NAMED = re.compile(r"max|mean|top(?P<share>\d+(?:\.\d+)?)%|power(?P<exponent>\d+(?:\.\d+)?)")


def parse_pooling(pooling: str) -> tuple[float, float]:
    """Share of the highest cells that count, and the exponent of their mean.

    "max" is (0, 1), "mean" (1, 1), "top10%" (0.1, 1), "power8" (1, 8).

    Raises
    ------
    ConfigError
        For any other text.
    """
    match = _NAMED.fullmatch(pooling)
    share = float(match["share"]) / 100 if match and match["share"] else float(pooling != "max")
    exponent = float(match["exponent"]) if match and match["exponent"] else 1.0
    if match is None or not (share <= 1 and exponent >= 1 and (share > 0 or pooling == "max")):
        raise ConfigError(
            f'pooling "{pooling}" is not known: use "max", "mean", the mean of the highest cells as in "top10%", '
            'or a power mean as in "power8"'
        )
    return share, exponent


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
        "max"; "mean"; "top<q>%": the mean of the highest q percent of the valid cells, at least one; "power<p>": the
        generalised mean ``mean(cell ** p) ** (1 / p)``, which goes from the mean at 1 to the maximum at infinity and
        is in the units of the map (cells below 0 count as 0).

    Returns
    -------
    float32 ``(B,)``.
    """
    share, exponent = parse_pooling(pooling)
    cells = valid_cells(valid, (maps.shape[1], maps.shape[2])).to(maps.device)
    return torch.stack([_pool_one(v[c], share, exponent) for v, c in zip(maps.float(), cells, strict=True)])


def _pool_one(values: torch.Tensor, share: float, exponent: float) -> torch.Tensor:
    if exponent > 1:
        largest = values.max()
        if largest <= 0:
            return torch.zeros_like(largest)
        # In double and relative to the largest: powers neither overflow nor vanish.
        relative = (values.clamp_min(0) / largest).double()
        return (largest * relative.pow(exponent).mean().pow(1 / exponent)).float()
    highest = max(1, round(share * values.numel()))
    return values.mean() if highest == values.numel() else values.topk(highest).values.mean()


def valid_cells(valid: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Cells of a ``(h, w)`` grid that lie at least half in the valid area of ``(B, H, W)``; all where none does."""
    share = F.adaptive_avg_pool2d(valid[:, None].float(), grid)[:, 0]
    cells = share >= 0.5
    cells[~cells.flatten(1).any(1)] = True
    return cells
