"""DICOM slices to series: grouped, sorted by their place in the patient, and what is no slice of a scan set aside.

A series is cut into stacks of slices with one orientation, size and spacing. Each stack of two slices or more is a
volume. Nothing is dropped: what is set aside stays a sample, and reading it fails with the reason.
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

import numpy as np

from anomalib_med.datasets.readers.dicom import AXIAL
from anomalib_med.records import Place, Sample

SAME_PLACE = 0.01  # mm

_Slice = tuple[Sample, Place]


def assembled(samples: Sequence[Sample]) -> list[Sample]:
    """Put the slices of each DICOM series beside one another, in the order of their place.

    Parameters
    ----------
    samples
        As listed, DICOM files with their `Sample.place`.

    Returns
    -------
    The same samples. Slices of a volume in one file come in their order. A DICOM series stands where its first file
    stood, its slices from the feet to the head (of other orientations along the slice normal), with the id of their
    volume in `Sample.volume` and what a reader must know of it in `Place.note`. Slices without position
    are in the order of InstanceNumber. In a study that has CT slices, `Sample.aside` says why these are set aside:
    localizers, secondary captures, objects without pixels, other modalities, reformats in other planes, and second
    slices at one place.
    """
    places = {sample.id: sample.place for sample in samples if sample.place is not None}
    slices = [s for s in samples if s.place is not None and s.place.kind == "slice" and s.place.modality == "CT"]
    scanned = {_study(s) for s in slices}
    axial = {_study(s) for s in slices if plane(places[s.id]) == "axial"}
    series: dict[str, list[_Slice]] = defaultdict(list)
    files: dict[str, list[Sample]] = defaultdict(list)
    done: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.volume:
            files[sample.volume].append(sample)
        elif sample.id not in places or _study(sample) not in scanned:
            done[sample.id] = [dataclasses.replace(sample, place=None)]
        elif reason := _no_slice(places[sample.id], axial=_study(sample) in axial):
            done[sample.id] = [dataclasses.replace(sample, aside=reason)]
        else:
            series[f"{_study(sample)} {places[sample.id].series}"].append((sample, places[sample.id]))
    for frames in files.values():
        done[frames[0].id] = sorted(frames, key=lambda sample: sample.frame or 0)
    taken: Counter[str] = Counter()
    for members in series.values():
        done[members[0][0].id] = _volumes(members, taken)
    return [sample for first in samples for sample in done.get(first.id, [])]


def plane(place: Place) -> str:
    """Name the plane of a slice: axial, coronal, sagittal or oblique; "" where it has no axes."""
    if place.axes is None:
        return ""
    normal = np.abs(np.cross(place.axes[:3], place.axes[3:]))
    axis = int(np.argmax(normal))
    return ("sagittal", "coronal", "axial")[axis] if normal[axis] >= AXIAL else "oblique"


def _study(sample: Sample) -> str:
    return sample.study or (sample.place.series if sample.place else "") or sample.patient


def _no_slice(place: Place, *, axial: bool) -> str:
    """Why a file of a study with CT slices is not one of them, or ""."""
    modality = place.modality
    if place.kind == "no image":
        return f"an object without pixels (modality {modality or 'not stated'}) beside a CT"
    if place.kind != "slice":
        return f"a {place.kind}, no slice of the CT it lies beside"
    if modality != "CT":
        return f"of modality {modality} beside a CT"
    if axial and plane(place) not in ("axial", ""):
        return f"a {plane(place)} slice, the axial slices of the study are scored; give it alone to score it"
    return ""


def _volumes(slices: list[_Slice], taken: Counter[str]) -> list[Sample]:
    """The slices of one series as volumes, the longest first."""
    stacks: dict[object, list[_Slice]] = defaultdict(list)
    for sample, place in slices:
        axes = None if place.axes is None else tuple(np.round(place.axes, 3).tolist())
        spacing = None if place.spacing is None else tuple(np.round(place.spacing, 4).tolist())
        stacks[axes, spacing, place.shape].append((sample, place))
    folder = _folder([sample for sample, _ in slices])
    name = "/".join(part for part in (folder, slices[0][1].series or "series") if part)
    samples: list[Sample] = []
    parts = [part for stack in sorted(stacks.values(), key=len, reverse=True) for part in _parts(stack)]
    for part, aside in parts:
        notes = [] if len(parts) == 1 else [_uneven([len(kept) for kept, _ in parts])]
        if part[0][1].position is None and len(part) > 1:
            notes.append("no ImagePositionPatient: in the order of InstanceNumber, without places in mm")
        taken[name] += 1
        id = name if taken[name] == 1 else f"{name}.{taken[name]}"
        volume, note = id if len(part) > 1 else "", "; ".join(notes)
        samples += [dataclasses.replace(s, volume=volume, place=dataclasses.replace(p, note=note)) for s, p in part]
        samples += [dataclasses.replace(s, aside=reason) for s, reason in aside]
    return samples


def _uneven(lengths: list[int]) -> str:
    return f"the series holds slices of several sizes, orientations or passes: stacks of {', '.join(map(str, lengths))}"


def _folder(samples: Iterable[Sample]) -> str:
    """The folder that all files share, "" for the root."""
    folders = [PurePosixPath(sample.id).parent.parts for sample in samples]
    shared = [level[0] for level in zip(*folders, strict=False) if len(set(level)) == 1]
    return "/".join(shared)


def _parts(stack: list[_Slice]) -> list[tuple[list[_Slice], list[tuple[Sample, str]]]]:
    """A stack in order; two passes over the same places become two parts, single doubles are set aside."""
    ordered, twice = _ordered(stack)
    if not twice:
        return [(ordered, [])]
    passes: dict[int, list[_Slice]] = defaultdict(list)
    for item in stack:
        passes[item[1].acquisition].append(item)
    parts = [_ordered(part) for part in passes.values()]
    if len(parts) > 1 and all(len(kept) > 1 and not doubles for kept, doubles in parts):
        return [(kept, []) for kept, _ in parts]
    return [(ordered, twice)]


def _ordered(stack: list[_Slice]) -> tuple[list[_Slice], list[tuple[Sample, str]]]:
    """Slices by their place along the normal, and those that lie where another does, with the reason."""
    first = stack[0][1]
    if first.position is None or first.axes is None:
        return sorted(stack, key=lambda item: (item[1].instance, item[0].id)), []
    upwards = normal(first)
    at = {sample.id: float(np.dot(upwards, place.position or (0, 0, 0))) for sample, place in stack}
    kept: list[_Slice] = []
    doubles: list[tuple[Sample, str]] = []
    for item in sorted(stack, key=lambda item: (round(at[item[0].id] / SAME_PLACE), item[1].instance, item[0].id)):
        if kept and at[item[0].id] - at[kept[-1][0].id] < SAME_PLACE:
            doubles.append((item[0], f"a second slice of the series at the place of {kept[-1][0].id}"))
        else:
            kept.append(item)
    return kept, doubles


def normal(place: Place) -> np.ndarray:
    """The slice normal (LPS), pointing to the patient's head, back or left, whichever is nearest to it."""
    assert place.axes is not None
    across = np.cross(place.axes[:3], place.axes[3:])
    across = across / np.linalg.norm(across)
    upwards: np.ndarray = across if across[int(np.argmax(np.abs(across)))] > 0 else -across
    return upwards
