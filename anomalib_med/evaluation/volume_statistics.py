"""Statistics of the decisions on scans: volumes and patients as the model's own volume rule judges them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from anomalib_med.evaluation.image_statistics import Cases
from anomalib_med.evaluation.intervals import Statistic
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
