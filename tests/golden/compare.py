"""What differs between a record and what is computed now, in words."""

import math
from collections.abc import Iterator, Mapping, Sequence

# On another processor or another torch only the rounding may differ. These follow from the last bit:
ROUNDED_AWAY = ("sha256", "flagged", "row", "column", "slice", "slices", "rank", "candidates", "ml")


def differences(recorded: object, found: object, tolerance: float | None = None) -> list[str]:
    """One line for each field that differs.

    Parameters
    ----------
    recorded, found
        Tables of numbers, texts and lists of these, nested.
    tolerance
        None to ask for equal bits. Otherwise the share of the spread of a field by which each of its numbers may
        differ; digests and decisions are then not compared, and a p-value may move by one patient, or by that share.
    """
    before, now = dict(_fields("", recorded)), dict(_fields("", found))
    lines = [f"{name}: recorded, and not computed now" for name in before if name not in now]
    lines += [f"{name}: computed now, and not recorded" for name in now if name not in before]
    for name in before:
        if name in now:
            record = name.rpartition(".")[0]
            step = before.get(f"{record}.smallest_p" if record else "smallest_p", before.get("smallest_p", 1.0))
            line = _difference(before[name], now[name], _allowance(name, before[name], tolerance, step))
            lines += [f"{name}: {line}"] if line else []
    return lines


def _fields(name: str, value: object) -> Iterator[tuple[str, object]]:
    """Every list, number and text with its dotted name."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _fields(f"{name}.{key}" if name else str(key), inner)
    else:
        yield name, value


def _allowance(name: str, recorded: object, tolerance: float | None, step: object) -> float:
    """By how much the numbers of a field may differ; infinite for a field that is not compared."""
    if tolerance is None:
        return 0.0
    if name.endswith(ROUNDED_AWAY):
        return math.inf
    if "p_value" in name:
        return max(float(step), tolerance) * (1 + 1e-9)
    values = [v for v in _listed(recorded) if isinstance(v, float)]
    spread = max(values) - min(values) if values else 0.0
    return tolerance * (spread or max(map(abs, values), default=0.0))


def _difference(recorded: object, found: object, allowed: float) -> str:
    if math.isinf(allowed):
        return ""
    before, now = _listed(recorded), _listed(found)
    if len(before) != len(now):
        return f"{len(before)} values recorded, {len(now)} now"
    wrong = [i for i, (a, b) in enumerate(zip(before, now, strict=True)) if not _alike(a, b, allowed)]
    if not wrong:
        return ""
    gaps = {i: abs(before[i] - now[i]) for i in wrong if _is_number(before[i]) and _is_number(now[i])}
    worst = max(gaps, key=gaps.__getitem__) if gaps else wrong[0]
    said = f"{len(wrong)} of {len(before)} differ" if isinstance(recorded, Sequence) else "differs"
    if worst in gaps:
        known = [v for v in before if _is_number(v)]
        spread = (max(known) - min(known)) or max(map(abs, known)) or 1.0
        said += f", by at most {gaps[worst]:.3g} = {gaps[worst] / spread:.2g} of their spread"
        said += f" (allowed {allowed:.3g})" if allowed else ""
    return f"{said}; number {worst}: {before[worst]!r} recorded, {now[worst]!r} now"


def _alike(recorded: object, found: object, allowed: float) -> bool:
    if _is_number(recorded) and _is_number(found):
        return abs(recorded - found) <= allowed
    return recorded == found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _listed(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else [value]
