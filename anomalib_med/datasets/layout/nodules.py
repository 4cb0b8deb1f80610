"""Volumes with nodules and candidates in world coordinates (LUNA16) to slices or crops."""

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from anomalib_med.datasets.layout.card import Nodules
from anomalib_med.datasets.layout.rows import Row, check_columns
from anomalib_med.datasets.layout.tree import Tree
from anomalib_med.datasets.readers.metaimage import Volume, read_header
from anomalib_med.errors import InputError
from anomalib_med.records import Box, Sample

_PLACE = ("seriesuid", "coordX", "coordY", "coordZ")


@dataclass(frozen=True, slots=True)
class _Ball:
    """A nodule or candidate, in mm: centre z, y, x and diameter."""

    centre: tuple[float, float, float]
    diameter: float = 0.0


@dataclass(frozen=True, slots=True)
class _Scan:
    """One volume, what lies in it, and where it is."""

    name: str
    volume: Volume
    nodules: list[_Ball]
    normal: list[_Ball]
    abnormal: list[_Ball]

    def place(self, ball: _Ball) -> tuple[float, float, float]:
        """Slice, row, column of a centre."""
        z, y, x = ball.centre
        return self.volume.index(x, y, z)

    def clear(self, ball: _Ball, clearance: float) -> bool:
        """Far enough from the surface of every nodule."""
        return all(
            float(np.linalg.norm(np.subtract(ball.centre, nodule.centre))) >= clearance + nodule.diameter / 2
            for nodule in self.nodules
        )


def nodule_samples(card: Nodules, tree: Tree) -> tuple[list[Sample], list[Sample]]:
    """The samples to train on and those to test, each in the order of their ids."""
    annotations = _by_series(tree, card.annotations, "diameter_mm")
    candidates = _by_series(tree, card.candidates, "class")
    train: list[Sample] = []
    test: list[Sample] = []
    for name in tree.glob((card.volumes,)):
        fold = PurePosixPath(name).parent.name[-1:]
        if not fold.isdigit():
            raise InputError(f"{tree.root / name}: its folder does not end in the number of a fold, like subset0")
        if int(fold) in (*card.train_folds, *card.test_folds):
            scan = _scan(name, card, tree, annotations, candidates)
            normal = _crops(scan, card, scan.normal, 0) if card.crop else _normal_slices(scan, card)
            (train if int(fold) in card.train_folds else test).extend(_samples(scan, normal, tree, 0))
            if int(fold) in card.test_folds:
                abnormal = _crops(scan, card, scan.abnormal, 1) if card.crop else _abnormal_slices(scan)
                test.extend(_samples(scan, abnormal, tree, 1))
    return sorted(train, key=lambda sample: sample.id), sorted(test, key=lambda sample: sample.id)


def _by_series(tree: Tree, table: tuple[str, ...], extra: str) -> dict[str, list[Row]]:
    rows, path = tree.table(table)
    if rows:
        check_columns(rows, (*_PLACE, extra), path)
    series: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        series[row["seriesuid"]].append(row)
    return series


def _scan(
    name: str, card: Nodules, tree: Tree, annotations: dict[str, list[Row]], candidates: dict[str, list[Row]]
) -> _Scan:
    series = PurePosixPath(name).stem
    rows = candidates.get(series, [])
    return _Scan(
        name=name,
        volume=read_header(tree.root / name),
        nodules=[_ball(row) for row in annotations.get(series, [])],
        normal=[_ball(row) for row in rows if row["class"] == "0" and _hash(row) < card.share],
        abnormal=[_ball(row) for row in rows if row["class"] == "1"],
    )


def _ball(row: Row) -> _Ball:
    centre = (float(row["coordZ"]), float(row["coordY"]), float(row["coordX"]))
    return _Ball(centre, float(row.get("diameter_mm", 0)))


def _hash(row: Row) -> float:
    text = " ".join(row[column] for column in _PLACE)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


_Part = tuple[int, tuple[Box, ...], tuple[int, int, int, int] | None]  # slice, boxes, crop


def _normal_slices(scan: _Scan, card: Nodules) -> list[_Part]:
    """Slices through a normal candidate, away from every nodule along the patient's axis, and from one another."""
    thickness = scan.volume.spacing[0]
    frames = sorted({round(scan.place(ball)[0]) for ball in scan.normal})
    blocked = [(scan.place(n)[0], (card.clearance + n.diameter / 2) / thickness) for n in scan.nodules]
    kept: list[int] = []
    for frame in frames:
        if not 0 <= frame < scan.volume.shape[0] or any(abs(frame - at) < reach for at, reach in blocked):
            continue
        if not kept or (frame - kept[-1]) * thickness >= card.gap:
            kept.append(frame)
    return [(frame, (), None) for frame in kept]


def _abnormal_slices(scan: _Scan) -> list[_Part]:
    """The slice through the middle of each nodule, with a box around every nodule that it cuts."""
    thickness, height, width = scan.volume.spacing
    parts: list[_Part] = []
    for frame in sorted({round(scan.place(ball)[0]) for ball in scan.nodules}):
        boxes = []
        for nodule in scan.nodules:
            at, row, column = scan.place(nodule)
            chord = (nodule.diameter / 2) ** 2 - ((frame - at) * thickness) ** 2
            if chord > 0:
                half = chord**0.5
                # Pixel centres are whole numbers in world coordinates, pixel edges in boxes.
                left, top = column + 0.5 - half / width, row + 0.5 - half / height
                boxes.append((left, top, 2 * half / width, 2 * half / height))
        parts.append((frame, tuple(boxes), None))
    return parts


def _crops(scan: _Scan, card: Nodules, balls: list[_Ball], label: int) -> list[_Part]:
    """Squares around candidates, moved inside the slice where they would leave it."""
    slices, rows, columns = scan.volume.shape
    parts: set[_Part] = set()
    for ball in balls:
        frame, row, column = (round(at) for at in scan.place(ball))
        if not 0 <= frame < slices or (label == 0 and not scan.clear(ball, card.clearance)):
            continue
        top = min(max(row - card.crop // 2, 0), max(rows - card.crop, 0))
        left = min(max(column - card.crop // 2, 0), max(columns - card.crop, 0))
        parts.add((frame, (), (top, left, card.crop, card.crop)))
    return sorted(parts)


def _samples(scan: _Scan, parts: list[_Part], tree: Tree, label: int) -> list[Sample]:
    series = PurePosixPath(scan.name).stem
    return [
        Sample(
            id=f"{scan.name}#{frame:03d}" + (f"@{','.join(map(str, crop))}" if crop else ""),
            path=tree.root / scan.name,
            frame=frame,
            patient=series,
            study=series,
            label=label,
            boxes=boxes,
            crop=crop,
        )
        for frame, boxes, crop in parts
    ]
