"""Volumes with a mask volume to slices with and without lesion."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from anomalib_med.datasets.layout.card import Slices
from anomalib_med.datasets.layout.tree import Tree
from anomalib_med.datasets.readers.nifti import read_volume
from anomalib_med.errors import ReadError
from anomalib_med.records import Sample


def slice_samples(sample: Sample, card: Slices, tree: Tree) -> list[Sample]:
    """The slices of a volume that its label asks for; a volume that cannot be read is noted as missing."""
    if sample.path is None or sample.mask is None:
        return []
    values = sample.lesion.values if sample.lesion else ()
    try:
        changed = (sample.path.stat().st_mtime_ns, sample.mask.stat().st_mtime_ns)
        frames = _frames(sample.path, sample.mask, values, card, changed)[sample.label or 0]
    except ReadError as error:
        tree.missing.append(str(error))
        return []
    return [
        replace(
            sample,
            id=f"{sample.id}#{frame:03d}",
            frame=frame,
            patient=sample.patient,
            mask=sample.mask if sample.label else None,
        )
        for frame in frames[:: card.every]
    ]


@lru_cache(maxsize=4096)
def _frames(
    path: Path, mask: Path, values: tuple[int, ...], card: Slices, changed: tuple[int, int]
) -> tuple[list[int], list[int]]:
    """Slices without and with lesion; both are asked for, one after the other, and volumes are large."""
    classes = read_volume(mask)
    lesion = (np.isin(np.rint(classes), values) if values else classes > 0).sum(axis=(1, 2))
    kept = np.ones(len(lesion), np.bool_)
    if card.min_content > 0:
        low, high = card.content
        pixels = read_volume(path)
        if len(pixels) != len(lesion):
            raise ReadError(f"{mask}: {len(lesion)} axial slices, the image {path} has {len(pixels)}: copy both again")
        kept = ((pixels >= low) & (pixels <= high)).mean(axis=(1, 2)) >= card.min_content
    normal = np.flatnonzero(kept & (lesion == 0))
    return normal.tolist(), np.flatnonzero(kept & (lesion >= card.min_lesion)).tolist()
