"""Which slices of a scan to keep: far enough from one another, with enough lung."""

from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np

from anomalib_med.datasets.layout.card import Spaced
from anomalib_med.datasets.readers import read
from anomalib_med.records import Sample

T = TypeVar("T")


def spaced(items: Iterable[tuple[float, T]], gap: float, wanted: Callable[[T], bool] = lambda _: True) -> list[T]:
    """Go through places in mm in their order, and keep what is wanted and lies `gap` from everything kept so far."""
    kept: list[tuple[float, T]] = []
    for place, item in items:
        if all(abs(place - other) >= gap for other, _ in kept) and wanted(item):
            kept.append((place, item))
    return [item for _, item in kept]


def has_content(sample: Sample, card: Spaced) -> bool:
    """Whether enough of the slice lies between the values that the card names."""
    if card.min_content <= 0:
        return True
    low, high = card.content
    pixels = read(sample).pixels
    return float(np.mean((pixels >= low) & (pixels <= high))) >= card.min_content
