"""NIfTI volumes with a table of nodules as boxes in world coordinates (DLCS) to slices."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anomalib_med.datasets.layout.card import Cubes
from anomalib_med.datasets.layout.rows import Row, check_columns, compiled, fields, fill, matches
from anomalib_med.datasets.layout.spacing import has_content, spaced
from anomalib_med.datasets.layout.tree import Tree
from anomalib_med.datasets.readers import nifti, read
from anomalib_med.errors import InputError, ReadError
from anomalib_med.records import Box, Sample

_STRAIGHT = 0.99  # cosine between an axis of the volume and one of the patient
_LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])


@dataclass(frozen=True, slots=True)
class _Nodule:
    """Centre ``(column, row, slice)`` and size in pixels and slices."""

    centre: np.ndarray
    size: np.ndarray

    def cut(self, frame: int) -> bool:
        """Whether it reaches into a slice."""
        return bool(abs(frame - self.centre[2]) <= max(self.size[2] / 2, 0.5))

    def box(self) -> Box:
        """Its outline on a slice. Pixel centres are whole numbers in world coordinates, pixel edges in boxes."""
        # An affine has the precision of float32, and a box that reaches a millionth too far covers a pixel more.
        left, top = np.round(self.centre[:2] + 0.5 - self.size[:2] / 2, 3)
        width, height = np.round(self.size[:2], 3)
        return float(left), float(top), float(width), float(height)


def cube_samples(card: Cubes, tree: Tree) -> tuple[list[Sample], list[Sample]]:
    """The samples to train on and those to test, each in the order of their ids."""
    rows, table = tree.table(card.table)
    if rows:
        templates = [*card.volume, card.patient]
        used = {name for template in templates for name in fields(template)}
        check_columns(rows, {*card.centre, *card.size, *card.train, *card.test, *used}, table)
    sides: dict[str, list[Sample]] = {"train": [], "test": []}
    for side, where in (("train", card.train), ("test", card.test)):
        scans: dict[tuple[str, ...], list[Row]] = defaultdict(list)
        for row in rows:
            if matches(row, compiled(where)):
                scans[tuple(fill(template, row) for template in card.volume)].append(row)
        absent = []
        for wanted, nodules in scans.items():
            found = tree.find(wanted)
            if found is None:
                absent.append(wanted)
            else:
                sides[side] += _scan_samples(found, nodules, card, tree, table, abnormal=side == "test")
        if rows and not scans:
            conditions = ", ".join(f"{column} is {text}" for column, text in where.items())
            tree.missing.append(f"no row of {table} in which {conditions}")
        if absent:
            first = " or ".join(str(tree.root / path) for path in absent[0])
            tree.missing.append(f"{len(absent)} of {len(scans)} volumes that {table.name} lists, the first is {first}")
    train, test = (sorted(samples, key=lambda sample: sample.id) for samples in sides.values())
    return train, test


def _scan_samples(name: str, rows: list[Row], card: Cubes, tree: Tree, table: Path, *, abnormal: bool) -> list[Sample]:
    path = tree.root / name
    try:
        affine, slices = nifti.slice_affine(path), nifti.count_frames(path)
        rows_columns = read(Sample(name, path, 0)).shape
    except ReadError as error:
        tree.missing.append(str(error))
        return []
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    if (np.abs(np.diag(affine)[:3]) < _STRAIGHT * steps).any():
        raise InputError(f"{path}: its slices are not axial (the affine is turned): leave its rows out of {table}")
    size = (*rows_columns[::-1], slices)
    nodules = [_nodule(row, card, affine, steps, size, table) for row in rows]
    patient = fill(card.patient, rows[0])

    def sample(frame: int, boxes: tuple[Box, ...], label: int) -> Sample:
        return Sample(f"{name}#{frame:03d}", path, frame, patient, label=label, boxes=boxes)

    reach = [(n.centre[2], card.clearance / steps[2] + n.size[2] / 2) for n in nodules]
    free = [frame for frame in range(slices) if all(abs(frame - at) >= far for at, far in reach)]
    samples = spaced(
        ((frame * float(steps[2]), sample(frame, (), 0)) for frame in free), card.gap, lambda s: has_content(s, card)
    )
    if abnormal:
        for frame in sorted({round(float(n.centre[2])) for n in nodules}):
            samples.append(sample(frame, tuple(n.box() for n in nodules if n.cut(frame)), 1))
    return samples


def _nodule(
    row: Row, card: Cubes, affine: np.ndarray, steps: np.ndarray, volume: tuple[int, ...], table: Path
) -> _Nodule:
    try:
        world, size = (np.array([float(row[name]) for name in names]) for names in (card.centre, card.size))
    except ValueError as error:
        raise InputError(f"{table}: the place of a nodule is not six numbers ({error}): copy it again") from error
    centre = (np.linalg.inv(affine) @ np.append(world * _LPS_TO_RAS, 1.0))[:3]
    if (centre < -0.5).any() or (centre > np.array(volume) - 0.5).any():
        where = ", ".join(f"{value:g}" for value in world)
        raise InputError(f"{table}: the nodule at {where} mm (LPS) lies outside its volume: not the table meant")
    return _Nodule(centre, size / steps)
