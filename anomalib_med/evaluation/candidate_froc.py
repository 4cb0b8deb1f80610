"""FROC of the candidates of ``anomed score`` against a list of lesions in mm.

A candidate hits a lesion where its centre lies within the lesion's radius (LUNA16: Setio et al., Medical Image Analysis
42, 2017). A lesion hit twice counts once, with the higher peak; candidates that hit none are false; scans without a
candidate or without a lesion count as scans.
"""

import csv
import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from anomalib_med.errors import InputError
from anomalib_med.evaluation.froc import FALSE_DETECTIONS, MISSED, Found, cpm, froc_curve, sensitivity_at
from anomalib_med.evaluation.intervals import LEVEL, REPLICATES, Interval, draws, patient_counts, score_interval
from anomalib_med.records import VolumeResult

_OURS = ("volume", "x_mm", "y_mm", "z_mm", "diameter_mm")
_LUNA16 = ("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm")


@dataclass(frozen=True, slots=True)
class Lesion:
    """A ball.

    Parameters
    ----------
    scan
        Name as the table has it.
    centre
        mm (RAS).
    diameter
        mm.
    """

    scan: str
    centre: tuple[float, float, float]
    diameter: float


def read_lesions(path: Path) -> list[Lesion]:
    """Lesions from a CSV table.

    Parameters
    ----------
    path
        With the columns volume, x_mm, y_mm, z_mm (RAS, as in candidates.csv) and diameter_mm; or those of LUNA16's
        annotations.csv: seriesuid, coordX, coordY, coordZ (LPS) and diameter_mm.

    Raises
    ------
    InputError
        The table cannot be read, a column is missing, a cell is no number.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a table ({error})") from error
    names = next((kind for kind in (_OURS, _LUNA16) if rows and set(kind) <= set(rows[0])), None)
    if names is None:
        raise InputError(f"{path}: a table of lesions has the columns {', '.join(_OURS)}, or {', '.join(_LUNA16)}")
    sign = -1 if names is _LUNA16 else 1
    lesions = []
    for line, row in enumerate(rows, start=2):
        try:
            x, y, z, diameter = (float(row[name]) for name in names[1:])
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}, line {line}: not four numbers ({error})") from error
        lesions.append(Lesion(row[names[0]], (sign * x, sign * y, z), diameter))
    return lesions


def found_candidates(volumes: Sequence[VolumeResult], lesions: Sequence[Lesion]) -> tuple[list[Found], list[str]]:
    """What the candidates of a run hit, scan by scan.

    Parameters
    ----------
    volumes
        As :func:`anomalib_med.outputs.volume_tables.read_volumes` reads them from an output folder, or those of
        :class:`anomalib_med.Scores`.
    lesions
        Their scan is the id of a volume, the name of its file without its extension, or a DICOM SeriesInstanceUID.

    Returns
    -------
    One `Found` for each volume, and the patient of each.

    Raises
    ------
    InputError
        Lesions of a scan that was not scored, candidates whose place is not known in mm, or no volume.
    """
    if not volumes:
        raise InputError("no volume was scored: FROC of candidates needs volumes")
    named = {name: volume.id for volume in volumes for name in _names(volume.id)}
    truth: dict[str, list[Lesion]] = defaultdict(list)
    for lesion in lesions:
        id = named.get(lesion.scan) or named.get(_pseudonym(lesion.scan))
        if id is None:
            raise InputError(f"{lesion.scan}: has a lesion and is no volume that was scored: leave it out")
        truth[id].append(lesion)
    return [_found(volume, truth[volume.id]) for volume in volumes], [volume.patient for volume in volumes]


def candidate_froc(
    found: Sequence[Found], patients: Sequence[str], *, replicates: int = REPLICATES, level: float = LEVEL
) -> dict[str, Interval]:
    """Sensitivity at 1/8 to 8 false candidates a scan and their mean (CPM), resampled by patient.

    Raises
    ------
    InputError
        There is no lesion.
    """
    if not sum(len(f.lesions) for f in found):
        raise InputError("FROC needs lesions: the table has none in the scans that were scored")
    labels = np.array([len(f.lesions) > 0 for f in found])
    cases = min(patient_counts(labels, patients))
    values = _values(found, np.ones((1, len(found))))
    drawn = [_values(found, rows) for rows in draws(labels, patients, replicates=replicates, seed=0)]
    return {
        name: score_interval(float(value[0]), np.concatenate([part[name] for part in drawn]), cases, level)
        for name, value in values.items()
    }


def _values(found: Sequence[Found], rows: np.ndarray) -> dict[str, np.ndarray]:
    """CPM and sensitivities ``(r,)`` of weights ``(r, n)`` of the scans."""
    curve = froc_curve(found, rows)
    points = {f"sensitivity@{point:g}fp/scan": sensitivity_at(curve, point) for point in FALSE_DETECTIONS}
    return {name: np.asarray(value) for name, value in {"froc_cpm": cpm(curve), **points}.items()}


def _found(volume: VolumeResult, lesions: Sequence[Lesion]) -> Found:
    if any(candidate.centre is None for candidate in volume.candidates):
        raise InputError(f"{volume.id}: the places of its candidates are not known in mm: leave the scan out")
    candidates = np.array([candidate.centre for candidate in volume.candidates], float).reshape(-1, 3)
    peaks = np.array([candidate.peak for candidate in volume.candidates], float)
    centres = np.array([lesion.centre for lesion in lesions], float).reshape(-1, 3)
    radii = np.array([lesion.diameter / 2 for lesion in lesions])
    inside = np.linalg.norm(candidates[:, None] - centres, axis=2) <= radii
    best = np.where(inside, peaks[:, None], MISSED).max(axis=0, initial=MISSED)
    return Found(best, 4 / 3 * np.pi * radii**3, peaks[~inside.any(axis=1)])


def _names(id: str) -> set[str]:
    last = PurePosixPath(id).name
    stem = last
    for suffix in (".gz", ".nii", ".mhd", ".mha"):
        stem = stem.removesuffix(suffix)
    return {id, last, stem}


def _pseudonym(uid: str) -> str:
    return f"series-{hashlib.sha256(uid.encode()).hexdigest()[:12]}"
