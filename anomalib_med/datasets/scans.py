"""Scans: DICOM slices sorted into series, and the volumes among samples with the place of each slice in the patient.

A series is cut into stacks of slices with one orientation, size and spacing. Each stack of two slices or more is a
volume. Nothing is dropped: what is set aside stays a sample, and reading it fails with the reason.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

import numpy as np

from anomalib_med.datasets.readers import metaimage, nifti
from anomalib_med.datasets.readers.dicom import AXIAL
from anomalib_med.errors import ReadError
from anomalib_med.records import Place, Sample, Volume

SAME_PLACE = 0.01  # mm
UNEVEN = 0.05  # of the distance between slices: a step that differs by more is no whole number of steps
TILTED = 1.0  # degrees between the slice normal and the way from slice to slice
LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])


def assembled(samples: Sequence[Sample]) -> list[Sample]:
    """Put the slices of each DICOM series beside one another, in the order of their place.

    The samples, DICOM files with their `Sample.place`, come back all. Slices of a volume in one file come in their
    order. A DICOM series stands where its first file stood, its slices from the feet to the head (of other orientations
    along the slice normal), with the id of their volume in `Sample.volume` and what a reader must know of it in
    `Place.note`. Slices without position are in the order of InstanceNumber. In a study that has CT slices,
    `Sample.aside` says why these are set aside: localizers, secondary captures, objects without pixels, other
    modalities, reformats in other planes, and second slices at one place.
    """
    slices = [s for s in samples if s.place is not None and s.place.kind == "slice" and s.place.modality == "CT"]
    scanned = {_study(s) for s in slices}
    axial = {_study(s) for s in slices if plane(_place(s)) == "axial"}
    groups: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in samples:
        study = _study(sample)
        if sample.volume:
            groups["file", sample.volume].append(sample)
        elif sample.place is None or study not in scanned:
            groups["image", sample.id].append(replace(sample, place=None))
        elif reason := _no_slice(sample.place, axial=study in axial):
            groups["aside", sample.id].append(replace(sample, aside=reason))
        else:
            groups["series", f"{study} {sample.place.series}"].append(sample)
    taken: Counter[str] = Counter()
    ordered: list[Sample] = []
    for (kind, _), members in groups.items():
        ordered += _stacks(members, taken) if kind == "series" else sorted(members, key=lambda s: s.frame or 0)
    return ordered


def slices_by_volume(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    """The slices of each volume by its id, without what is set aside and what belongs to no volume."""
    slices: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.volume and not sample.aside:
            slices[sample.volume].append(sample)
    return slices


def volumes_of(samples: Sequence[Sample]) -> list[Volume]:
    """The volumes among samples from :func:`anomalib_med.datasets.folder.discover`, in the order of their first slices.

    Samples that are no slices of a volume, or that were set aside, are left out.
    """
    volumes = []
    for id, slices in slices_by_volume(samples).items():
        first, order = slices[0], tuple(range(len(slices)))
        note = first.place.note if first.place else ""
        whose = (id, first.patient, first.study or "", tuple(slices))
        volume = Volume(*whose, order, len(order), None, None, None, None, note)
        volumes.append(_in_file(volume) if first.frame is not None else _in_series(volume))
    return volumes


def plane(place: Place) -> str:
    """Name the plane of a slice: axial, coronal, sagittal or oblique; "" where it has no axes."""
    if place.axes is None:
        return ""
    across = np.abs(np.cross(place.axes[:3], place.axes[3:]))
    axis = int(np.argmax(across))
    return ("sagittal", "coronal", "axial")[axis] if across[axis] >= AXIAL else "oblique"


def normal(place: Place) -> np.ndarray:
    """The slice normal (LPS), pointing to the patient's head, back or left, whichever is nearest to it."""
    assert place.axes is not None
    across = np.cross(place.axes[:3], place.axes[3:])
    across = across / np.linalg.norm(across)
    return np.asarray(across if across[int(np.argmax(np.abs(across)))] > 0 else -across)


def along_normal(sample: Sample) -> float:
    """Where a DICOM slice lies along its normal, mm; 0 where that is not known, so that sorting keeps the order."""
    if sample.place is None or sample.place.position is None:
        return 0.0
    return float(np.dot(normal(sample.place), sample.place.position))


def _study(sample: Sample) -> str:
    return sample.study or (sample.place.series if sample.place else "") or sample.patient


def _no_slice(place: Place, *, axial: bool) -> str:
    """Why a file of a study with CT slices is not one of them, or ""."""
    if place.kind == "no image":
        return f"an object without pixels (modality {place.modality or 'not stated'}) beside a CT"
    if place.kind != "slice":
        return f"a {place.kind}, no slice of the CT it lies beside"
    if place.modality != "CT":
        return f"of modality {place.modality} beside a CT"
    if axial and plane(place) not in ("axial", ""):
        return f"a {plane(place)} slice, the axial slices of the study are scored; give it alone to score it"
    return ""


def _place(sample: Sample) -> Place:
    assert sample.place is not None
    return sample.place


def _stacks(slices: list[Sample], taken: Counter[str]) -> list[Sample]:
    """The slices of one series stack by stack, the longest first, with the id of their volume."""
    stacks: dict[object, list[Sample]] = defaultdict(list)
    for sample in slices:
        place = _place(sample)
        axes = place.axes and tuple(np.round(place.axes, 3).tolist())
        spacing = place.spacing and tuple(np.round(place.spacing, 4).tolist())
        stacks[axes, spacing, place.shape].append(sample)
    folders = [PurePosixPath(sample.id).parent.parts for sample in slices]
    shared = [level[0] for level in zip(*folders, strict=False) if len(set(level)) == 1]
    name = "/".join([*shared, _place(slices[0]).series or "series"])
    parts = [part for stack in sorted(stacks.values(), key=len, reverse=True) for part in _passes(stack)]
    lengths = ", ".join(str(len(kept)) for kept, _ in parts)
    samples: list[Sample] = []
    for part, aside in parts:
        notes = []
        if len(parts) > 1:
            notes.append(f"the series holds slices of several sizes, orientations or passes: stacks of {lengths}")
        if _place(part[0]).position is None and len(part) > 1:
            notes.append("no ImagePositionPatient: in the order of InstanceNumber, without places in mm")
        taken[name] += 1
        id = name if taken[name] == 1 else f"{name}.{taken[name]}"
        volume, note = id if len(part) > 1 else "", "; ".join(notes)
        samples += [replace(s, volume=volume, place=replace(_place(s), note=note)) for s in part] + aside
    return samples


def _passes(stack: list[Sample]) -> list[tuple[list[Sample], list[Sample]]]:
    """A stack in order; two passes over the same places become two parts, single doubles are set aside."""
    ordered, twice = _ordered(stack)
    passes: dict[int, list[Sample]] = defaultdict(list)
    for sample in stack if twice else ():
        passes[_place(sample).acquisition].append(sample)
    parts = [_ordered(part) for part in passes.values()]
    if len(parts) > 1 and all(len(kept) > 1 and not doubles for kept, doubles in parts):
        return parts
    return [(ordered, twice)]


def _ordered(stack: list[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Slices by their place along the normal, and those that lie where another does, set aside with the reason."""
    first = _place(stack[0])
    if first.position is None or first.axes is None:
        return sorted(stack, key=lambda s: (_place(s).instance, s.id)), []
    upwards = normal(first)
    at = {s.id: float(np.dot(upwards, _place(s).position or (0, 0, 0))) for s in stack}
    kept: list[Sample] = []
    doubles: list[Sample] = []
    for sample in sorted(stack, key=lambda s: (round(at[s.id] / SAME_PLACE), _place(s).instance, s.id)):
        if kept and at[sample.id] - at[kept[-1].id] < SAME_PLACE:
            doubles.append(replace(sample, aside=f"a second slice of the series at the place of {kept[-1].id}"))
        else:
            kept.append(sample)
    return kept, doubles


def _in_file(volume: Volume) -> Volume:
    """A NIfTI or MetaImage file with its place in the patient, which is not known of one that cannot be read."""
    path, frames = volume.samples[0].path, tuple(sample.frame or 0 for sample in volume.samples)
    assert path is not None
    reader = metaimage if path.name.lower().endswith(metaimage.SUFFIXES) else nifti
    try:
        affine, length = reader.slice_affine(path), reader.count_frames(path)
    except (ReadError, OSError):  # said again when a slice is read
        return replace(volume, slots=frames, length=max(frames) + 1)
    places = affine[:3, 3] + np.outer(frames, affine[:3, 2])
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    skew = np.degrees(np.arccos(np.clip(np.abs(np.triu(axes.T @ axes, 1)).max(), 0, 1)))
    sheared = f"the affine is sheared: axes meet at {skew:.1f} degrees, not 90; in slices as they are stored"
    across = np.cross(axes[:, 0], axes[:, 1])
    thickness = float(abs(affine[:3, 2] @ across) / np.linalg.norm(across))
    grid = replace(volume, slots=frames, length=length, places=places, steps=affine[:3, :2], thickness=thickness)
    return _noted(replace(grid, affine=affine), [sheared] if skew < 90 - TILTED else [])


def _in_series(volume: Volume) -> Volume:
    """A DICOM series, whose slices are in order, with its place in the patient."""
    places = [sample.place for sample in volume.samples if sample.place is not None]
    first = places[0]
    if first.position is None or first.spacing is None:
        return volume
    assert first.axes is not None
    at = np.array([place.position for place in places], float) * LPS_TO_RAS
    rows, columns = first.spacing
    directions = np.array([first.axes[:3], first.axes[3:]]) * LPS_TO_RAS
    steps = np.stack([directions[0] * columns, directions[1] * rows], axis=1)
    upwards = normal(first) * LPS_TO_RAS
    gaps = np.diff(at @ upwards)
    step = float(np.median(gaps))
    placed = replace(volume, places=at, steps=steps, thickness=step)
    way, notes = at[-1] - at[0], []
    angle = float(np.degrees(np.arccos(np.clip(way @ upwards / np.linalg.norm(way), -1, 1))))
    if angle > TILTED:
        notes.append(f"tilted gantry: slices are shifted by {angle:.1f} degrees, the map has a sheared affine")
    if plane(first) not in ("axial", ""):
        notes.append(f"{plane(first)} slices")
    counts = np.maximum(np.rint(gaps / step), 1).astype(int)
    if np.abs(gaps - counts * step).max() > UNEVEN * step:
        uneven = f"slices are {gaps.min():.2f} to {gaps.max():.2f} mm apart: no map of the whole volume"
        return _noted(placed, [uneven, *notes])
    missing = int((counts - 1).sum())
    if missing:
        notes.insert(0, f"{missing} {'slice is' if missing == 1 else 'slices are'} missing: NaN in the map")
    slots = (0, *np.cumsum(counts).tolist())
    affine = np.eye(4)
    affine[:3, :2] = steps
    affine[:3, 2] = way / slots[-1]
    affine[:3, 3] = at[0]
    return _noted(replace(placed, slots=slots, length=slots[-1] + 1, affine=affine), notes)


def _noted(volume: Volume, notes: list[str]) -> Volume:
    return replace(volume, note="; ".join(note for note in (volume.note, *notes) if note))
