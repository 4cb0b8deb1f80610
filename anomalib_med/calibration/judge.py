"""The one judge: from the results of slices to volumes, their candidates, and patients."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from anomalib_med.calibration.candidates import CandidateFinder
from anomalib_med.calibration.conformal import is_flagged
from anomalib_med.calibration.rule import VolumeRule, volume_score
from anomalib_med.records import PatientResult, Result, Volume, VolumeResult


@dataclass(eq=False)
class _Begun:
    """What is known so far of a volume."""

    finder: CandidateFinder | None
    scores: list[float] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    areas: Counter[str] = field(default_factory=Counter)
    failed: int = 0


class VolumeJudge:
    """Takes the results of slices one after the other and judges each volume when its last slice is there.

    Parameters
    ----------
    rule
        How volumes are judged; without a threshold no candidates are looked for.
    false_alarm_rate
        Share of normal volumes, and of normal patients, that may be flagged.
    volumes
        The volumes among the images. Where their slices come volume by volume, memory holds one at a time.
    judged
        Results of other volumes of the same run, which count for their patients.
    """

    def __init__(
        self,
        rule: VolumeRule,
        false_alarm_rate: float,
        volumes: Sequence[Volume],
        judged: Sequence[VolumeResult] = (),
    ) -> None:
        self._rule, self._rate = rule, false_alarm_rate
        self._slots = {s.id: (v, slot) for v in volumes for s, slot in zip(v.samples, v.slots, strict=True)}
        self._begun: dict[str, _Begun] = {}
        self._scores: dict[str, float] = {}  # the highest of each patient
        self._counts: Counter[str] = Counter()
        for volume in judged:
            self._count(volume)

    def wants_map(self, result: Result) -> bool:
        """Whether the map of a result is looked at."""
        return result.ok and self._rule.threshold is not None and result.id in self._slots

    def add(self, result: Result, map: np.ndarray | None = None) -> VolumeResult | None:
        """Take the next result; returns the volume that it completes.

        Parameters
        ----------
        result
            An image's result; one that is no slice of a volume changes nothing.
        map
            Its anomaly map ``(H, W)`` where it was made already.
        """
        if result.id not in self._slots:
            return None
        volume, slot = self._slots[result.id]
        if volume.id not in self._begun:
            finder = None if self._rule.threshold is None else CandidateFinder(volume, self._rule)
            self._begun[volume.id] = _Begun(finder)
        begun = self._begun[volume.id]
        if not result.ok:
            begun.failed += 1
        else:
            if begun.finder is not None:
                begun.finder.add(result.id, result.anomaly_map() if map is None else map)
            begun.scores.append(result.score)
            begun.slots.append(slot)
            begun.areas[result.area.partition(":")[0]] += 1
        if len(begun.scores) + begun.failed < len(volume.samples):
            return None
        judged = self._judged(volume, self._begun.pop(volume.id))
        self._count(judged)
        return judged

    def patients(self) -> list[PatientResult]:
        """The decision on each patient whose volumes were judged so far, in the order of their first volumes."""
        found = []
        for patient, score in self._scores.items():
            p = self._rule.patient_p_value(score)
            found.append(PatientResult(patient, self._counts[patient], score, p, self._flagged(p)))
        return found

    def _count(self, volume: VolumeResult) -> None:
        highest = self._scores.get(volume.patient, np.nan)
        self._scores[volume.patient] = float(np.fmax(highest, volume.score))
        self._counts[volume.patient] += 1

    def _judged(self, volume: Volume, begun: _Begun) -> VolumeResult:
        score = volume_score(begun.scores, begun.slots, volume.thickness, self._rule.how)
        p = self._rule.p_value(score)
        failed = f"{begun.failed} {'slice' if begun.failed == 1 else 'slices'} could not be scored"
        return VolumeResult(
            volume.id,
            volume.patient,
            volume.study,
            len(volume.samples),
            len(begun.scores),
            score,
            p,
            self._flagged(p),
            () if begun.finder is None else begun.finder.found(),
            area=", ".join(f"{name} {count}" for name, count in begun.areas.most_common() if name),
            note="; ".join([volume.note] * bool(volume.note) + [failed] * bool(begun.failed)),
        )

    def _flagged(self, p_value: float | None) -> bool | None:
        return None if p_value is None else is_flagged(p_value, self._rate)
