"""The tables of volumes, their candidates and their patients. They are there where volumes were scored.

OUT/volumes.csv      one row for each volume, with its score and what is wrong with it
OUT/candidates.csv   one row for each connected region of a volume's map
OUT/patients.csv     one row for each patient, from the highest of their volumes; made when the run completes
"""

import math
from collections import defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from anomalib_med.outputs.tables import Column, Table, columns
from anomalib_med.records import Candidate, PatientResult, VolumeResult

VOLUMES_CSV, CANDIDATES_CSV, PATIENTS_CSV = "volumes.csv", "candidates.csv", "patients.csv"


def read_volumes(out: Path) -> list[VolumeResult]:
    """The volumes of a run with their candidates; raises OutputError for a table that is not as it was written."""
    own: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in CANDIDATES.read(out / CANDIDATES_CSV):
        own[candidate.volume].append(candidate)
    return [replace(volume, candidates=tuple(own[volume.id])) for volume in VOLUMES.read(out / VOLUMES_CSV)]


def _place(candidate: Candidate, axis: int) -> float | None:
    return None if candidate.centre is None else round(candidate.centre[axis], 3)


def _volume(volume: str, score: float | None, candidates: int, **same: Any) -> VolumeResult:  # noqa: ANN401 - the columns whose names are those of its fields
    return VolumeResult(id=volume, score=math.nan if score is None else score, candidates=(), **same)


def _candidate(slice: str, row: int, column: int, **same: Any) -> Candidate:  # noqa: ANN401 - the columns whose names are those of its fields
    x, y, z = (same.pop(name) for name in ("x_mm", "y_mm", "z_mm"))
    return Candidate(centre=None if x is None else (x, y, z), at=(slice, row, column), **same)


VOLUMES: Table[VolumeResult] = Table(
    (
        Column("volume", str, lambda v: v.id),
        *columns(str, "patient", "study"),
        *columns(int, "slices", "scored", required=True),
        *columns(float, "score", "p_value"),
        Column("flagged", bool),
        Column("candidates", int, lambda v: len(v.candidates)),
        *columns(str, "area", "map", "note"),
    ),
    _volume,
)
"""The volumes; read back they are without their candidates, see :func:`read_volumes`."""

CANDIDATES: Table[Candidate] = Table(
    (
        *columns(str, "volume", "patient"),
        Column("rank", int, required=True),
        *(Column(f"{name}_mm", float, partial(_place, axis=axis)) for axis, name in enumerate("xyz")),
        Column("ml", float, lambda c: None if c.ml is None else round(c.ml, 3)),
        Column("peak", float, required=True),
        Column("p_value", float),
        Column("slice", str, lambda c: c.at[0]),
        Column("row", int, lambda c: c.at[1], required=True),
        Column("column", int, lambda c: c.at[2], required=True),
        Column("slices", int, required=True),
    ),
    _candidate,
)
"""The regions of all volumes; places and sizes have three decimals."""

PATIENTS: Table[PatientResult] = Table(
    (
        Column("patient", str),
        Column("volumes", int, required=True),
        *columns(float, "score", "p_value"),
        Column("flagged", bool),
    ),
    PatientResult,
)
"""The patients of the volumes."""
