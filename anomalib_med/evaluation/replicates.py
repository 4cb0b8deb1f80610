"""Numbers that follow from how often each image counts, so that one set of draws of patients gives every interval."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from anomalib_med.evaluation.curves import Floats
from anomalib_med.evaluation.intervals import LEVEL, Interval, draws, noise_interval, score_interval

ORACLE = "(oracle)"
"""Part of the name of a number whose threshold was chosen on the cases it is judged on."""

ECE, BRIER = "ece (cross-fitted)", "brier (cross-fitted)"


@dataclass(frozen=True)
class Statistic:
    """Some numbers of a set of images.

    Parameters
    ----------
    values
        From image weights ``(r, N)`` to values ``(r,)`` by name of the metric; of `ECE` to its noise, see
        :func:`.intervals.noise_interval`.
    cases
        Patients behind them; of the rarer kind, where normal and abnormal ones count.
    exact
        The numbers themselves, where `values` at weights of one only comes near them.
    """

    values: Callable[[Floats], Mapping[str, Floats]]
    cases: int
    exact: Mapping[str, float] | None = None


@dataclass(frozen=True, eq=False)
class Measured:
    """Numbers with their intervals.

    Parameters
    ----------
    metrics
        Value and interval by name.
    replicates
        Of each metric ``(R,)``: the same draws of patients for every method on the same samples.
    cases
        Patients behind each metric.
    expected
        What the replicates of each metric scatter about: its values at weights of one.
    """

    metrics: dict[str, Interval]
    replicates: dict[str, Floats]
    cases: dict[str, int]
    expected: dict[str, float]


def replicated(
    labels: np.ndarray, whose: np.ndarray, statistics: Sequence[Statistic], replicates: int, level: float = LEVEL
) -> Measured:
    """Every statistic of the images as they are, and of draws of patients.

    Parameters
    ----------
    labels, whose
        Label and patient of each image ``(N,)``, those that could not be scored among them: so the draws depend on
        the samples alone.
    statistics
        What to measure.
    replicates, level
        Number of draws, and coverage of the intervals.
    """
    ones = np.ones((1, len(labels)))
    values: dict[str, float] = {}
    expected: dict[str, float] = {}
    cases: dict[str, int] = {}
    for statistic in statistics:
        found = {name: float(v[0]) for name, v in statistic.values(ones).items()}
        expected |= found
        values |= found | dict(statistic.exact or {})
        cases |= dict.fromkeys(found, statistic.cases)
    drawn: dict[str, list[Floats]] = {name: [] for name in values}
    for rows in draws(labels, whose, replicates=replicates, seed=0):
        for statistic in statistics:
            for name, value in statistic.values(rows).items():
                drawn[name].append(np.asarray(value))
    joined = {name: np.concatenate(parts) for name, parts in drawn.items()}
    metrics = {
        name: interval_of(name, values[name], joined[name], cases[name], expected[name], level) for name in values
    }
    return Measured(metrics, joined, cases, expected)


def interval_of(
    name: str, value: float, replicates: Floats, cases: int, expected: float, level: float = LEVEL
) -> Interval:
    """Interval of a metric by its name, which says whether it is an oracle or needs probabilities."""
    if name == ECE:
        return noise_interval(value, replicates, cases, level)
    if name == BRIER:
        # Probabilities fitted to a draw of the cases are worse than those fitted to all: only their spread is wanted.
        replicates = replicates - (np.nanmean(replicates) - expected)
    return score_interval(value, replicates, cases, level, expected=expected, optimistic=ORACLE in name)
