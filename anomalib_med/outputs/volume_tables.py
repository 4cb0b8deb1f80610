"""What is written of whole volumes: one map, its candidates, its score, and the decision of each patient.

    OUT/volumes.csv      one row for each volume, with its score and what is wrong with it
    OUT/candidates.csv   one row for each connected region of a volume's map
    OUT/patients.csv     one row for each patient, from the highest of their volumes; made when the run completes

They are there where volumes were scored.
"""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from anomalib_med.calibration.candidates import CANDIDATES, CandidateFinder
from anomalib_med.calibration.conformal import ROUNDING
from anomalib_med.calibration.judge import VolumeRule, volume_score
from anomalib_med.errors import OutputError
from anomalib_med.files import AppendFile, write_atomic
from anomalib_med.outputs.dicom_maps import DicomMaps
from anomalib_med.outputs.maps import VolumeMaps
from anomalib_med.outputs.tables import Value, csv_record, iter_records
from anomalib_med.records import Candidate, Result, Volume

VOLUMES_CSV, CANDIDATES_CSV, PATIENTS_CSV = "volumes.csv", "candidates.csv", "patients.csv"
VOLUMES = (
    *("volume", "patient", "study", "slices", "scored", "score", "p_value", "flagged"),
    *("candidates", "area", "map", "note"),
)
Maps = VolumeMaps | DicomMaps
PATIENTS = ("patient", "volumes", "score", "p_value", "flagged")


class VolumeOutputs:
    """Takes the results of the slices of one volume after the other, and writes what concerns it when it is complete.

    Parameters
    ----------
    out
        Output folder.
    volumes
        Of the images that are scored.
    rule, false_alarm_rate
        How volumes are judged.
    folder
        For maps, below `out`.
    maps
        What takes the maps of a volume, or None for one that gets no map of its own.
    kept
        Ids of the volumes that an earlier run completed: their rows stay, others are removed.
    """

    def __init__(
        self,
        out: Path,
        volumes: Sequence[Volume],
        rule: VolumeRule,
        false_alarm_rate: float,
        folder: str,
        maps: Callable[[Volume], Maps | None],
        kept: Collection[str],
    ) -> None:
        self._out, self._rule, self._rate = out, rule, false_alarm_rate
        self._folder, self._make_maps = folder, maps
        self._of = {sample.id: volume for volume in volumes for sample in volume.samples}
        self._done = set(kept)
        self._current: Volume | None = None
        self._rows: list[Result] = []
        self._finder: CandidateFinder | None = None
        self._maps: Maps | None = None
        self._tables: dict[str, AppendFile] = {}
        if volumes:
            for name, columns in ((VOLUMES_CSV, VOLUMES), (CANDIDATES_CSV, CANDIDATES)):
                rows = _kept_rows(out / name, columns, self._done)
                self._tables[name] = AppendFile(out / name)
                self._tables[name].append(csv_record(columns) + rows)

    def of(self, id: str) -> Volume | None:
        """The volume that an image is a slice of."""
        return self._of.get(id)

    @property
    def current(self) -> Volume | None:
        """The volume that is being written."""
        return self._current

    @property
    def has_map(self) -> bool:
        """Whether the volume that is being written gets one map of its own."""
        return self._maps is not None

    @property
    def wants_maps(self) -> bool:
        """Whether the map of a slice is needed for the volume's own map or its candidates."""
        return self._maps is not None or self._finder is not None

    def begin(self, volume: Volume) -> None:
        """Go over to the next volume.

        Raises
        ------
        OutputError
            Its slices do not come one after the other.
        """
        if volume.id in self._done:
            raise OutputError(f"{volume.id}: its slices do not come one after the other: list them so")
        self._current, self._rows = volume, []
        rule = self._rule
        self._finder = None if rule.threshold is None else CandidateFinder(volume, rule.threshold, rule.background)
        self._maps = self._make_maps(volume)

    def add(self, result: Result, map: np.ndarray | None) -> Result:
        """Take one slice; its result comes back with the place of the volume's map, where there is one."""
        assert self._current is not None
        if map is not None and self._finder is not None:
            self._finder.add(result.id, map)
        if map is not None and self._maps is not None:
            self._maps.add(result.id, map)
            result = replace(result, map=f"{self._folder}/{self._maps.name(result.id)}")
        self._rows.append(replace(result, grid=None))
        return result

    def finish(self) -> list[Result]:
        """Write the map, the candidates and the row of the volume; returns the results of its slices."""
        volume = self._current
        if volume is None:
            return []
        if self._maps is not None:
            self._maps.write()
        found = self._finder.found() if self._finder is not None else []
        records = [self._candidate(volume, rank, c) for rank, c in enumerate(found, start=1)]
        self._tables[CANDIDATES_CSV].append(b"".join(records))
        self._tables[VOLUMES_CSV].append(self._row(volume, len(found)))
        self._done.add(volume.id)
        rows, self._current = self._rows, None
        return rows

    def discard(self) -> None:
        """Forget the volume that is being written."""
        if self._current is not None and self._maps is not None:
            self._maps.discard()
        self._current = None

    def close(self) -> None:
        """Close the tables."""
        for table in self._tables.values():
            table.close()

    def write_patients(self) -> None:
        """Write patients.csv from volumes.csv."""
        if not self._tables:
            return
        highest: dict[str, float] = {}
        counts: Counter[str] = Counter()
        for row in _rows(self._out / VOLUMES_CSV, VOLUMES):
            score = float(row["score"]) if row["score"] else float("nan")
            counts[row["patient"]] += 1
            highest[row["patient"]] = float(np.fmax(highest.get(row["patient"], float("nan")), score))
        records = [csv_record(PATIENTS)]
        for patient, score in highest.items():
            p = self._rule.patient_p_value(score)
            records.append(csv_record((patient, counts[patient], _number(score), p, self._flagged(p))))
        write_atomic(self._out / PATIENTS_CSV, b"".join(records))

    def _row(self, volume: Volume, candidates: int) -> bytes:
        slots = dict(zip((sample.id for sample in volume.samples), volume.slots, strict=True))
        scores = [row.score for row in self._rows]
        score = volume_score(scores, [slots[row.id] for row in self._rows], volume.thickness, self._rule.how)
        p = self._rule.p_value(score)
        areas = Counter(row.area.partition(":")[0] for row in self._rows)
        failed = len(volume.samples) - len(self._rows)
        notes = [volume.note] if volume.note else []
        notes += [f"{failed} {'slice' if failed == 1 else 'slices'} could not be scored"] if failed else []
        clipped = 0 if self._maps is None else self._maps.clipped
        notes += [f"{clipped} pixels of the map lie beyond its scale"] if clipped else []
        return csv_record(
            (
                *(volume.id, volume.patient, volume.study, len(volume.samples), len(self._rows)),
                *(_number(score), p, self._flagged(p), candidates),
                ", ".join(f"{name} {count}" for name, count in areas.most_common() if name),
                "" if self._maps is None or not self._rows else f"{self._folder}/{self._maps.out.name}",
                "; ".join(notes),
            )
        )

    def _candidate(self, volume: Volume, rank: int, candidate: Candidate) -> bytes:
        x, y, z = candidate.centre or (None, None, None)
        return csv_record(
            (
                *(volume.id, volume.patient, rank, _rounded(x), _rounded(y), _rounded(z), _rounded(candidate.ml)),
                *(candidate.peak, self._rule.peak_p_value(candidate.peak), *candidate.at, candidate.slices),
            )
        )

    def _flagged(self, p: float | None) -> bool | None:
        return None if p is None else p <= self._rate + ROUNDING


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _rounded(value: float | None) -> Value:
    return None if value is None else round(value, 3)


def _rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    records = iter_records(path, columns)
    next(records, None)
    return [dict(zip(columns, cells, strict=True)) for cells, _ in records]


def _kept_rows(path: Path, columns: Sequence[str], volumes: Collection[str]) -> bytes:
    """The rows of a table that belong to these volumes, as bytes."""
    if not volumes or not path.exists():
        return b""
    content, begin, kept = path.read_bytes(), 0, []
    for number, (cells, end) in enumerate(iter_records(path, columns)):
        if number and cells[0] in volumes:
            kept.append(content[begin:end])
        begin = end
    return b"".join(kept)
