"""Volumes: which samples are slices of one scan, where each lies in the patient, and what is wrong with the scan."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from anomalib_med.datasets.readers import metaimage, nifti
from anomalib_med.datasets.series import normal, plane
from anomalib_med.errors import ReadError
from anomalib_med.records import Place, Sample, Volume

UNEVEN = 0.05  # of the distance between slices: a step that differs by more is no whole number of steps
TILTED = 1.0  # degrees between the slice normal and the way from slice to slice
_LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])


def volumes_of(samples: Sequence[Sample]) -> list[Volume]:
    """The volumes among samples from :func:`anomalib_med.datasets.folder.discover`, in the order of their first slices.

    Samples that are no slices of a volume, or that were set aside, are left out.
    """
    slices: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.volume and not sample.aside:
            slices[sample.volume].append(sample)
    return [_of_file(id, s) if s[0].frame is not None else _of_series(id, s) for id, s in slices.items()]


def _of_file(id: str, samples: list[Sample]) -> Volume:
    """A NIfTI or MetaImage file; of one that cannot be read the place is not known."""
    path, frames = samples[0].path, [sample.frame or 0 for sample in samples]
    assert path is not None
    reader = metaimage if path.name.lower().endswith(metaimage.SUFFIXES) else nifti
    try:
        affine, length = reader.slice_affine(path), reader.count_frames(path)
    except (ReadError, OSError):  # said again when a slice is read
        return _volume(id, samples, frames, max(frames) + 1)
    places = affine[:3, 3] + np.outer(frames, affine[:3, 2])
    notes = []
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    skew = np.degrees(np.arccos(np.clip(np.abs(np.triu(axes.T @ axes, 1)).max(), 0, 1)))
    if skew < 90 - TILTED:
        notes.append(f"the affine is sheared: axes meet at {skew:.1f} degrees, not 90; in slices as they are stored")
    across = np.cross(axes[:, 0], axes[:, 1])
    thickness = float(abs(affine[:3, 2] @ across) / np.linalg.norm(across))
    return _volume(id, samples, frames, length, places, affine[:3, :2], thickness, affine, notes)


def _of_series(id: str, samples: list[Sample]) -> Volume:
    """A DICOM series, whose slices are in order."""
    places = [sample.place for sample in samples if sample.place is not None]
    order = list(range(len(samples)))
    first = places[0]
    if first.position is None or first.spacing is None:
        return _volume(id, samples, order, len(samples))
    assert first.axes is not None
    at = np.array([place.position for place in places], float) * _LPS_TO_RAS
    rows, columns = first.spacing
    directions = np.array([first.axes[:3], first.axes[3:]]) * _LPS_TO_RAS
    steps = np.stack([directions[0] * columns, directions[1] * rows], axis=1)
    upwards = normal(first) * _LPS_TO_RAS
    gaps = np.diff(at @ upwards)
    step = float(np.median(gaps))
    slots, notes = _slots(gaps, step)
    notes += _tilt(at, upwards, first)
    if slots is None:
        return _volume(id, samples, order, len(samples), at, steps, step, None, notes)
    affine = np.eye(4)
    affine[:3, :2] = steps
    affine[:3, 2] = (at[-1] - at[0]) / slots[-1]
    affine[:3, 3] = at[0]
    return _volume(id, samples, slots, slots[-1] + 1, at, steps, step, affine, notes)


def _volume(
    id: str,
    samples: list[Sample],
    slots: Sequence[int],
    length: int,
    places: np.ndarray | None = None,
    steps: np.ndarray | None = None,
    thickness: float | None = None,
    affine: np.ndarray | None = None,
    notes: Sequence[str] = (),
) -> Volume:
    first = samples[0]
    said = "; ".join([*([first.place.note] if first.place and first.place.note else []), *notes])
    return Volume(
        id,
        first.patient,
        first.study or "",
        tuple(samples),
        tuple(slots),
        length,
        places,
        steps,
        thickness,
        affine,
        said,
    )


def _slots(gaps: np.ndarray, step: float) -> tuple[list[int] | None, list[str]]:
    """Places on an even grid, or None where there is none; and what is missing from it."""
    counts = np.maximum(np.rint(gaps / step), 1).astype(int)
    if np.abs(gaps - counts * step).max() > UNEVEN * step:
        return None, [f"slices are {gaps.min():.2f} to {gaps.max():.2f} mm apart: no map of the whole volume"]
    missing = int((counts - 1).sum())
    notes = [f"{missing} {'slice is' if missing == 1 else 'slices are'} missing: NaN in the map"] if missing else []
    return [0, *np.cumsum(counts).tolist()], notes


def _tilt(at: np.ndarray, upwards: np.ndarray, first: Place) -> list[str]:
    """What is to be said of a stack that does not rise along its normal."""
    way = at[-1] - at[0]
    angle = float(np.degrees(np.arccos(np.clip(way @ upwards / np.linalg.norm(way), -1, 1))))
    notes = [f"tilted gantry: slices are shifted by {angle:.1f} degrees, the map has a sheared affine"] * (
        angle > TILTED
    )
    return notes + [f"{plane(first)} slices"] * (plane(first) not in ("axial", ""))
