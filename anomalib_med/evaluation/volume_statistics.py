"""Statistics of the decisions on scans: volumes and patients as the model's own volume rule judges them."""

from collections.abc import Mapping, Sequence

import numpy as np

from anomalib_med.evaluation.curves import Floats
from anomalib_med.evaluation.image_statistics import decided, of_patients, ranked
from anomalib_med.evaluation.intervals import Statistic, patient_counts
from anomalib_med.records import PatientResult, Sample, Volume, VolumeResult


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
    place = {sample.id: i for i, sample in enumerate(samples)}
    label = {v.id: any(sample.label == 1 for sample in v.samples) for v in volumes}
    first = {v.id: place[v.samples[0].id] for v in volumes}
    known = [result for result in judged if np.isfinite(result.score)]
    y = np.array([label[result.id] for result in known], int)
    at = np.array([first[result.id] for result in known], int)
    counts = patient_counts(y, [result.patient for result in known])
    scores = np.array([result.score for result in known])
    statistics = [ranked(y, scores, at, min(counts))] if len(counts) == 2 else []
    statistics += _decided(y, [result.flagged for result in known], at, counts)
    return [_named("volume_", statistic) for statistic in statistics] + _of_patients(volumes, patients, label, first)


def _of_patients(
    volumes: Sequence[Volume], patients: Sequence[PatientResult], label: Mapping[str, bool], first: Mapping[str, int]
) -> list[Statistic]:
    known = [result for result in patients if np.isfinite(result.score)]
    own = {result.patient: [v.id for v in volumes if v.patient == result.patient] for result in known}
    y = np.array([any(label[id] for id in ids) for ids in own.values()], int)
    at = np.array([first[ids[0]] for ids in own.values()], int)
    counts = patient_counts(y)
    scores = np.array([result.score for result in known])
    statistics = [of_patients(y, scores, at, min(counts))] if len(counts) == 2 else []
    decisions = _decided(y, [result.flagged for result in known], at, counts)
    return statistics + [_named("patient_", statistic) for statistic in decisions]


def _decided(labels: np.ndarray, flags: Sequence[bool | None], at: np.ndarray, counts: list[int]) -> list[Statistic]:
    """Numbers of the decisions that the kinds of cases at hand allow; none without calibration."""
    if None in flags or not flags:
        return []
    sensitivity, false_alarms, overall = decided(labels.astype(float), np.array(flags, float), at, counts)
    return (
        [sensitivity] * bool(labels.any()) + [false_alarms] * bool((labels == 0).any()) + [overall] * (len(counts) == 2)
    )


def _named(prefix: str, statistic: Statistic) -> Statistic:
    """The same numbers under longer names."""

    def values(rows: Floats) -> Mapping[str, Floats]:
        return {prefix + name: value for name, value in statistic.values(rows).items()}

    exact = statistic.exact and {prefix + name: value for name, value in statistic.exact.items()}
    return Statistic(values, statistic.cases, exact)
