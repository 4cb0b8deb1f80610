"""FROC of the candidates of ``anomed score`` against a list of lesions in mm.

A candidate hits a lesion where its centre lies within the lesion's radius (LUNA16: Setio et al., Medical Image Analysis
42, 2017). A lesion hit twice counts once, with the higher peak; candidates that hit none are false; scans without a
candidate or without a lesion count as scans.
"""

import csv
import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from anomalib_med.errors import InputError
from anomalib_med.evaluation.froc import FALSE_DETECTIONS, Found, cpm, lesion_statistic, sensitivity_at
from anomalib_med.evaluation.intervals import REPLICATES, Interval, patient_counts, replicated
from anomalib_med.records import VolumeResult

_OURS = ("volume", "x_mm", "y_mm", "z_mm", "diameter_mm")
_LUNA16 = ("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm")


@dataclass(frozen=True, slots=True)
class Lesion:
    """A ball in a scan, which has the name of the table; centre (RAS) and diameter in mm."""

    scan: str
    centre: tuple[float, float, float]
    diameter: float


def read_lesions(path: Path) -> list[Lesion]:
    """Lesions from a CSV table.

    It has the columns volume, x_mm, y_mm, z_mm (RAS, as in candidates.csv) and diameter_mm, or those of LUNA16's
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
        pseudonym = f"series-{hashlib.sha256(lesion.scan.encode()).hexdigest()[:12]}"
        id = named.get(lesion.scan) or named.get(pseudonym)
        if id is None:
            raise InputError(f"{lesion.scan}: has a lesion and is no volume that was scored: leave it out")
        truth[id].append(lesion)
    return [_found(volume, truth[volume.id]) for volume in volumes], [volume.patient for volume in volumes]


def candidate_froc(
    found: Sequence[Found], patients: Sequence[str], *, replicates: int = REPLICATES
) -> dict[str, Interval]:
    """Sensitivity at 1/8 to 8 false candidates a scan and their mean (CPM), resampled by patient.

    Raises
    ------
    InputError
        There is no lesion.
    """
    if not sum(len(f.lesions) for f in found):
        raise InputError("FROC needs lesions: the table has none in the scans that were scored")
    labels, whose = np.array([len(f.lesions) > 0 for f in found]), np.asarray(patients)
    points = {f"sensitivity@{n:g}fp/scan": partial(sensitivity_at, false_per_image=n) for n in FALSE_DETECTIONS}
    cases = min(patient_counts(labels, whose))
    statistic = lesion_statistic(found, np.arange(len(found)), {"froc_cpm": cpm, **points}, cases)
    return {name: m.interval for name, m in replicated(labels, whose, [statistic], replicates).items()}


def _found(volume: VolumeResult, lesions: Sequence[Lesion]) -> Found:
    if any(candidate.centre is None for candidate in volume.candidates):
        raise InputError(f"{volume.id}: the places of its candidates are not known in mm: leave the scan out")
    candidates = np.array([candidate.centre for candidate in volume.candidates], float).reshape(-1, 3)
    peaks = np.array([candidate.peak for candidate in volume.candidates], float)
    centres = np.array([lesion.centre for lesion in lesions], float).reshape(-1, 3)
    radii = np.array([lesion.diameter / 2 for lesion in lesions])
    inside = np.linalg.norm(candidates[:, None] - centres, axis=2) <= radii
    return Found.of(peaks, inside, 4 / 3 * np.pi * radii**3)


def _names(id: str) -> set[str]:
    last = PurePosixPath(id).name
    return {id, last, re.sub(r"\.(nii|nii\.gz|mhd|mha)$", "", last)}
