"""From cells to the rows of a table: means over seeds with their intervals, and which methods differ."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from anomalib_med.bench.baselines import SCORES_FROM
from anomalib_med.bench.cells import Cell
from anomalib_med.bench.comparisons import Spread, holm, over_seeds
from anomalib_med.evaluation.delong import delong_contrast
from anomalib_med.evaluation.intervals import LEVEL, Interval, difference_of, interval_of

ALPHA = 0.05
COMPARED = ("auroc", "ap", "pixel_auroc", "pixel_ap", "aupro@0.3")
"""Metrics in which methods are tested against each other."""


@dataclass(frozen=True, eq=False)
class Number:
    """One number of a table.

    Parameters
    ----------
    interval
        Mean over seeds, and where it may lie with other patients (the seeds as they are).
    spread
        What it varies by over seeds.
    """

    interval: Interval
    spread: Spread


@dataclass(frozen=True, eq=False)
class Row:
    """One data set and method.

    Parameters
    ----------
    dataset, method
        Which.
    baseline
        Whether it is a trivial one.
    cells
        Its finished cells, by seed.
    numbers
        By name of the metric.
    error
        Why there is none, or what failed of some seeds; "" where nothing failed.
    """

    dataset: str
    method: str
    baseline: bool
    cells: tuple[Cell, ...]
    numbers: dict[str, Number]
    error: str

    def mean_of(self, key: str) -> float:
        """Mean over seeds of a measured quantity such as ``fit_s``; NaN where it was not measured."""
        values = [c.info[key] for c in self.cells]
        known = [float(v) for v in values if isinstance(v, int | float)]
        return float(np.mean(known)) if known else float("nan")


@dataclass(frozen=True)
class Comparison:
    """Difference of two methods in one metric on one data set.

    Parameters
    ----------
    dataset, metric, first, second
        Which.
    difference
        First minus second, means over seeds, with its interval.
    p_value, adjusted
        Two-sided, by patient: DeLong for the image AUROC, the paired bootstrap for the others; and after Holm over all
        comparisons of the bench in that metric.
    """

    dataset: str
    metric: str
    first: str
    second: str
    difference: Interval
    p_value: float
    adjusted: float


def rows_of(cells: Sequence[Cell], level: float = LEVEL) -> list[Row]:
    """One row for each data set and method, in the order of the cells."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.dataset, cell.method), []).append(cell)
    return [_row(dataset, method, group, level) for (dataset, method), group in groups.items()]


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


def best_of(rows: Sequence[Row], comparisons: Sequence[Comparison], dataset: str, metric: str = "auroc") -> set[str]:
    """The method with the highest value on a data set, and those that are not significantly worse."""
    judged = [r for r in rows if r.dataset == dataset and not r.baseline and metric in r.numbers]
    known = {r.method: r.numbers[metric].interval.value for r in judged}
    if not known:
        return set()
    best = max(known, key=lambda method: known[method])
    worse = {
        method
        for c in comparisons
        if (c.dataset, c.metric) == (dataset, metric) and best in (c.first, c.second) and c.adjusted <= ALPHA
        for method in (c.first, c.second)
        if method != best
    }
    return set(known) - worse


def given_away(rows: Sequence[Row], dataset: str) -> Row | None:
    """The trivial baseline that scores on a data set, the best where several do; None where none does."""
    trivial = [r for r in rows if r.dataset == dataset and r.baseline and "auroc" in r.numbers]
    scoring = [r for r in trivial if r.numbers["auroc"].interval.low > SCORES_FROM]
    return max(scoring, key=lambda r: r.numbers["auroc"].interval.value) if scoring else None


def _row(dataset: str, method: str, group: Sequence[Cell], level: float) -> Row:
    finished = tuple(c for c in group if not c.error)
    errors = "; ".join(dict.fromkeys(f"seed {c.seed}: {c.error}" for c in group if c.error))
    names = [n for n in finished[0].metrics if all(n in c.metrics for c in finished)] if finished else []
    numbers = {}
    for name in names:
        spread = over_seeds([c.metrics[name].value for c in finished])
        interval = finished[0].metrics[name]
        if len(finished) > 1:
            # The draws of patients are the same for every seed, so the mean has replicates of its own.
            drawn = np.mean([c.measured.replicates[name] for c in finished], axis=0)
            cases = min(c.measured.cases[name] for c in finished)
            expected = float(np.mean([c.measured.expected[name] for c in finished]))
            interval = interval_of(name, spread.mean, drawn, cases, expected, level)
        numbers[name] = Number(interval, spread)
    baseline = any(bool(c.info.get("baseline")) for c in group)
    return Row(dataset, method, baseline, finished, numbers, errors)


def _difference(a: Row, b: Row, metric: str) -> tuple[Interval, float]:
    if metric == "auroc":
        return _delong(a, b)
    observed = a.numbers[metric].interval.value - b.numbers[metric].interval.value
    first, second = (np.mean([c.measured.replicates[metric] for c in row.cells], axis=0) for row in (a, b))
    cases = min(c.measured.cases[metric] for c in (*a.cells, *b.cells))
    return difference_of(observed, first - second, cases)


def _delong(a: Row, b: Row) -> tuple[Interval, float]:
    """On the images that both scored; without a p-value where there are too few patients of a kind."""
    everything = [*a.cells, *b.cells]
    common = set.intersection(*(set(c.ids) for c in everything))
    scores = []
    for cell in everything:
        place = {identity: i for i, identity in enumerate(cell.ids)}
        chosen = [place[identity] for identity in everything[0].ids if identity in common]
        scores.append(cell.scores[chosen])
    first = everything[0]
    at = [i for i, identity in enumerate(first.ids) if identity in common]
    contrast = np.array([1 / len(a.cells)] * len(a.cells) + [-1 / len(b.cells)] * len(b.cells))
    try:
        return delong_contrast(first.labels[at], np.stack(scores), contrast, first.patients[at])
    except ValueError:
        return Interval(float("nan"), float("nan"), float("nan")), float("nan")
