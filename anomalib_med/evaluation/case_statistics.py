"""Statistics of cases that are ranked and decided on: images, volumes or patients."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from anomalib_med.evaluation.curves import RANKING_METRICS, Floats, Metric, curve_of, replicate_values, values_of
from anomalib_med.evaluation.intervals import BRIER, ECE, Statistic, patient_counts, ratio
from anomalib_med.evaluation.patients import aggregate, prevalence_weights
from anomalib_med.evaluation.probabilities import ECE_BINS, cross_fitted, expected_calibration_error
from anomalib_med.records import PatientResult, Sample, Volume, VolumeResult

PTP_METRICS = {name: RANKING_METRICS[name] for name in ("ap", "f1_max (oracle)")}
"""Metrics that depend on the prevalence, and are given at nine normal patients to one abnormal as well."""


@dataclass(frozen=True, eq=False)
class Cases:
    """Images, volumes or patients, in arrays ``(n,)``, with labels of 0 or 1 and finite scores."""

    labels: np.ndarray
    scores: np.ndarray
    flagged: np.ndarray | None
    """Decisions; None without calibration."""
    patients: np.ndarray
    at: np.ndarray
    """Place of each case, or of its first image, among all images, for which the weights are drawn."""
    prefix: str = ""
    """What stands before the names of the metrics."""

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


def volume_statistics(
    samples: Sequence[Sample],
    volumes: Sequence[Volume],
    judged: Sequence[VolumeResult],
    patients: Sequence[PatientResult],
) -> list[Statistic]:
    """Metrics of volumes and of patients; those of a ranking where both kinds are there.

    Parameters
    ----------
    samples
        All labelled images. A volume is abnormal if one of its slices is, a patient if one of the volumes is.
    volumes, judged, patients
        The volumes among the samples, and what became of them and of their patients.
    """
    of_patient: dict[str, list[Volume]] = defaultdict(list)
    for volume in volumes:
        of_patient[volume.patient].append(volume)
    place = {sample.id: i for i, sample in enumerate(samples)}
    each = _cases(judged, {v.id: [v] for v in volumes}, [r.id for r in judged], place, "volume_")
    whole = _cases(patients, of_patient, [r.patient for r in patients], place, "patient_")
    return [*each.ranking(), *each.decisions(), *whole.ranking(), *whole.ranking_ptp(), *whole.decisions()]


def _cases(
    results: Sequence[VolumeResult | PatientResult],
    volumes: Mapping[str, Sequence[Volume]],
    keys: Sequence[str],
    place: Mapping[str, int],
    prefix: str,
) -> Cases:
    """The results with a score; `keys` name the volumes behind each."""
    known = [(result, volumes[key]) for result, key in zip(results, keys, strict=True) if np.isfinite(result.score)]
    flags = [result.flagged for result, _ in known]
    return Cases(
        np.array([any(s.label == 1 for v in own for s in v.samples) for _, own in known], int),
        np.array([result.score for result, _ in known]),
        None if None in flags else np.array(flags, bool),
        np.array([result.patient for result, _ in known]),
        np.array([place[own[0].samples[0].id] for _, own in known], int),
        prefix,
    )
