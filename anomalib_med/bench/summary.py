"""Rows of a table made from cells: means over seeds with their intervals, and which methods differ."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import isfinite, nan

import numpy as np

from anomalib_med.bench.baselines import SCORES_FROM
from anomalib_med.bench.cells import Cell
from anomalib_med.evaluation.curves import Floats
from anomalib_med.evaluation.delong import delong_contrast
from anomalib_med.evaluation.intervals import Interval, difference_of, interval_of

ALPHA = 0.05
COMPARED = ("auroc", "ap", "pixel_auroc", "pixel_ap", "aupro@0.3")
"""Metrics in which methods are tested against each other."""


@dataclass(frozen=True)
class Number:
    """One number of a table: a metric over training seeds."""

    interval: Interval
    """Mean over seeds, and where it may lie with other patients (the seeds as they are)."""
    sd: float
    """Standard deviation over seeds (n - 1): what training varies by, not what another test set would; NaN for one."""
    seeds: int

    def __str__(self) -> str:
        return f"{self.interval} ± {self.sd:.3f}" if isfinite(self.sd) else str(self.interval)


@dataclass(frozen=True, eq=False)
class Row:
    """One data set and method."""

    dataset: str
    method: str
    baseline: bool
    """Whether it is a trivial baseline."""
    cells: tuple[Cell, ...]
    """Finished cells, by seed."""
    numbers: dict[str, Number]
    """Numbers by name of the metric."""
    error: str
    """Why there is none, or which seeds failed and why; "" where nothing failed."""

    def mean_of(self, key: str) -> float:
        """Mean over seeds of a measured quantity such as ``fit_s``; NaN where it was not measured for every seed."""
        values = [v for c in self.cells if isinstance(v := c.info.get(key), int | float)]
        return float(np.mean(values)) if values and len(values) == len(self.cells) else nan


@dataclass(frozen=True)
class Comparison:
    """Difference of two methods in one metric on one data set."""

    dataset: str
    metric: str
    first: str
    second: str
    difference: Interval
    """First minus second, means over seeds, with its interval."""
    p_value: float
    """Two-sided, by patient: from DeLong for the image AUROC, from the paired bootstrap for the others."""
    adjusted: float
    """The p-value after Holm over all comparisons of the bench in that metric."""


def rows_of(cells: Sequence[Cell]) -> list[Row]:
    """One row for each data set and method, in the order of the cells."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.dataset, cell.method), []).append(cell)
    return [_row(dataset, method, group) for (dataset, method), group in groups.items()]


def compare(rows: Sequence[Row]) -> list[Comparison]:
    """Every pair of methods on every data set in every metric of `COMPARED`, trivial baselines left out."""
    pairs = [
        (a, b)
        for dataset in dict.fromkeys(row.dataset for row in rows)
        for a, b in combinations([r for r in rows if r.dataset == dataset and r.cells and not r.baseline], 2)
    ]
    comparisons = []
    for metric in COMPARED:
        both = [(a, b) for a, b in pairs if metric in a.numbers and metric in b.numbers]
        tested = [(a, b, *_difference(a, b, metric)) for a, b in both]
        tested = [test for test in tested if np.isfinite(test[-1])]  # with too few patients there is no test
        adjusted = holm([p for *_, p in tested])
        comparisons += [
            Comparison(a.dataset, metric, a.method, b.method, difference, p, float(q))
            for (a, b, difference, p), q in zip(tested, adjusted, strict=True)
        ]
    return comparisons


def best_of(rows: Sequence[Row], differences: Sequence[Comparison], metric: str) -> set[str]:
    """The method with the highest value on one data set, and those that are not among its significant `differences`."""
    known = {r.method: r.numbers[metric].interval.value for r in rows if not r.baseline and metric in r.numbers}
    best = max(known, key=lambda method: known[method], default="")
    pairs = [{c.first, c.second} for c in differences if c.metric == metric]
    return set(known).difference(*(pair - {best} for pair in pairs if best in pair))


def given_away(rows: Sequence[Row]) -> Row | None:
    """The trivial baseline that scores on one data set, the best where several do; None where none does."""
    trivial = [(r.numbers["auroc"].interval, r) for r in rows if r.baseline and "auroc" in r.numbers]
    scoring = [(interval.value, r) for interval, r in trivial if interval.low > SCORES_FROM]
    return max(scoring, key=lambda pair: pair[0])[1] if scoring else None


def holm(p_values: Sequence[float] | np.ndarray) -> Floats:
    """Adjust p-values ``(k,)`` so that the chance of any false finding in the whole table stays below the level.

    Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return adjusted


def _row(dataset: str, method: str, group: Sequence[Cell]) -> Row:
    finished = tuple(c for c in group if not c.error)
    errors = "; ".join(dict.fromkeys(f"seed {c.seed}: {c.error}" for c in group if c.error))
    names = [n for n in finished[0].measured if all(n in c.measured for c in finished)] if finished else []
    baseline = any(bool(c.info.get("baseline")) for c in group)
    return Row(dataset, method, baseline, finished, {n: _number(n, finished) for n in names}, errors)


def _number(name: str, cells: Sequence[Cell]) -> Number:
    """One metric over the seeds."""
    measured = [cell.measured[name] for cell in cells]
    if len(measured) == 1:
        return Number(measured[0].interval, nan, 1)
    values = np.array([m.interval.value for m in measured])
    # The draws of patients are the same for every seed, so the mean has replicates of its own.
    drawn = np.mean([m.replicates for m in measured], axis=0)
    expected = float(np.mean([m.expected for m in measured]))
    interval = interval_of(name, float(values.mean()), drawn, min(m.cases for m in measured), expected)
    return Number(interval, float(values.std(ddof=1)), len(cells))


def _difference(a: Row, b: Row, metric: str) -> tuple[Interval, float]:
    if metric == "auroc":
        return _delong(a, b)
    observed = a.numbers[metric].interval.value - b.numbers[metric].interval.value
    first, second = (np.mean([c.measured[metric].replicates for c in row.cells], axis=0) for row in (a, b))
    cases = min(c.measured[metric].cases for c in (*a.cells, *b.cells))
    return difference_of(observed, first - second, cases)


def _delong(a: Row, b: Row) -> tuple[Interval, float]:
    """Difference on the images that both scored; without a p-value where there are too few patients of a kind."""
    cells = [*a.cells, *b.cells]
    places = [{identity: i for i, identity in enumerate(cell.ids)} for cell in cells]
    common = [identity for identity in cells[0].ids if all(identity in place for place in places)]
    scores = [cell.scores[[place[i] for i in common]] for cell, place in zip(cells, places, strict=True)]
    at = [places[0][identity] for identity in common]
    contrast = np.array([1 / len(a.cells)] * len(a.cells) + [-1 / len(b.cells)] * len(b.cells))
    try:
        return delong_contrast(cells[0].labels[at], np.stack(scores), contrast, cells[0].patients[at])
    except ValueError:
        return Interval(nan), nan
