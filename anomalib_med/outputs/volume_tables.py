"""The tables of volumes, their candidates and their patients, and the way back to records.

OUT/volumes.csv      one row for each volume, with its score and what is wrong with it
OUT/candidates.csv   one row for each connected region of a volume's map
OUT/patients.csv     one row for each patient, from the highest of their volumes; made when the run completes

They are there where volumes were scored.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from anomalib_med.outputs.tables import DamagedTableError, Value, iter_records
from anomalib_med.records import Candidate, PatientResult, VolumeResult

VOLUMES_CSV, CANDIDATES_CSV, PATIENTS_CSV = "volumes.csv", "candidates.csv", "patients.csv"
VOLUMES = (
    *("volume", "patient", "study", "slices", "scored", "score", "p_value", "flagged"),
    *("candidates", "area", "map", "note"),
)
CANDIDATES = (
    *("volume", "patient", "rank", "x_mm", "y_mm", "z_mm", "ml", "peak", "p_value"),
    *("slice", "row", "column", "slices"),
)
PATIENTS = ("patient", "volumes", "score", "p_value", "flagged")
_DECISIONS = {"true": True, "false": False, "": None}

T = TypeVar("T")


def volume_values(v: VolumeResult) -> tuple[Value, ...]:
    """The values of `VOLUMES`."""
    decision = (_number(v.score), v.p_value, v.flagged)
    return v.id, v.patient, v.study, v.slices, v.scored, *decision, len(v.candidates), v.area, v.map, v.note


def candidate_values(c: Candidate) -> tuple[Value, ...]:
    """The values of `CANDIDATES`; places and volumes to three decimals."""
    measures = (None if value is None else round(value, 3) for value in (*(c.centre or (None,) * 3), c.ml))
    return c.volume, c.patient, c.rank, *measures, c.peak, c.p_value, *c.at, c.slices


def patient_values(p: PatientResult) -> tuple[Value, ...]:
    """The values of `PATIENTS`."""
    return p.patient, p.volumes, _number(p.score), p.p_value, p.flagged


def read_volumes(out: Path) -> list[VolumeResult]:
    """The volumes of a run with their candidates, as volumes.csv and candidates.csv have them.

    Raises
    ------
    OutputError
        A table is missing or is not as it was written.
    """
    candidates: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in _records(out / CANDIDATES_CSV, CANDIDATES, _candidate):
        candidates[candidate.volume].append(candidate)
    return list(_records(out / VOLUMES_CSV, VOLUMES, lambda cells: _volume(cells, candidates)))


def _records(path: Path, columns: Sequence[str], parse: Callable[[list[str]], T]) -> Iterator[T]:
    for number, (cells, _) in enumerate(iter_records(path, columns), start=1):
        if number == 1:
            continue
        try:
            yield parse(cells)
        except (ValueError, KeyError) as error:
            raise DamagedTableError(f"{path}, row {number}: not as it was written ({error})") from error


def _volume(cells: list[str], candidates: Mapping[str, list[Candidate]]) -> VolumeResult:
    id, patient, study, slices, scored, score, p_value, flagged, _, area, map, note = cells
    decision = float(score or "nan"), float(p_value) if p_value else None, _DECISIONS[flagged]
    own = tuple(candidates.get(id, ()))
    return VolumeResult(id, patient, study, int(slices), int(scored), *decision, own, area, map, note)


def _candidate(cells: list[str]) -> Candidate:
    volume, patient, rank, x, y, z, ml, peak, p_value, slice, row, column, slices = cells
    centre = (float(x), float(y), float(z)) if x else None
    size, p = (float(cell) if cell else None for cell in (ml, p_value))
    at = slice, int(row), int(column)
    return Candidate(volume, patient, int(rank), centre, size, float(peak), p, at, int(slices))


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
