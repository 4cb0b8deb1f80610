"""Intervals: bootstrap over patients, stratified by label, for one method and for the difference of two.

A replicate is a row of weights: a random one for every patient, and the same for all images of a patient. Every number
that follows from how much each image counts gets its interval from the mean and variance of the same replicates.
`benchmarks/coverage.py` measures how often the intervals hold the truth.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, nan, sqrt

import numpy as np
from scipy.special import stdtr, stdtrit

from anomalib_med.evaluation.curves import Floats

REPLICATES = 2000
LEVEL = 0.95  # coverage of all intervals
_CHUNK = 4_000_000  # weights held at a time

ORACLE = "(oracle)"
"""Part of the name of a number whose threshold was chosen on the cases it is judged on."""

ECE, BRIER = "ece (cross-fitted)", "brier (cross-fitted)"


@dataclass(frozen=True)
class Interval:
    """A number from the cases at hand, and the ends of its interval; NaN where there is none, as with one patient."""

    value: float
    low: float = nan
    high: float = nan

    def known(self) -> dict[str, float | None]:
        """Value, low and high for a file, None where one is NaN."""
        return {name: float(number) if isfinite(number) else None for name, number in vars(self).items()}

    def __str__(self) -> str:
        ends = f"{self.low:.3f}, {self.high:.3f}" if isfinite(self.low) else "no interval"
        return f"{self.value:.3f} [{ends}]"


@dataclass(frozen=True)
class Statistic:
    """Some numbers of a set of images."""

    values: Callable[[Floats], Mapping[str, Floats]]
    """Turns image weights ``(r, N)`` into values ``(r,)`` by metric; for `ECE` into the noise of `noise_interval`."""
    cases: int
    """Patients behind the numbers, of the rarer kind where both count."""
    exact: Mapping[str, float] = field(default_factory=dict)
    """The numbers themselves, where `values` at weights of one only comes near them."""


def ratio(name: str, at: np.ndarray, part: Floats, whole: Floats, cases: int) -> Statistic:
    """Weighted sum of `part` over that of `whole`, both ``(n,)``, of the images in the places `at` ``(n,)``."""

    def values(rows: Floats) -> Mapping[str, Floats]:
        with np.errstate(invalid="ignore"):
            return {name: rows[:, at] @ part / (rows[:, at] @ whole)}

    return Statistic(values, cases)


@dataclass(frozen=True, eq=False)
class Measured:
    """A number with its interval, and what that came from."""

    interval: Interval
    replicates: Floats
    """Values ``(R,)`` for the same draws of patients for every method on the same samples."""
    cases: int
    expected: float
    """What the replicates scatter about: the value at weights of one."""


def replicated(
    labels: np.ndarray, whose: np.ndarray, statistics: Sequence[Statistic], replicates: int
) -> dict[str, Measured]:
    """Every statistic of the images as they are, and of draws of patients, by name of the metric.

    `labels` and `whose` are label and patient of each image ``(N,)``, those that could not be scored among them: so the
    draws depend on the samples alone. `replicates` is the number of draws.
    """
    ones = np.ones((1, len(labels)))
    expected = [{name: float(value[0]) for name, value in s.values(ones).items()} for s in statistics]
    drawn: dict[str, list[Floats]] = defaultdict(list)
    for rows in draws(labels, whose, replicates=replicates, seed=0):
        for statistic in statistics:
            for name, value in statistic.values(rows).items():
                drawn[name].append(value)
    measured = {}
    for statistic, centres in zip(statistics, expected, strict=True):
        for name, centre in centres.items():
            values, cases = np.concatenate(drawn[name]), statistic.cases
            interval = interval_of(name, statistic.exact.get(name, centre), values, cases, centre)
            measured[name] = Measured(interval, values, cases, centre)
    return measured


def interval_of(name: str, value: float, replicates: Floats, cases: int, expected: float) -> Interval:
    """Interval of a metric by its name, which says whether it is an oracle or needs probabilities."""
    if name == ECE:
        return noise_interval(value, replicates, cases)
    if name == BRIER:
        # Probabilities fitted to a draw of the cases are worse than those fitted to all: only their spread is wanted.
        replicates = replicates - (np.nanmean(replicates) - expected)
    return score_interval(value, replicates, cases, expected=expected, optimistic=ORACLE in name)


def draws(
    labels: np.ndarray, patients: Sequence[str] | np.ndarray | None, *, replicates: int, seed: int
) -> Iterator[Floats]:
    """Rows of weights ``(r, n)``, `replicates` in all: how much the patient of each image counts.

    Rubin, "The Bayesian bootstrap", 1981: exponential weights of mean 1, scaled among the patients with an abnormal
    image and among the others. Drawing patients with replacement has the same mean and nearly the same variance, but
    leaves out a third of them each time, among them the highest normal or the only lesion of a size.
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
        The number from the cases at hand; the interval is stretched to hold it.
    replicates
        ``(r,)``; those that are NaN are left out.
    cases
        Patients behind the number, of the rarer kind where both count. There is no interval with fewer than two.
    expected
        What the replicates scatter about: the number at weights of one, computed as they are; `value` by default.
    optimistic
        The number is the best over thresholds chosen on the same cases, so it is above what it estimates, and a
        replicate above it by about as much again (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter
        10). The interval is moved down by that excess, and widened by it, since the excess is itself an estimate.
    """
    kept = _kept(value, replicates, cases)
    if kept is None:
        return Interval(value)
    mean = float(kept.mean())
    excess = mean - (value if expected is None else expected) if optimistic else 0.0
    centre = min(1.0, max(0.0, mean - 2 * excess))
    variance = _variance(kept, cases, excess)
    spread = centre * (1 - centre) or mean * (1 - mean)
    effective = max(1.0, spread / variance) if variance > 1e-15 and spread > 0 else float(cases)
    low, high = wilson(centre, effective, float(stdtrit(cases - 1, (1 + LEVEL) / 2)))
    return Interval(value, min(low, value), max(high, value))


def noise_interval(value: float, noise: Floats, cases: int) -> Interval:
    """Interval of a sum of absolute gaps in [0, 1], such as the calibration error, whose bias exceeds its spread.

    Such a sum is, by the triangle inequality, off its truth by no more than the sum of absolute errors of the gaps. So
    the interval reaches as far on either side as that `noise` ``(r,)`` does in 95 % of the replicates.
    It holds the truth about that often where all true gaps are 0, and more often where they are not.
    """
    kept = _kept(value, noise, cases)
    if kept is None:
        return Interval(value)
    reach = float(np.quantile(kept, LEVEL)) * sqrt((cases + 1) / (cases - 1))
    return Interval(value, max(0.0, value - reach), min(1.0, value + reach))


def _kept(value: float, replicates: Floats, cases: int) -> Floats | None:
    """Finite replicates; None where there can be no interval."""
    kept: Floats = replicates[np.isfinite(replicates)]
    return kept if isfinite(value) and kept.size and cases > 1 else None


def _variance(replicates: Floats, cases: int, bias: float = 0.0) -> float:
    """Variance without the bias of few cases: under the weights of `draws` a mean varies by (n - 1) / (n + 1) of it."""
    return (float(replicates.var()) + bias**2) * (cases + 1) / (cases - 1)


def difference_of(observed: float, replicates: Floats, cases: int) -> tuple[Interval, float]:
    """Interval of a difference of two methods, and the two-sided p-value of there being none.

    Both are Student's t with the variance of the `replicates` ``(r,)``, the differences in the same draws of patients:
    a p-value counted among them could not be small enough for a table of many comparisons.
    """
    kept = _kept(observed, replicates, cases)
    if kept is None:
        return Interval(observed), nan
    deviation = sqrt(_variance(kept, cases))
    half = float(stdtrit(cases - 1, (1 + LEVEL) / 2)) * deviation
    if deviation < 1e-12:
        return Interval(observed, observed, observed), 1.0 if abs(observed) < 1e-12 else 0.0
    return Interval(observed, observed - half, observed + half), float(2 * stdtr(cases - 1, -abs(observed) / deviation))


def wilson(share: float, cases: float, z: float) -> tuple[float, float]:
    """Ends of Wilson's interval (1927) of a share, `z` standard deviations wide on either side."""
    middle = (share + z * z / (2 * cases)) / (1 + z * z / cases)
    half = z / (1 + z * z / cases) * sqrt(share * (1 - share) / cases + z * z / (4 * cases**2))
    # Rounding must not leave the share outside its own interval.
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))
