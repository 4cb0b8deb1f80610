"""Image-level score from an anomaly map: its maximum, its mean, or one of two ways between them."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from anomalib_med.pooling_rules import Kind, Rule, parse_rule

MAP_RULES: tuple[Kind, ...] = ("max", "mean", "share", "power")


def pool(maps: torch.Tensor, valid: torch.Tensor, pooling: str) -> torch.Tensor:
    """Pool anomaly maps ``(B, h, w)`` over their valid areas, bool ``(B, H, W)``, to scores, float32 ``(B,)``.

    A cell counts where at least half of it is valid; an image without such a cell is pooled over all. `pooling` is
    "max"; "mean"; "top<q>%": the mean of the highest q percent of the cells, at least one; or "power<p>": the
    generalised mean ``mean(cell ** p) ** (1 / p)``, from the mean at 1 to the maximum at infinity, in the units of the
    map (cells below 0 count as 0). Any other is a ConfigError.
    """
    rule = parse_rule(pooling, MAP_RULES)
    cells = valid_cells(valid, maps.shape[1:]).to(maps.device)
    return torch.stack([_pool_one(v[c], rule) for v, c in zip(maps.float(), cells, strict=True)])


def _pool_one(values: torch.Tensor, rule: Rule) -> torch.Tensor:
    if rule.kind == "max":
        return values.max()
    if rule.kind == "power" and rule.number > 1:
        largest = values.max()
        if largest <= 0:
            return torch.zeros_like(largest)
        # In double and relative to the largest: powers neither overflow nor vanish.
        relative = (values.clamp_min(0) / largest).double()
        return (largest * relative.pow(rule.number).mean().pow(1 / rule.number)).float()
    highest = max(1, round(rule.number * len(values))) if rule.kind == "share" else len(values)
    return values.mean() if highest == len(values) else values.topk(highest).values.mean()


def valid_cells(valid: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """Cells of a ``(h, w)`` grid that lie at least half in the valid area of ``(B, H, W)``; all where none does."""
    cells = F.adaptive_avg_pool2d(valid[:, None].float(), (grid[0], grid[1]))[:, 0] >= 0.5
    cells[~cells.flatten(1).any(1)] = True
    return cells
