"""DLCS: NIfTI volumes with a table of nodules as boxes in world coordinates (mm, LPS) to slices."""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anomalib_med.datasets.layout.manifest import run_alone
from anomalib_med.datasets.layout.rows import Condition, Row, fill
from anomalib_med.datasets.layout.slices import has_lung, spaced
from anomalib_med.datasets.layout.tree import Tree
from anomalib_med.datasets.readers import nifti, read
from anomalib_med.datasets.scans import LPS_TO_RAS
from anomalib_med.errors import InputError, ReadError
from anomalib_med.records import Box, Sample

TABLE = ("DLCSD24_Annotations.csv", "Zenodo_metadata/DLCSD24_Annotations.csv")
VOLUME = ("{ct_nifti_file}", "*/{ct_nifti_file}")
SPLITS = {"train": "train.*", "test": "(val|test).*"}
CENTRE, SIZE = ("coordX", "coordY", "coordZ"), ("w", "h", "d")
CLEARANCE = 15.0  # mm along the patient's axis between a normal slice and the next nodule
GAP = 10.0  # mm between two normal slices of a scan
STRAIGHT = 0.99  # cosine between an axis of the volume and one of the patient


@dataclass(frozen=True, slots=True)
class _Nodule:
    """Centre ``(column, row, slice)`` and size in pixels and slices."""

    centre: np.ndarray
    size: np.ndarray

    def is_cut_by(self, frame: int) -> bool:
        return bool(abs(frame - self.centre[2]) <= max(self.size[2] / 2, 0.5))

    def box(self) -> Box:
        """Its outline on a slice. Pixel centres are whole numbers in world coordinates, pixel edges in boxes."""
        # An affine has the precision of float32, and a box that reaches a millionth too far covers a pixel more.
        left, top = np.round(self.centre[:2] + 0.5 - self.size[:2] / 2, 3)
        width, height = np.round(self.size[:2], 3)
        return float(left), float(top), float(width), float(height)


def slices(tree: Tree) -> Iterator[Row]:
    """Normal slices of every scan, and in test the slices through the middle of nodules."""
    rows, table = tree.table(TABLE, ("ct_nifti_file", "patient-id", "benchmark_split", *CENTRE, *SIZE))
    for split, text in SPLITS.items():
        where = Condition({"benchmark_split": text})
        scans: dict[tuple[str, ...], list[Row]] = defaultdict(list)
        for row in where.matched(rows):
            scans[tuple(fill(template, row) for template in VOLUME)].append(row)
        for wanted, nodules in scans.items():
            if name := tree.find(wanted):
                yield from _slices_of(name, nodules, split, table, tree)
        if rows and not scans:
            tree.missing.append(f"no row of {table} in which {where.text}")
        tree.note_absent([wanted for wanted in scans if tree.find(wanted) is None], len(scans), "volumes", table)


def _slices_of(name: str, rows: list[Row], split: str, table: Path, tree: Tree) -> Iterator[Row]:
    path = tree.root / name
    try:
        affine, depth = nifti.slice_affine(path), nifti.count_frames(path)
        height, width = read(Sample(name, path, 0)).shape
    except ReadError as error:
        tree.missing.append(str(error))
        return
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    if (np.abs(np.diag(affine)[:3]) < STRAIGHT * steps).any():
        raise InputError(f"{path}: its slices are not axial (the affine is turned): leave its rows out of {table}")
    nodules = [_nodule(row, affine, steps, (width, height, depth), table) for row in rows]
    known = {"split": split, "path": name, "patient": rows[0]["patient-id"]}
    reach = [(n.centre[2], CLEARANCE / steps[2] + n.size[2] / 2) for n in nodules]
    free = [frame for frame in range(depth) if all(abs(frame - at) >= far for at, far in reach)]
    places = ((frame * float(steps[2]), frame) for frame in free)
    for frame in spaced(places, GAP, lambda frame: has_lung(Sample(name, path, frame))):
        yield known | {"frame": str(frame), "label": "0"}
    if split == "test":
        for frame in sorted({round(float(n.centre[2])) for n in nodules}):
            boxes = json.dumps([n.box() for n in nodules if n.is_cut_by(frame)])
            yield known | {"frame": str(frame), "label": "1", "boxes": boxes}


def _nodule(row: Row, affine: np.ndarray, steps: np.ndarray, volume: tuple[int, ...], table: Path) -> _Nodule:
    try:
        world, size = (np.array([float(row[name]) for name in names]) for names in (CENTRE, SIZE))
    except ValueError as error:
        raise InputError(f"{table}: the place of a nodule is not six numbers ({error}): copy it again") from error
    centre = (np.linalg.inv(affine) @ np.append(world * LPS_TO_RAS, 1.0))[:3]
    if (centre < -0.5).any() or (centre > np.array(volume) - 0.5).any():
        where = ", ".join(f"{value:g}" for value in world)
        raise InputError(f"{table}: the nodule at {where} mm (LPS) lies outside its volume: not the table meant")
    return _Nodule(centre, size / steps)


if __name__ == "__main__":
    run_alone(slices)
