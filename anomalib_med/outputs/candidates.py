"""Candidates: connected regions of a volume's anomaly map, found slice by slice, with their place in the patient."""

from dataclasses import dataclass

import cv2
import numpy as np

from anomalib_med.datasets.volumes import Volume

CANDIDATES = (
    *("volume", "patient", "rank", "x_mm", "y_mm", "z_mm", "ml", "peak", "p_value"),
    *("slice", "row", "column", "slices"),
)


_RANKS = 64


@dataclass(frozen=True, slots=True)
class Candidate:
    """One region.

    Parameters
    ----------
    centre
        x, y, z in mm (RAS: to the right, front and head of the patient), weighted by how far the map lies above the
        threshold; None where the volume does not know places.
    ml
        Volume in millilitres of what lies above the middle between threshold and peak, as maps are blurred; or None.
    peak
        Highest value of the map.
    at
        Sample id of the slice with the peak, and row and column in it.
    slices
        Number of slices it reaches through.
    """

    centre: tuple[float, float, float] | None
    ml: float | None
    peak: float
    at: tuple[str, int, int]
    slices: int


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """A region in one slice: its pixels, some of their values evenly spread by rank (the highest first), the weight and
    weighted sum of places in mm, and slice, row and column of the highest.
    """

    pixels: int
    values: np.ndarray
    sums: np.ndarray
    place: tuple[int, int, int]


class CandidateFinder:
    """Takes the maps of a volume's slices in their order and holds one of them at a time.

    Pixels above the threshold belong together where they touch in a slice (8 neighbours) or lie over one another in
    neighbouring slices.

    Parameters
    ----------
    volume
        Whose slices come.
    threshold
        Pixels above it belong to a region.
    """

    def __init__(self, volume: Volume, threshold: float) -> None:
        self.volume = volume
        self.threshold = threshold
        self._index = {sample.id: i for i, sample in enumerate(volume.samples)}
        self._parent: list[int] = []
        self._parts: list[_Part] = []
        self._last: tuple[int, np.ndarray] | None = None

    def add(self, id: str, map: np.ndarray) -> None:
        """Take the map float ``(H, W)`` of one slice."""
        index = self._index[id]
        count, labels = cv2.connectedComponents((map > self.threshold).astype(np.uint8), connectivity=8)
        first = len(self._parts)
        if count > 1:
            self._measure(index, map, labels, count)
        slot = self.volume.slots[index]
        # Numbers of the parts, -1 where there is none.
        labels = np.where(labels > 0, labels + (first - 1), -1)
        if self._last is not None and self._last[0] == slot - 1 and self._last[1].shape == labels.shape:
            both = (labels >= 0) & (self._last[1] >= 0)
            for a, b in np.unique(np.stack([labels[both], self._last[1][both]], axis=1), axis=0).tolist():
                self._join(a, b)
        self._last = (slot, labels)

    def found(self) -> list[Candidate]:
        """All regions, the highest peak first."""
        groups: dict[int, list[int]] = {}
        for part in range(len(self._parts)):
            groups.setdefault(self._root(part), []).append(part)
        return sorted((self._candidate(parts) for parts in groups.values()), key=lambda c: (-c.peak, c.at))

    def _measure(self, index: int, map: np.ndarray, labels: np.ndarray, count: int) -> None:
        rows, columns = np.nonzero(labels)
        which, values = labels[rows, columns], map[rows, columns].astype(float)
        weights = values - self.threshold
        pixels = np.bincount(which, minlength=count)
        sums = [np.bincount(which, w, minlength=count) for w in (weights, weights * columns, weights * rows)]
        order = np.lexsort((-values, which))
        for label, mine in enumerate(np.split(order, np.cumsum(pixels[1:])[:-1]), start=1):
            some = values[mine[np.linspace(0, len(mine) - 1, min(len(mine), _RANKS)).astype(int)]]
            total, x, y = (float(s[label]) for s in sums)
            place = (index, int(rows[mine[0]]), int(columns[mine[0]]))
            self._parts.append(_Part(len(mine), some, self._world(index, total, x, y), place))
            self._parent.append(len(self._parent))

    def _world(self, index: int, total: float, columns: float, rows: float) -> np.ndarray:
        """Weight, and weighted sum of the places in mm of a part."""
        places, steps = self.volume.places, self.volume.steps
        if places is None or steps is None:
            return np.array([total, 0.0, 0.0, 0.0])
        return np.array([total, *(total * places[index] + steps @ [columns, rows])])

    def _candidate(self, parts: list[int]) -> Candidate:
        own = [self._parts[part] for part in parts]
        best = max(own, key=lambda part: float(part.values[0]))
        index, row, column = best.place
        peak = float(best.values[0])
        core = sum(part.pixels * float((part.values >= (self.threshold + peak) / 2).mean()) for part in own)
        total = np.sum([part.sums for part in own], axis=0)
        centre = total[1:] / total[0]
        pixel_ml = self.volume.pixel_ml
        return Candidate(
            None if self.volume.places is None else (float(centre[0]), float(centre[1]), float(centre[2])),
            None if pixel_ml is None else core * pixel_ml,
            peak,
            (self.volume.samples[index].id, row, column),
            len({part.place[0] for part in own}),
        )

    def _root(self, part: int) -> int:
        while self._parent[part] != part:
            self._parent[part] = self._parent[self._parent[part]]
            part = self._parent[part]
        return part

    def _join(self, a: int, b: int) -> None:
        first, second = sorted((self._root(a), self._root(b)))
        self._parent[second] = first
