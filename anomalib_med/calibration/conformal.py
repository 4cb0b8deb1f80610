"""Scores -> p-values and decisions, from held-out normals.

Split-conformal p-values (Vovk et al.; Bates et al., "Testing for outliers with conformal p-values", Annals of
Statistics 2023). Patients are the exchangeable units: each held-out patient has weight one, shared by its images
(Lee, Barber and Willett, "Distribution-free inference with hierarchical data", 2023), so that a patient with many
images counts no more than one with a single image. For the image of a new normal patient, drawn at random among that
patient's, P(p <= alpha) <= alpha.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, inf

import numpy as np

ROUNDING = 1e-9  # shares of a patient's weight do not add up to one exactly


@dataclass(frozen=True, eq=False)
class Calibration:
    """Scores of the held-out normals."""

    scores: np.ndarray  # float64 (n,), one an image
    patients: np.ndarray  # whose each is, as numbers of which only equality matters

    @cached_property
    def _ascending(self) -> np.ndarray:
        return np.sort(self.scores, kind="stable")

    @cached_property
    def _tail(self) -> np.ndarray:
        """Weight of the ascending scores from each one upwards, summed from the top; nothing lies above the last."""
        _, whose, counts = np.unique(self.patients, return_inverse=True, return_counts=True)
        weights = (1 / counts[whose])[np.argsort(self.scores, kind="stable")]
        return np.append(np.cumsum(weights[::-1])[::-1], 0.0)

    @classmethod
    def of(cls, scores: Sequence[float], patients: Sequence[str]) -> "Calibration":
        """A calibration from scores and patient names; the names are not kept."""
        return cls(np.asarray(scores, float), np.unique(patients, return_inverse=True)[1].astype(np.int64))

    @cached_property
    def highest(self) -> "Calibration":
        """The highest score of each patient alone."""
        patients, whose = np.unique(self.patients, return_inverse=True)
        scores = np.full(len(patients), -inf)
        np.maximum.at(scores, whose, self.scores)
        return Calibration(scores, patients)

    @property
    def patient_count(self) -> int:
        """How many patients were held out."""
        return len(np.unique(self.patients))

    @property
    def smallest_p(self) -> float:
        """The smallest p-value these normals can give."""
        return 1 / (self.patient_count + 1)

    def p_value(self, score: float) -> float:
        """Share of normal patients that score at least as high, the new one counted in: in (0, 1]."""
        above = self._tail[np.searchsorted(self._ascending, score, side="left")]
        return float((1 + above) / (self.patient_count + 1))

    def threshold(self, false_alarm_rate: float) -> float:
        """The score above which an image is flagged; infinite with too few patients, see :func:`patients_needed`."""
        p = (1 + self._tail) / (self.patient_count + 1)
        low_enough = np.flatnonzero(p <= false_alarm_rate + ROUNDING)
        if low_enough.size == 0:
            return inf
        # The tail from a flagged score upwards starts at the first low one or later: it exceeds the score before.
        first = int(low_enough[0])
        return float(self._ascending[first - 1]) if first else -inf


def is_flagged(p_value: float | None, false_alarm_rate: float) -> bool | None:
    """Whether a p-value is low enough to flag at this rate; None without one."""
    return None if p_value is None else p_value <= false_alarm_rate + ROUNDING


def patients_needed(false_alarm_rate: float) -> int:
    """How many held-out patients a false-alarm rate needs: 19 for 5 %."""
    return ceil(round(1 / false_alarm_rate, 9)) - 1
