"""From the scores of slices to that of a volume, and what is normal of volumes and of their maps.

All of it comes from held-out normals. A patient counts once: the p-value of a volume is that of `Calibration`, with the
volumes of a patient sharing its weight; the one of a patient, and of a candidate region, compares the highest value of
each patient, so that many volumes or regions raise no more alarms than one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from anomalib_med.calibration.conformal import Calibration
from anomalib_med.pooling_rules import Rule, parse_rule

AUTO, DEFAULT_HOW = "auto", "run10mm"
_RUN_OF_UNKNOWN = 3  # slices, where the distance between them is not known


@dataclass(frozen=True, eq=False)
class VolumeRule:
    """How volumes are judged.

    Parameters
    ----------
    how
        See :func:`volume_score`.
    threshold
        Map value above which pixels make candidates; a twentieth of the held-out normal slices reach it. None where no
        candidates are looked for.
    background
        Map value of the middle of the valid area of normal slices; candidates are parted by how far they rise above it.
    scores
        Scores of the held-out normal volumes, or None where there were none.
    peaks
        Highest map value of each of them, in the same order, or None.
    compared
        AUROC by rule that `how` was chosen by, see :func:`.rule_choice.choose_rule`; empty where it was given.
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
        threshold = np.inf if self.scores is None else self.scores.threshold(false_alarm_rate)
        return threshold if np.isfinite(threshold) else None

    def p_value(self, score: float) -> float | None:
        """The p-value of a volume; None without a score or held-out volumes."""
        return None if self.scores is None or not np.isfinite(score) else self.scores.p_value(score)

    def patient_p_value(self, score: float) -> float | None:
        """The p-value of the highest volume score of a patient; None without a score or held-out volumes."""
        return None if self.scores is None or not np.isfinite(score) else self.scores.highest.p_value(score)

    def peak_p_value(self, peak: float) -> float | None:
        """The p-value of a candidate: about the share of normal patients whose maps rise as high anywhere."""
        return None if self.peaks is None else self.peaks.highest.p_value(peak)


def volume_score(
    scores: Sequence[float] | np.ndarray, slots: Sequence[int], thickness: float | None, how: str
) -> float:
    """One score of a volume from those of its slices.

    Parameters
    ----------
    scores
        Scores of the slices that could be scored.
    slots
        Their places on the grid of slices.
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
    return float(volume_scores(np.asarray(scores, float)[None], slots, thickness, how)[0])


def volume_scores(scores: np.ndarray, slots: Sequence[int], thickness: float | None, how: str) -> np.ndarray:
    """Scores ``(k,)`` of k volumes that have the same slices, from ``(k, n)``; see :func:`volume_score`."""
    rule = _parsed(how)
    if not len(slots):
        return np.full(len(scores), np.nan)
    if rule.kind != "run":
        count = {"max": 1, "mean": len(slots)}.get(rule.kind, int(rule.number))
        top: np.ndarray = np.sort(scores, axis=1)[:, -min(count, len(slots)) :].mean(axis=1)
        return top
    places = np.asarray(slots) - min(slots)
    grid = np.full((len(scores), int(places.max()) + 1), np.nan)
    grid[:, places] = scores
    run = _RUN_OF_UNKNOWN if thickness is None else max(1, round(rule.number / thickness))
    run = min(run, grid.shape[1])
    there = np.isfinite(grid)
    sums, counts = _runs(np.where(there, grid, 0), run), _runs(there.astype(float), run)
    enough = counts >= np.minimum(run / 2, counts.max(axis=1, keepdims=True))
    with np.errstate(invalid="ignore"):
        highest: np.ndarray = np.where(enough, sums / counts, -np.inf).max(axis=1)
    return highest


def _runs(grid: np.ndarray, run: int) -> np.ndarray:
    """Sums over `run` neighbours in each row ``(k, n)``: ``(k, n - run + 1)``."""
    flat = np.convolve(np.append(grid.ravel(), np.zeros(run - 1)), np.ones(run), "valid")
    return flat.reshape(grid.shape)[:, : grid.shape[1] - run + 1]


def _parsed(how: str) -> Rule:
    return parse_rule(how, ("max", "mean", "count", "run"), "volume score")
