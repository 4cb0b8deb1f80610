"""Which slices of a volume become samples: by its mask volume, by their content, and by the distance between them."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np

from anomalib_med.datasets.image_table import image_id
from anomalib_med.datasets.layout.card import Slices
from anomalib_med.datasets.layout.tree import Tree
from anomalib_med.datasets.readers import read
from anomalib_med.datasets.readers.nifti import read_volume
from anomalib_med.errors import ReadError
from anomalib_med.records import Sample

T = TypeVar("T")


def slice_samples(sample: Sample, card: Slices, tree: Tree) -> list[Sample]:
    """The slices of a volume that its label asks for; a volume that cannot be read is noted as missing."""
    if sample.path is None or sample.mask is None:
        return []
    try:
        changed = (sample.path.stat().st_mtime_ns, sample.mask.stat().st_mtime_ns)
        frames = _frames(sample.path, sample.mask, card, changed)[sample.label or 0]
    except ReadError as error:
        tree.missing.append(str(error))
        return []
    mask = sample.mask if sample.label else None
    return [replace(sample, id=image_id(sample.id, frame), frame=frame, mask=mask) for frame in frames[:: card.every]]


@lru_cache(maxsize=4096)
def _frames(path: Path, mask: Path, card: Slices, changed: tuple[int, int]) -> tuple[list[int], list[int]]:
    """Slices without and with lesion; both are asked for, one after the other, and volumes are large."""
    lesion = (read_volume(mask) > 0).sum(axis=(1, 2))
    kept = np.ones(len(lesion), np.bool_)
    if card.min_content > 0:
        pixels = read_volume(path)
        if len(pixels) != len(lesion):
            raise ReadError(f"{mask}: {len(lesion)} axial slices, the image {path} has {len(pixels)}: copy both again")
        kept = content(pixels, card.content) >= card.min_content
    normal = np.flatnonzero(kept & (lesion == 0))
    return normal.tolist(), np.flatnonzero(kept & (lesion >= card.min_lesion)).tolist()


def content(slices: np.ndarray, values: tuple[float, float]) -> np.ndarray:
    """Share of each slice ``(..., H, W)`` that lies between two values."""
    return np.asarray(((slices >= values[0]) & (slices <= values[1])).mean(axis=(-2, -1)))


def has_lung(sample: Sample) -> bool:
    """Whether at least 5 % of a CT slice lies between -950 and -600 HU."""
    return bool(content(read(sample).pixels, (-950.0, -600.0)) >= 0.05)


def spaced(items: Iterable[tuple[float, T]], gap: float, wanted: Callable[[T], bool] = lambda _: True) -> list[T]:
    """Go through places in mm in their order, and keep what is wanted and lies `gap` from everything kept so far."""
    kept: list[tuple[float, T]] = []
    for place, item in items:
        if all(abs(place - other) >= gap for other, _ in kept) and wanted(item):
            kept.append((place, item))
    return [item for _, item in kept]
