"""Intervals: bootstrap over patients, stratified by label, for one method and for the difference of two.

A replicate draws patients with replacement, normal and abnormal ones apart, and takes all images of a patient drawn: it
is a row of weights, and every metric of :mod:`.curves` takes many rows at once. Percentile intervals (Efron and
Tibshirani, "An introduction to the bootstrap", 1993). `benchmarks/coverage.py` measures how often they hold the truth.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import numpy as np

from anomalib_med.evaluation.curves import Floats, Metric, check, curve_of

REPLICATES = 2000
LEVEL = 0.95
_CHUNK = 4_000_000  # weights held at a time


@dataclass(frozen=True)
class Interval:
    """A number and where it may lie.

    Parameters
    ----------
    value
        From the cases at hand.
    low, high
        Ends of the confidence interval; NaN where there is none.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(
    labels: np.ndarray,
    scores: np.ndarray,
    metrics: Mapping[str, Metric],
    *,
    patients: Sequence[str] | np.ndarray | None = None,
    weights: np.ndarray | None = None,
    replicates: int = REPLICATES,
    level: float = LEVEL,
    seed: int = 0,
) -> dict[str, Interval]:
    """Metrics of a ranking with their intervals.

    Parameters
    ----------
    labels
        0 or 1, ``(n,)``.
    scores
        ``(n,)``, finite.
    metrics
        Functions of a `Curve` by name.
    patients
        Whose each image is, ``(n,)``; by default each is of its own.
    weights
        ``(n,)`` of each image, such as those of another prevalence; 1 by default.
    replicates, level, seed
        Number of replicates, coverage and seed.

    Raises
    ------
    ValueError
        As :func:`.curves.curve_of`.
    """
    y, s = check(labels, scores)
    base = np.ones(len(y)) if weights is None else np.asarray(weights, float)
    drawn: dict[str, list[Floats]] = {name: [] for name in metrics}
    for rows in draws(y, patients, replicates=replicates, seed=seed):
        curve = curve_of(y, s, rows * base)
        for name, metric in metrics.items():
            drawn[name].append(metric(curve))
    whole = curve_of(y, s, base)
    return {
        name: percentile_interval(float(metric(whole)), np.concatenate(drawn[name]), level)
        for name, metric in metrics.items()
    }


def paired_bootstrap(
    labels: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    metric: Metric,
    *,
    patients: Sequence[str] | np.ndarray | None = None,
    replicates: int = REPLICATES,
    level: float = LEVEL,
    seed: int = 0,
) -> tuple[Interval, float]:
    """Difference of a metric between two methods on the same images, each replicate drawn once for both.

    Parameters
    ----------
    labels, patients, replicates, level, seed
        As for `bootstrap`.
    first, second
        Scores ``(n,)`` of the two methods.
    metric
        A function of a `Curve`.

    Returns
    -------
    First minus second, and the two-sided p-value of no difference: twice the smaller share of replicates on one side
    of zero, the observed one counted in, so it is never below ``2 / (replicates + 1)``.
    """
    y, a = check(labels, first)
    _, b = check(labels, second)
    parts = [
        metric(curve_of(y, a, rows)) - metric(curve_of(y, b, rows))
        for rows in draws(y, patients, replicates=replicates, seed=seed)
    ]
    differences = np.concatenate(parts)
    observed = float(metric(curve_of(y, a)) - metric(curve_of(y, b)))
    sides = min(np.sum(differences <= 0), np.sum(differences >= 0))
    return percentile_interval(observed, differences, level), float(min(1.0, 2 * (1 + sides) / (1 + len(differences))))


def draws(
    labels: np.ndarray, patients: Sequence[str] | np.ndarray | None, *, replicates: int, seed: int
) -> Iterator[Floats]:
    """Rows of weights ``(r, n)``, `replicates` in all: how often the patient of each image was drawn.

    Patients with an abnormal image and those without are drawn apart, each as many as there are, so that every
    replicate has both. The same seed gives the same rows.
    """
    y = np.asarray(labels, bool)
    _, whose = np.unique(np.arange(len(y)) if patients is None else np.asarray(patients), return_inverse=True)
    count = int(whose.max()) + 1
    abnormal = np.bincount(whose, weights=y, minlength=count) > 0
    strata = [stratum for stratum in (np.flatnonzero(~abnormal), np.flatnonzero(abnormal)) if len(stratum)]
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // len(y))
    for start in range(0, replicates, step):
        rows = min(step, replicates - start)
        times = np.zeros((rows, count))
        for stratum in strata:
            times[:, stratum] = rng.multinomial(len(stratum), np.full(len(stratum), 1 / len(stratum)), size=rows)
        yield times[:, whose]


def percentile_interval(value: float, replicates: Floats, level: float = LEVEL) -> Interval:
    """The middle part of the replicates; those that are NaN are left out, and without any other there is none."""
    kept = replicates[np.isfinite(replicates)]
    if not kept.size:
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def bootstrap_statistic(
    statistic: Callable[[Floats], Floats],
    labels: np.ndarray,
    patients: Sequence[str] | np.ndarray | None = None,
    *,
    replicates: int = REPLICATES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Interval of any statistic of image weights ``(r, n)`` to ``(r,)``, such as a FROC score; its value is that of
    weights of 1.
    """
    values = [statistic(rows) for rows in draws(labels, patients, replicates=replicates, seed=seed)]
    return percentile_interval(float(statistic(np.ones((1, len(labels))))[0]), np.concatenate(values), level)


def bootstrap_mean(
    values: np.ndarray,
    patients: Sequence[str] | np.ndarray | None = None,
    *,
    replicates: int = REPLICATES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Interval of the mean of values, one an image, such as Dice per image; resampled by patient."""
    v = np.asarray(values, float)
    return bootstrap_statistic(
        lambda rows: np.asarray((rows @ v) / rows.sum(axis=1)),
        np.zeros(len(v)),
        patients,
        replicates=replicates,
        level=level,
        seed=seed,
    )


def wilson(successes: int, cases: int, level: float = LEVEL) -> Interval:
    """Wilson's interval of a share (Wilson 1927); sound at 0 and 1, where a bootstrap has no width."""
    if not cases:
        return Interval(float("nan"), float("nan"), float("nan"))
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / cases
    middle = (share + z * z / (2 * cases)) / (1 + z * z / cases)
    half = z / (1 + z * z / cases) * sqrt(share * (1 - share) / cases + z * z / (4 * cases**2))
    # Rounding must not leave the share outside its own interval.
    return Interval(share, max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half)))
