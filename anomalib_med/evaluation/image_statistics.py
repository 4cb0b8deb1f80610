"""Statistics of cases that are ranked and decided on: images, volumes or patients."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from anomalib_med.evaluation.curves import RANKING_METRICS, Floats, Metric, curve_of, replicate_values, values_of
from anomalib_med.evaluation.intervals import BRIER, ECE, Statistic, patient_counts, ratio
from anomalib_med.evaluation.patients import aggregate, prevalence_weights
from anomalib_med.evaluation.probabilities import ECE_BINS, cross_fitted, expected_calibration_error

PTP_METRICS = {name: RANKING_METRICS[name] for name in ("ap", "f1_max (oracle)")}
"""Metrics that depend on the prevalence, and are given at nine normal patients to one abnormal as well."""


@dataclass(frozen=True, eq=False)
class Cases:
    """Images, volumes or patients, in arrays ``(n,)``.

    Parameters
    ----------
    labels, scores
        0 or 1, and finite.
    flagged
        Decisions; None without calibration.
    patients
        Patient of each case.
    at
        Place of each case, or of its first image, among all images, for which the weights are drawn.
    prefix
        What stands before the names of the metrics.
    """

    labels: np.ndarray
    scores: np.ndarray
    flagged: np.ndarray | None
    patients: np.ndarray
    at: np.ndarray
    prefix: str = ""

    @property
    def kinds(self) -> int:
        """2 where there are normal and abnormal cases."""
        return len(np.unique(self.labels))

    @property
    def rarer(self) -> int:
        """Patients of the rarer kind."""
        return min(patient_counts(self.labels, self.patients))

    def ranking(self) -> list[Statistic]:
        """Metrics of a ranking; none of cases of one kind."""
        return self._ranked(RANKING_METRICS, self.prefix, np.ones(len(self.labels))) if self.kinds == 2 else []

    def ranking_ptp(self) -> list[Statistic]:
        """Metrics of patients at nine normal ones to one abnormal; none of patients of one kind."""
        return self._ranked(PTP_METRICS, "ptp_", prevalence_weights(self.labels)) if self.kinds == 2 else []

    def decisions(self) -> list[Statistic]:
        """Numbers of the decisions that the kinds of cases at hand allow; none without calibration."""
        if self.flagged is None or not len(self.labels):
            return []
        y, f, each = self.labels.astype(float), self.flagged.astype(float), np.ones(len(self.labels))
        counts, rarer = patient_counts(self.labels, self.patients), self.rarer
        parts: dict[str, tuple[Floats, Floats, int]] = {
            "sensitivity": (y * f, y, counts[-1]),
            "false_alarm_rate": ((1 - y) * f, 1 - y, counts[0]),
            "accuracy": (1 - np.abs(y - f), each, rarer),
            "f1": (2 * y * f, y + f, rarer),
            "flagged_rate": (f, each, rarer),
        }
        names = list(parts) if self.kinds == 2 else ["sensitivity" if y.any() else "false_alarm_rate"]
        return [ratio(self.prefix + name, self.at, *parts[name]) for name in names]

    def probabilities(self) -> list[Statistic]:
        """How well cross-fitted probabilities are calibrated; none with fewer than two patients of a kind.

        Each replicate fits them anew, since other patients would have given another curve.
        """
        fitted = cross_fitted(self.labels, self.scores, self.patients, np.ones((1, len(self.labels))))
        if fitted is None:
            return []
        off = fitted[0] - self.labels
        member = np.eye(ECE_BINS)[np.minimum((fitted[0] * ECE_BINS).astype(int), ECE_BINS - 1)]
        gaps = off @ member / len(off)

        def values(rows: Floats) -> Mapping[str, Floats]:
            w = rows[:, self.at]
            again = cross_fitted(self.labels, self.scores, self.patients, w)
            assert again is not None  # as for the cases at hand
            share, off = w / w.sum(axis=1, keepdims=True), again - self.labels
            return {ECE: np.abs((share * off) @ member - gaps).sum(axis=1), BRIER: (share * off**2).sum(axis=1)}

        brier = float(np.mean(off**2))  # scikit-learn's `brier_score_loss`; Brier 1950
        return [Statistic(values, self.rarer, {ECE: expected_calibration_error(self.labels, fitted[0]), BRIER: brier})]

    def _ranked(self, metrics: Mapping[str, Metric], prefix: str, weights: Floats) -> list[Statistic]:
        def values(rows: Floats) -> Mapping[str, Floats]:
            drawn = replicate_values(metrics, curve_of(self.labels, self.scores, rows[:, self.at] * weights))
            return {prefix + name: value for name, value in drawn.items()}

        exact = values_of(metrics, curve_of(self.labels, self.scores, weights))
        return [Statistic(values, self.rarer, {prefix + name: value for name, value in exact.items()})]


def image_statistics(images: Cases, aggregation: str | None) -> list[Statistic]:
    """What can be said of images, and of patients with several of them.

    `aggregation` makes one score of the scores of a patient's images, see :func:`.patients.aggregate`; without it there
    are no numbers of patients.
    """
    statistics = [*images.ranking(), *images.decisions(), *images.probabilities()]
    patients, first = np.unique(images.patients, return_index=True)
    if aggregation is not None and len(patients) < len(images.patients):
        labels, scores = aggregate(images.labels, images.scores, images.patients, aggregation)
        whole = Cases(labels, scores, None, patients, images.at[first], "patient_")
        statistics += [*whole.ranking(), *whole.ranking_ptp()]
    return statistics
