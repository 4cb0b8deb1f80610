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

    Pixels above `threshold`, which a twentieth of the held-out normal slices reach, make candidates; without it none
    are looked for. Candidates are parted by how far they rise above `background`.
    """

    how: str = DEFAULT_HOW  # see volume_score
    threshold: float | None = None  # value of the map
    background: float | None = None  # median of the maps of normal slices in their valid area
    scores: Calibration | None = None  # scores of the held-out normal volumes, None where there were none
    peaks: Calibration | None = None  # highest map value of each of them, in the same order
    compared: Mapping[str, float] = field(default_factory=dict)  # AUROC by rule, where `how` was chosen by it

    def __post_init__(self) -> None:
        _rule(self.how)

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


def volume_score(scores: Sequence[float], slots: Sequence[int], thickness: float | None, how: str) -> float:
    """One score of a volume from those of its slices.

    Parameters
    ----------
    scores
        Scores of the slices that could be scored.
    slots, thickness
        Their places on the grid of slices, and millimetres from slice to slice or None.
    how
        "max"; "mean"; "top<k>": the mean of the k highest; "run<mm>mm": the highest mean over neighbouring slices that
        together are so many millimetres thick, so that thin slices are no more likely to be flagged than thick ones.
        Slices that are missing from a run are left out of its mean. Anything else raises ConfigError.

    Returns
    -------
    NaN without slices.
    """
    return float(volume_scores(np.asarray(scores, float)[None], slots, thickness, how)[0])


def volume_scores(scores: np.ndarray, slots: Sequence[int], thickness: float | None, how: str) -> np.ndarray:
    """Scores ``(k,)`` of k volumes that have the same slices, from ``(k, n)``; see :func:`volume_score`."""
    rule, n = _rule(how), len(slots)
    if not n:
        return np.full(len(scores), np.nan)
    if rule.kind != "run":
        count = min({"max": 1, "count": int(rule.number)}.get(rule.kind, n), n)
        top: np.ndarray = np.sort(scores, axis=1)[:, -count:].mean(axis=1)
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


def _rule(how: str) -> Rule:
    return parse_rule(how, ("max", "mean", "count", "run"), "volume score")
