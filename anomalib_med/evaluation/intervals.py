"""Intervals: bootstrap over patients, stratified by label, for one method and for the difference of two.

A replicate gives every patient a random weight, normal and abnormal ones apart, and all images of a patient the same:
it is a row of weights, and every metric of :mod:`.curves` takes many rows at once. Mean and variance of the replicates
give the interval, see `score_interval`. `benchmarks/coverage.py` measures how often it holds the truth.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import atan, isfinite, pi, sqrt, tan

import numpy as np

from anomalib_med.evaluation.curves import Floats, Metric, check, curve_of, replicate_values

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
        Ends of the confidence interval; NaN where there is none, as with a single patient.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if not isfinite(self.low):
            return f"{self.value:.3f} [no interval]"
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
        Functions of a `Curve` by name, with values in [0, 1]; "oracle" in a name marks an optimistic one, see
        `score_interval`.
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
        for name, values in replicate_values(metrics, curve_of(y, s, rows * base)).items():
            drawn[name].append(values)
    whole = curve_of(y, s, base)
    expected = replicate_values(metrics, whole)
    cases = min(patient_counts(y, patients))
    return {
        name: score_interval(
            float(metric(whole)),
            np.concatenate(drawn[name]),
            cases,
            level,
            expected=float(expected[name]),
            optimistic="oracle" in name,
        )
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
    First minus second, and the two-sided p-value of no difference, see `difference_of`.
    """
    y, a = check(labels, first)
    _, b = check(labels, second)
    parts = [
        metric(curve_of(y, a, rows)) - metric(curve_of(y, b, rows))
        for rows in draws(y, patients, replicates=replicates, seed=seed)
    ]
    differences = np.concatenate(parts)
    observed = float(metric(curve_of(y, a)) - metric(curve_of(y, b)))
    return difference_of(observed, differences, min(patient_counts(y, patients)), level)


def difference_of(observed: float, replicates: Floats, cases: int, level: float = LEVEL) -> tuple[Interval, float]:
    """Interval of a difference, and the two-sided p-value of there being none: Student's t of the bootstrap variance.

    A p-value counted among the replicates could not be small enough for a table of many comparisons.

    Parameters
    ----------
    observed
        The difference.
    replicates
        ``(r,)``, each of the same draw of patients for both methods.
    cases
        Patients of the rarer kind.
    level
        Of the interval.
    """
    kept = replicates[np.isfinite(replicates)]
    if not (isfinite(observed) and kept.size and cases > 1):
        return Interval(observed, float("nan"), float("nan")), float("nan")
    deviation = sqrt(_variance(kept, cases))
    half = t_quantile((1 + level) / 2, cases - 1) * deviation
    if deviation < 1e-12:
        return Interval(observed, observed, observed), 1.0 if abs(observed) < 1e-12 else 0.0
    return Interval(observed, observed - half, observed + half), t_tail(observed / deviation, cases - 1)


def draws(
    labels: np.ndarray, patients: Sequence[str] | np.ndarray | None, *, replicates: int, seed: int
) -> Iterator[Floats]:
    """Rows of weights ``(r, n)``, `replicates` in all: how much the patient of each image counts.

    Rubin, "The Bayesian bootstrap", 1981: exponential weights of mean 1, those of the patients with an abnormal image
    and of the others scaled to as many as there are. Drawing patients with replacement has the same mean and nearly
    the same variance, but leaves out more than a third of them each time: with few patients the highest normal, or the
    only lesion of a size, is then missing from many replicates. The same seed gives the same rows.
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
            drawn = rng.standard_exponential((rows, len(stratum)))
            times[:, stratum] = drawn / drawn.mean(axis=1, keepdims=True)
        yield times[:, whose]


def patient_counts(labels: np.ndarray, patients: Sequence[str] | np.ndarray | None = None) -> list[int]:
    """Patients without and with an abnormal image, those of the two kinds that there are."""
    y = np.asarray(labels, bool)
    whose = np.arange(len(y)) if patients is None else np.asarray(patients)
    abnormal = len(np.unique(whose[y]))
    return [count for count in (len(np.unique(whose)) - abnormal, abnormal) if count]


def score_interval(
    value: float,
    replicates: Floats,
    cases: int,
    level: float = LEVEL,
    *,
    expected: float | None = None,
    optimistic: bool = False,
) -> Interval:
    """Interval of a metric in [0, 1] from the mean and the variance of its replicates.

    Wilson's interval (1927) of a share of as many cases as would have that variance, with Student's t instead of the
    normal quantile and the variance of few patients enlarged by (n + 1) / (n - 1). It stays in [0, 1], has width at 0
    and 1, and holds the truth with few patients too, where the percentiles of the replicates are too narrow.

    Parameters
    ----------
    value
        From the cases at hand; the interval is stretched to hold it.
    replicates
        ``(r,)``; those that are NaN are left out.
    cases
        Patients behind the number: of the rarer kind, where both count. There is no interval with fewer than two.
    level
        Coverage.
    expected
        The number at weights of one, computed as the replicates are; `value` by default. A smoothed replicate scatters
        about another number than the one reported.
    optimistic
        The number is the best over thresholds that were chosen on the same cases, so it is above what it estimates,
        and a replicate above it by about as much again: the bootstrap estimate of bias, Efron and Tibshirani, An
        Introduction to the Bootstrap, 1993, chapter 10. The interval is moved down by that excess, and widened by it,
        since the excess is itself an estimate.
    """
    kept = replicates[np.isfinite(replicates)]
    if not (isfinite(value) and kept.size and cases > 1):
        return Interval(value, float("nan"), float("nan"))
    mean = float(kept.mean())
    excess = mean - (value if expected is None else expected) if optimistic else 0.0
    centre = min(1.0, max(0.0, mean - 2 * excess))
    variance = _variance(kept, cases, excess)
    spread = centre * (1 - centre) or mean * (1 - mean)
    effective = max(1.0, spread / variance) if variance > 1e-15 and spread > 0 else float(cases)
    low, high = wilson(centre, effective, t_quantile((1 + level) / 2, cases - 1))
    return Interval(value, min(low, value), max(high, value))


def noise_interval(value: float, noise: Floats, cases: int, level: float = LEVEL) -> Interval:
    """Interval of a sum of absolute gaps, such as the calibration error, whose bias is larger than its spread.

    By the triangle inequality such a sum is off its truth by no more than the sum of absolute errors of the gaps. So
    the interval reaches as far on either side as that noise does in all but 1 - `level` of the replicates: it holds the
    truth about that often where all true gaps are 0, and more often where they are not.

    Parameters
    ----------
    value
        The sum, from 0 to 1.
    noise
        Sum of the absolute differences of the gaps of each replicate from those of the cases at hand ``(r,)``.
    cases, level
        As for `score_interval`.
    """
    kept = noise[np.isfinite(noise)]
    if not (isfinite(value) and kept.size and cases > 1):
        return Interval(value, float("nan"), float("nan"))
    reach = float(np.quantile(kept, level)) * sqrt((cases + 1) / (cases - 1))
    return Interval(value, max(0.0, value - reach), min(1.0, value + reach))


def _variance(replicates: Floats, cases: int, bias: float = 0.0) -> float:
    """What the variance of the replicates is of, without the bias of few cases.

    Under the weights of `draws` a mean of n values varies by (n - 1) / (n + 1) of its unbiased estimate.
    """
    return (float(replicates.var()) + bias**2) * (cases + 1) / (cases - 1)


def t_quantile(share: float, freedom: int) -> float:
    """Quantile of Student's t, for a share above 1/2."""
    angles, tails = _student(freedom)
    return sqrt(freedom) * tan(np.interp(2 * (1 - share), tails[::-1], angles[::-1]))


def t_tail(t: float, freedom: int) -> float:
    """Share of Student's t beyond ``-|t|`` and ``|t|``."""
    angles, tails = _student(freedom)
    return float(np.interp(atan(abs(t) / sqrt(freedom)), angles, tails))


@cache
def _student(freedom: int) -> tuple[Floats, Floats]:
    """Angles and the share of Student's t beyond ``sqrt(freedom) tan(angle)`` on both sides.

    As a function of the angle the density is proportional to the cosine to the power of freedom - 1.
    """
    angles = np.linspace(0, pi / 2, 20_001)
    density = np.cos(angles) ** (freedom - 1)
    beyond = np.append(np.cumsum((density[:-1] + density[1:])[::-1])[::-1], 0.0)
    return angles, beyond / beyond[0]


def wilson(share: float, cases: float, z: float) -> tuple[float, float]:
    """Ends of Wilson's interval (1927) of a share, `z` standard deviations wide on either side."""
    middle = (share + z * z / (2 * cases)) / (1 + z * z / cases)
    half = z / (1 + z * z / cases) * sqrt(share * (1 - share) / cases + z * z / (4 * cases**2))
    # Rounding must not leave the share outside its own interval.
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))
