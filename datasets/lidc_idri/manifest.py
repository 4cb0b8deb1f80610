"""LIDC-IDRI: CT series with the readings of up to four radiologists beside them as XML, to slices.

A reading has nodules of 3 mm and more with an outline on every slice, smaller ones with a point, and other findings of
3 mm and more with a point (``nonNodule``). Columns and rows count from 0. An outline runs just outside the nodule: its
own pixels are no nodule (Armato et al. 2011).
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

import cv2
import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError

from anomalib_med.datasets.layout.manifest import run_alone
from anomalib_med.datasets.layout.rows import Row
from anomalib_med.datasets.layout.samples import patient_share
from anomalib_med.datasets.layout.slices import has_lung, spaced
from anomalib_med.datasets.layout.tree import Tree
from anomalib_med.datasets.masks import Mask, encode_rle
from anomalib_med.errors import InputError
from anomalib_med.records import Sample

READINGS = ("LIDC-IDRI-*/*/*/*.xml",)
TRAIN_SHARE = 0.7  # of the patients, by their hash
AGREE = 2  # readers who must have a pixel inside an outline
MIN_LESION = 10  # such pixels that make a slice abnormal; with marks but fewer of them it is left out
CLEARANCE = 15.0  # mm along the patient's axis between a normal slice and the next mark
GAP = 10.0  # mm between two slices of a kind in a scan
_TAGS = ["SOPInstanceUID", "ImagePositionPatient", "Rows", "Columns"]
_CT_READING = "LidcReadMessage"  # the one of a chest radiograph is an IdriReadMessage


@dataclass(frozen=True, slots=True)
class _Outline:
    """The outline of a nodule on one slice: points ``(n, 2)``, column and row, with the nodule inside or outside."""

    points: np.ndarray
    inside: bool


@dataclass(frozen=True, slots=True)
class _Reading:
    """What one radiologist marked: slices with a mark of any kind, and outlines of each nodule by slice."""

    marked: frozenset[str]
    nodules: tuple[dict[str, list[_Outline]], ...]

    def mask(self, slice: str, shape: tuple[int, int]) -> Mask:
        """Pixels ``shape`` inside the outlines of a slice."""
        inside = np.zeros(shape, np.bool_)
        for nodule in self.nodules:
            own, holes = np.zeros((2, *shape), np.bool_)
            for outline in nodule.get(slice, []):
                (own if outline.inside else holes)[_filled(outline.points, shape)] = True
            inside |= own & ~holes
        return inside


@dataclass(frozen=True, slots=True)
class _Slice:
    """One file of a series: its name in the XML, mm along the patient's axis, rows and columns, and the file."""

    uid: str
    height: float
    shape: tuple[int, int]
    path: Path


def slices(tree: Tree) -> Iterator[Row]:
    """Normal slices of every scan, and in test the slices on which enough readers agree."""
    any_ct = False
    for name in tree.glob(READINGS):
        readings = _read(tree.root / name)
        if readings is None:
            continue
        any_ct = True
        patient = PurePosixPath(name).parts[0]
        split = "train" if patient_share(patient) < TRAIN_SHARE else "test"
        series = _series((tree.root / name).parent)
        _note_missing(readings, series, tree.root / name, tree)
        marked = [(slice, "0", "") for slice in _normal(readings, series)]
        marked += (
            [(slice, "1", encode_rle(mask)) for slice, mask in _abnormal(readings, series)] if split == "test" else []
        )
        for slice, label, runs in marked:
            path = slice.path.relative_to(tree.root)
            known = {"patient": patient, "study": path.parent.name}
            yield {"split": split, "path": path.as_posix(), "label": label, "runs": runs, **known}
    if not (any_ct or tree.missing):
        tree.missing.append(f"no reading of a CT (root element {_CT_READING}) among the XML files below {tree.root}")


def _read(path: Path) -> list[_Reading] | None:
    """The readings of one scan; None where the file is none of a CT."""
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise InputError(f"{path}: not XML ({error}): copy it again") from error
    if not root.tag.endswith(_CT_READING):
        return None
    return [_reading(session, path) for session in root.findall("{*}readingSession")]


def _reading(session: ElementTree.Element, path: Path) -> _Reading:
    marked = {_text(mark, "imageSOP_UID", path) for mark in session.findall("{*}nonNodule")}
    nodules = []
    for nodule in session.findall("{*}unblindedReadNodule"):
        outlines: dict[str, list[_Outline]] = defaultdict(list)
        for roi in nodule.findall("{*}roi"):
            uid = _text(roi, "imageSOP_UID", path)
            marked.add(uid)
            inside = (roi.findtext("{*}inclusion") or "TRUE").strip().upper() != "FALSE"
            outlines[uid].append(_Outline(_points(roi, path), inside))
        if _is_large(nodule):
            nodules.append(dict(outlines))
    return _Reading(frozenset(marked), tuple(nodules))


def _is_large(nodule: ElementTree.Element) -> bool:
    """Only nodules of 3 mm and more are rated; a few smaller ones have ratings of 0."""
    ratings = nodule.find("{*}characteristics")
    return ratings is not None and len(ratings) > 0 and all((r.text or "0").strip() not in ("", "0") for r in ratings)


def _points(roi: ElementTree.Element, path: Path) -> np.ndarray:
    try:
        points = [[int(_text(edge, name, path)) for name in ("xCoord", "yCoord")] for edge in roi.findall("{*}edgeMap")]
    except ValueError as error:
        raise InputError(f"{path}: a point of an outline is not two whole numbers: copy it again") from error
    return np.array(points, np.int32).reshape(-1, 2)


def _text(element: ElementTree.Element, name: str, path: Path) -> str:
    text = (element.findtext(f"{{*}}{name}") or "").strip()
    if not text:
        raise InputError(f"{path}: a mark ({element.tag.rpartition('}')[2]}) has no {name}: not the XML meant")
    return text


def _filled(points: np.ndarray, shape: tuple[int, int]) -> Mask:
    """Pixels inside an outline and not on it; none for a single point."""
    canvas = np.zeros(shape, np.uint8)
    if len(points) >= 3:
        cv2.fillPoly(canvas, [points], (1,))
        cv2.polylines(canvas, [points], isClosed=True, color=(0,))
    return canvas.astype(np.bool_)


def _series(folder: Path) -> list[_Slice]:
    """The slices beside an XML file, from the feet to the head."""
    slices = []
    for path in sorted(folder.glob("*.dcm")):
        try:
            tags = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))
            shape = (int(tags.Rows), int(tags.Columns))
            slices.append(_Slice(str(tags.SOPInstanceUID), float(tags.ImagePositionPatient[2]), shape, path))
        except (InvalidDicomError, AttributeError, TypeError, OSError) as error:
            raise InputError(f"{path}: not a slice of a CT series ({error}): copy it again") from error
    return sorted(slices, key=lambda slice: slice.height)


def _note_missing(readings: list[_Reading], slices: list[_Slice], path: Path, tree: Tree) -> None:
    there = {slice.uid for slice in slices}
    absent = sorted({uid for reading in readings for uid in reading.marked} - there)
    if not slices:
        tree.missing.append(f"no slice {path.parent / '*.dcm'} beside {path.name}")
    elif absent:
        tree.missing.append(f"{len(absent)} slices that {path} marks, the first is {absent[0]} in {path.parent}")


def _normal(readings: list[_Reading], slices: list[_Slice]) -> list[_Slice]:
    """Slices with lung, away from every mark of every reader and from one another."""
    marked = {uid for reading in readings for uid in reading.marked}
    heights = [slice.height for slice in slices if slice.uid in marked]
    free = [s for s in slices if all(abs(s.height - height) >= CLEARANCE for height in heights)]
    return spaced(((s.height, s) for s in free), GAP, lambda slice: has_lung(Sample(slice.uid, slice.path)))


def _abnormal(readings: list[_Reading], slices: list[_Slice]) -> list[tuple[_Slice, Mask]]:
    """Slices on which enough readers agree on enough pixels of nodules; the largest first, away from one another."""
    outlined = {uid for reading in readings for nodule in reading.nodules for uid in nodule}
    agreed = []
    for slice in slices:
        if slice.uid in outlined:
            votes = np.sum([reading.mask(slice.uid, slice.shape) for reading in readings], axis=0)
            mask = np.asarray(votes >= AGREE, np.bool_)
            if mask.sum() >= MIN_LESION:
                agreed.append((-int(mask.sum()), slice.height, slice, mask))
    agreed.sort(key=lambda item: item[:2])
    return spaced(((height, (slice, mask)) for _, height, slice, mask in agreed), GAP)


if __name__ == "__main__":
    run_alone(slices)
