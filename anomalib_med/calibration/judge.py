"""The one judge: from the results of slices to volumes, their candidates, and patients."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from anomalib_med.calibration.candidates import CandidateFinder
from anomalib_med.calibration.conformal import is_flagged
from anomalib_med.calibration.rule import VolumeRule, volume_score
from anomalib_med.records import Candidate, PatientResult, Result, Volume, VolumeResult


class VolumeJudge:
    """Takes the results of slices one after the other and judges each volume when its last slice is there.

    `volumes` are those among the images: where their slices come volume by volume, memory holds one at a time. `judged`
    are results of other volumes of the same run, which count for their patients. At `false_alarm_rate` that share of
    normal volumes, and of normal patients, may be flagged.
    """

    def __init__(
        self, rule: VolumeRule, false_alarm_rate: float, volumes: Sequence[Volume], judged: Sequence[VolumeResult] = ()
    ) -> None:
        self._rule, self._rate = rule, false_alarm_rate
        self._slots = {s.id: (v, slot) for v in volumes for s, slot in zip(v.samples, v.slots, strict=True)}
        self._begun: dict[str, tuple[CandidateFinder | None, list[Result]]] = {}
        self._scores: dict[str, list[float]] = defaultdict(list)  # of the volumes of each patient
        for volume in judged:
            self._scores[volume.patient].append(volume.score)

    def wants_map(self, result: Result) -> bool:
        """Whether the map of a result is looked at."""
        return result.ok and self._rule.threshold is not None and result.id in self._slots

    def add(self, result: Result, map: np.ndarray | None = None) -> VolumeResult | None:
        """Take the next result, with its anomaly map ``(H, W)`` where it was made already.

        Returns the volume that it completes; an image that is no slice of a volume changes nothing.
        """
        if result.id not in self._slots:
            return None
        volume = self._slots[result.id][0]
        if volume.id not in self._begun:
            self._begun[volume.id] = (None if self._rule.threshold is None else CandidateFinder(volume, self._rule), [])
        finder, results = self._begun[volume.id]
        results.append(replace(result, grid=None))
        if finder is not None and result.ok:
            finder.add(result.id, result.anomaly_map() if map is None else map)
        if len(results) < len(volume.samples):
            return None
        del self._begun[volume.id]
        judged = self._judged(volume, results, () if finder is None else finder.found())
        self._scores[volume.patient].append(judged.score)
        return judged

    def patients(self) -> list[PatientResult]:
        """The decision on each patient whose volumes were judged so far, in the order of their first volumes."""
        patients = []
        for patient, scores in self._scores.items():
            highest = float(np.fmax.reduce(scores))
            p = self._rule.patient_p_value(highest)
            patients.append(PatientResult(patient, len(scores), highest, p, is_flagged(p, self._rate)))
        return patients

    def _judged(self, volume: Volume, results: Sequence[Result], candidates: tuple[Candidate, ...]) -> VolumeResult:
        scored = [result for result in results if result.ok]
        slots = [self._slots[result.id][1] for result in scored]
        score = volume_score([result.score for result in scored], slots, volume.thickness, self._rule.how)
        p, failed = self._rule.p_value(score), len(results) - len(scored)
        areas = Counter(result.area.partition(":")[0] for result in scored)
        note = f"{failed} {'slice' if failed == 1 else 'slices'} could not be scored" if failed else ""
        return VolumeResult(
            *(volume.id, volume.patient, volume.study, len(volume.samples), len(scored)),
            *(score, p, is_flagged(p, self._rate), candidates),
            area=", ".join(f"{name} {count}" for name, count in areas.most_common() if name),
            note="; ".join(filter(None, [volume.note, note])),
        )
