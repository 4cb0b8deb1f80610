"""From slices to volumes and patients: one score a volume, its p-value, and the map value from which a region counts.

All of it comes from held-out normals. A patient counts once: the p-value of a volume is that of `Calibration`, with the
volumes of a patient sharing its weight; the one of a patient, and of a candidate region, compares the highest value of
each patient, so that many volumes or regions raise no more alarms than one.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from anomalib_med.calibration.conformal import Calibration
from anomalib_med.errors import ConfigError

AUTO, DEFAULT_HOW = "auto", "run10mm"
CANDIDATE_SHARE = 0.05  # of normal slices that have a pixel above the threshold of candidates
_HOW = re.compile(r"max|mean|top(?P<count>[1-9]\d*)|run(?P<mm>\d+(?:\.\d+)?)mm")
_RUN_OF_UNKNOWN = 3  # slices, where the distance between them is not known


@dataclass(frozen=True, eq=False)
class VolumeRule:
    """How volumes are judged.

    Parameters
    ----------
    how
        See `volume_score`.
    threshold
        Map value above which pixels make candidates; a twentieth of the held-out normal slices reach it.
    background
        Map value of the middle of the valid area of normal slices; candidates are parted by how far they rise above it.
    scores
        Scores of the held-out normal volumes, or None where there were none.
    peaks
        Highest map value of each of them, in the same order, or None.
    compared
        AUROC by rule that `how` was chosen by, see :func:`.volume_choice.choose_rule`; empty where it was given.
    """

    how: str = DEFAULT_HOW
    threshold: float | None = None
    background: float | None = None
    scores: Calibration | None = None
    peaks: Calibration | None = None
    compared: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _parsed(self.how)

    def threshold_of_volumes(self, false_alarm_rate: float) -> float | None:
        """Volumes that score higher are flagged at this rate; None without held-out volumes or with too few."""
        if self.scores is None:
            return None
        threshold = self.scores.threshold(false_alarm_rate)
        return threshold if np.isfinite(threshold) else None

    def p_value(self, score: float) -> float | None:
        """Of a volume, None without held-out volumes."""
        return None if self.scores is None or not np.isfinite(score) else self.scores.p_value(score)

    def patient_p_value(self, score: float) -> float | None:
        """Of the highest volume score of a patient."""
        return None if self.scores is None or not np.isfinite(score) else highest(self.scores).p_value(score)

    def peak_p_value(self, peak: float) -> float | None:
        """Of a candidate: about the share of normal patients whose maps rise as high anywhere."""
        return None if self.peaks is None else highest(self.peaks).p_value(peak)


def highest(calibration: Calibration) -> Calibration:
    """The highest score of each patient alone."""
    patients = np.unique(calibration.patients)
    return Calibration(np.array([calibration.scores[calibration.patients == p].max() for p in patients]), patients)


def volume_score(scores: Sequence[float], slots: Sequence[int], thickness: float | None, how: str) -> float:
    """One score of a volume from those of its slices.

    Parameters
    ----------
    scores
        Of the slices that could be scored.
    slots
        Their places on the grid of slices, ascending.
    thickness
        Millimetres from slice to slice, or None.
    how
        "max"; "mean"; "top<k>": the mean of the k highest; "run<mm>mm": the highest mean over neighbouring slices that
        together are so many millimetres thick, so that what is seen in one slice only counts less, and thin slices are
        no more likely to be flagged than thick ones. Slices that are missing from a run are left out of its mean.

    Returns
    -------
    NaN without slices.

    Raises
    ------
    ConfigError
        `how` is none of these.
    """
    count, mm = _parsed(how)
    if not len(scores):
        return float("nan")
    values = np.asarray(scores, float)
    if mm is None:
        kept = len(values) if count is None else min(count, len(values))
        return float(np.sort(values)[-kept:].mean())
    run = _RUN_OF_UNKNOWN if thickness is None else max(1, round(mm / thickness))
    grid = np.full(max(slots) - min(slots) + 1, np.nan)
    grid[np.asarray(slots) - min(slots)] = values
    run = min(run, len(grid))
    there = np.isfinite(grid)
    sums = np.convolve(np.where(there, grid, 0), np.ones(run), "valid")
    counts = np.convolve(there.astype(float), np.ones(run), "valid")
    enough = counts >= min(run / 2, counts.max())
    return float((sums[enough] / counts[enough]).max())


def _parsed(how: str) -> tuple[int | None, float | None]:
    """Number of the highest slices that count (None for all), or thickness of a run."""
    match = _HOW.fullmatch(how)
    if match is None or (match["mm"] and float(match["mm"]) <= 0):
        raise ConfigError(f'volume score "{how}" is not known: choose max, mean, top<k> (top5) or run<mm>mm (run10mm)')
    if match["mm"]:
        return None, float(match["mm"])
    return (1 if how == "max" else int(match["count"]) if match["count"] else None), None
