"""LUNA16: volumes with nodules and candidates in world coordinates to slices or crops.

``annotations.csv`` lists the nodules, ``candidates_V2.csv`` places with (class 1) and without (class 0) a nodule. The
folders end in the number of their fold: 0 to 6 to train, 7 to 9 to test.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from anomalib_med.datasets.layout.manifest import run_alone
from anomalib_med.datasets.layout.rows import Row
from anomalib_med.datasets.layout.tree import Tree
from anomalib_med.datasets.readers.metaimage import MetaImageHeader, read_header
from anomalib_med.errors import InputError
from anomalib_med.records import Box

TRAIN_FOLDS = range(7)
CLEARANCE = 15.0  # mm between a normal place and the surface of the next nodule
GAP = 10.0  # mm between two normal slices of a volume
SHARE = 0.1  # of the candidates without a nodule become crops, chosen by their hash
CROP = 64  # pixels
_PLACE = ("seriesuid", "coordX", "coordY", "coordZ")


@dataclass(frozen=True, slots=True)
class _Ball:
    """A nodule or candidate: centre (z, y, x) and diameter in mm, and slice, row and column of the centre."""

    centre: tuple[float, float, float]
    diameter: float
    at: tuple[float, float, float]
    row: Row


@dataclass(frozen=True, slots=True)
class _Scan:
    """One volume, and what lies in it."""

    name: str
    split: str
    header: MetaImageHeader
    nodules: list[_Ball]
    candidates: list[_Ball]


def slices(tree: Tree) -> Iterator[Row]:
    """Normal slices through a candidate, and slices through the middle of nodules with the boxes that they cut."""
    for scan in _scans(tree):
        for frame in _normal_frames(scan):
            yield _row(scan, frame, 0)
        if scan.split == "test":
            for frame in sorted({round(nodule.at[0]) for nodule in scan.nodules}):
                yield _row(scan, frame, 1) | {"boxes": json.dumps(_boxes(scan, frame))}


def candidates(tree: Tree) -> Iterator[Row]:
    """Square crops around candidates."""
    for scan in _scans(tree):
        chosen = [ball for ball in scan.candidates if ball.row["class"] == "0" and _hash(ball.row) < SHARE]
        normal = [ball for ball in chosen if _is_clear(ball, scan.nodules)]
        for label, balls in ((0, normal), (1, [ball for ball in scan.candidates if ball.row["class"] == "1"])):
            if label == 0 or scan.split == "test":
                for frame, crop in sorted(set(_crops(scan, balls))):
                    yield _row(scan, frame, label) | {"crop": json.dumps(crop)}


def _scans(tree: Tree) -> Iterator[_Scan]:
    nodules = _by_series(tree, ("annotations.csv", "CSVFILES/annotations.csv"), "diameter_mm")
    names = ("candidates_V2.csv", "CSVFILES/candidates_V2.csv", "candidates_V2/candidates_V2.csv")
    places = _by_series(tree, names, "class")
    for name in tree.glob(("subset*/*.mhd",)):
        path = PurePosixPath(name)
        fold = path.parent.name[-1:]
        if not fold.isdigit():
            raise InputError(f"{tree.root / name}: its folder does not end in the number of a fold, like subset0")
        header = read_header(tree.root / name)
        split = "train" if int(fold) in TRAIN_FOLDS else "test"
        balls = ([_ball(row, header) for row in table.get(path.stem, [])] for table in (nodules, places))
        yield _Scan(name, split, header, *balls)


def _by_series(tree: Tree, table: tuple[str, ...], extra: str) -> dict[str, list[Row]]:
    series: dict[str, list[Row]] = defaultdict(list)
    for row in tree.table(table, (*_PLACE, extra))[0]:
        series[row["seriesuid"]].append(row)
    return series


def _ball(row: Row, header: MetaImageHeader) -> _Ball:
    x, y, z = (float(row[column]) for column in _PLACE[1:])
    return _Ball((z, y, x), float(row.get("diameter_mm", 0)), index(header, x, y, z), row)


def index(header: MetaImageHeader, x: float, y: float, z: float) -> tuple[float, float, float]:
    """Slice, row and column, as shown, of a world position (LPS, mm)."""
    steps = np.subtract((z, y, x), header.origin[::-1]) / header.spacing
    k, r, c = np.where(header.flipped, np.subtract(header.shape, 1) + steps, steps).tolist()
    return k, r, c


def _hash(row: Row) -> float:
    text = " ".join(row[column] for column in _PLACE)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def _is_clear(ball: _Ball, nodules: list[_Ball]) -> bool:
    """Whether a place is far enough from the surface of every nodule."""
    apart = (float(np.linalg.norm(np.subtract(ball.centre, n.centre))) - n.diameter / 2 for n in nodules)
    return all(distance >= CLEARANCE for distance in apart)


def _normal_frames(scan: _Scan) -> list[int]:
    """Slices through a normal candidate, away from every nodule along the patient's axis, and from one another."""
    thickness = scan.header.spacing[0]
    blocked = [(nodule.at[0], (CLEARANCE + nodule.diameter / 2) / thickness) for nodule in scan.nodules]
    kept: list[int] = []
    for frame in sorted({round(ball.at[0]) for ball in scan.candidates if ball.row["class"] == "0"}):
        if not 0 <= frame < scan.header.shape[0] or any(abs(frame - at) < reach for at, reach in blocked):
            continue
        if not kept or (frame - kept[-1]) * thickness >= GAP:
            kept.append(frame)
    return kept


def _boxes(scan: _Scan, frame: int) -> list[Box]:
    """A box around every nodule that a slice cuts."""
    thickness, height, width = scan.header.spacing
    boxes = []
    for nodule in scan.nodules:
        at, row, column = nodule.at
        chord = (nodule.diameter / 2) ** 2 - ((frame - at) * thickness) ** 2
        if chord > 0:
            half = chord**0.5
            # Pixel centres are whole numbers in world coordinates, pixel edges in boxes.
            left, top = column + 0.5 - half / width, row + 0.5 - half / height
            boxes.append((left, top, 2 * half / width, 2 * half / height))
    return boxes


def _crops(scan: _Scan, balls: list[_Ball]) -> Iterator[tuple[int, tuple[int, int, int, int]]]:
    """Slice and square around each place, moved inside the slice where it would leave it."""
    depth, rows, columns = scan.header.shape
    for ball in balls:
        frame, row, column = (round(at) for at in ball.at)
        if 0 <= frame < depth:
            top = min(max(row - CROP // 2, 0), max(rows - CROP, 0))
            left = min(max(column - CROP // 2, 0), max(columns - CROP, 0))
            yield frame, (top, left, CROP, CROP)


def _row(scan: _Scan, frame: int, label: int) -> Row:
    series = PurePosixPath(scan.name).stem
    whose = {"patient": series, "study": series}
    return {"split": scan.split, "label": str(label), "path": scan.name, "frame": str(frame), **whose}


if __name__ == "__main__":
    run_alone(slices, candidates)
