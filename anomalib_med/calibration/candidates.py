"""Candidates: connected regions of a volume's anomaly map, found slice by slice, with their place in the patient.

Regions that run together are parted by thresholds above one another, as in the tree of nested components of Salembier,
Oliveras and Garrido ("Antiextensive connected operators", IEEE TIP 7, 1998).
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np

from anomalib_med.calibration.rule import VolumeRule
from anomalib_med.records import Candidate, Volume

_RANKS = 64
LEVELS = 24
RISE = 1.1  # from one threshold to the next, as height above the background
CORE = 0.75  # of the way from the lowest threshold to the peak: the centre is that of what lies above


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """A region in one slice above one threshold."""

    level: int  # number of the threshold
    below: int  # number of the part that it lies in above the next lower threshold
    pixels: int
    values: np.ndarray  # some of its values, evenly spread by rank, the highest first
    sums: np.ndarray  # weight, and weighted sum of the places in mm
    place: tuple[int, int, int]  # slice, row and column of the highest value
    peak: float  # the highest value


class CandidateFinder:
    """Takes the maps of a volume's slices in their order and holds one of them at a time.

    Pixels above the threshold belong together where they touch in a slice (8 neighbours) or lie over one another in
    neighbouring slices. Such a region is parted where, above a higher threshold, it falls into pieces of which two or
    more rise by a further threshold: each is then a candidate, at the threshold at which it stands alone.

    The slices of `volume` come in ascending order. The lowest threshold is that of `rule`; the others rise from it by a
    tenth of its height above the background each: 24 in all, up to nine times the lowest. Without a background no
    region is parted.
    """

    def __init__(self, volume: Volume, rule: VolumeRule) -> None:
        assert rule.threshold is not None
        self.volume, self.rule = volume, rule
        height = 0.0 if rule.background is None else rule.threshold - rule.background
        count = LEVELS if height > 0 else 1
        self.thresholds = [rule.threshold + height * (RISE**k - 1) for k in range(count)]
        self._places = np.zeros((len(volume.samples), 3)) if volume.places is None else volume.places
        self._steps = np.zeros((3, 2)) if volume.steps is None else volume.steps
        self._index = {sample.id: i for i, sample in enumerate(volume.samples)}
        self._parts: list[_Part] = []
        self._touching: list[np.ndarray] = []  # numbers of two parts that lie over one another, (2, n)
        self._last: tuple[int, list[np.ndarray]] = (-2, [])  # slot, and by level the numbers of its parts

    def add(self, id: str, map: np.ndarray) -> None:
        """Take the map float ``(H, W)`` of one slice."""
        index = self._index[id]
        slot = self.volume.slots[index]
        before = self._last[1] if self._last[0] == slot - 1 else []
        levels: list[np.ndarray] = []  # numbers of the parts, -1 where there is none
        for level, threshold in enumerate(self.thresholds):
            count, labels = cv2.connectedComponents((map > threshold).astype(np.uint8), connectivity=8)
            if count == 1:
                break
            first = len(self._parts)
            self._measure(index, map, labels, count, levels)
            numbers = np.where(labels > 0, labels + (first - 1), -1)
            if level < len(before) and before[level].shape == numbers.shape:
                both = (numbers >= 0) & (before[level] >= 0)
                pairs = np.unique(numbers[both].astype(np.int64) << 32 | before[level][both])
                self._touching.append(np.stack([pairs >> 32, pairs & 0xFFFFFFFF]))
            levels.append(numbers)
        self._last = (slot, levels)

    def found(self) -> tuple[Candidate, ...]:
        """All regions, the highest peak first."""
        if not self._parts:
            return ()
        # Imported where it is used: it takes a while, and radiographs have no candidates.
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        one, other = np.concatenate([np.empty((2, 0), np.int64), *self._touching], axis=1)
        size = len(self._parts)
        _, region = connected_components(coo_array((np.ones(one.size), (one, other)), (size, size)), directed=False)
        first: np.ndarray = np.unique(region, return_index=True)[1]
        roots = first[region].tolist()  # the region of each part, named by its first part
        regions: dict[int, list[int]] = {root: [] for root in roots}
        for part, root in enumerate(roots):
            regions[root].append(part)
        peaks = {root: max(self._parts[part].peak for part in parts) for root, parts in regions.items()}
        above: dict[int, list[int]] = {root: [] for root in regions}
        for root in regions:
            if self._parts[root].level:
                above[roots[self._parts[root].below]].append(root)
        lowest = [root for root in regions if not self._parts[root].level]
        alone = [piece for root in lowest for piece in self._parted(root, above, peaks)]
        candidates = [self._candidate(regions[root], regions[self._core(root, above, peaks)]) for root in alone]
        candidates.sort(key=lambda c: (-c.peak, c.at))
        return tuple(replace(candidate, rank=rank) for rank, candidate in enumerate(candidates, 1))

    def _parted(self, region: int, above: dict[int, list[int]], peaks: dict[int, float]) -> list[int]:
        """The regions that one falls into, itself where it stays whole."""
        level = self._parts[region].level
        if level + 2 >= len(self.thresholds):
            return [region]
        rising = [root for root in above[region] if peaks[root] > self.thresholds[level + 2]]
        pieces = [piece for root in rising for piece in self._parted(root, above, peaks)]
        return pieces if len(pieces) > 1 else [region]

    def _core(self, region: int, above: dict[int, list[int]], peaks: dict[int, float]) -> int:
        """The part of a region with its peak that lies above the highest threshold below `CORE` of its height."""
        height = self.thresholds[0] + CORE * (peaks[region] - self.thresholds[0])
        while self._parts[region].level + 1 < len(self.thresholds):
            if self.thresholds[self._parts[region].level + 1] > height:
                break
            region = max(above[region], key=lambda root: peaks[root])
        return region

    def _measure(self, index: int, map: np.ndarray, labels: np.ndarray, count: int, lower: list[np.ndarray]) -> None:
        """Take down the parts of a slice above the next threshold; `lower` are the numbers of those below it."""
        level = len(lower)
        rows, columns = np.nonzero(labels)
        which, values = labels[rows, columns], map[rows, columns].astype(float)
        weights = values - self.thresholds[level]
        pixels = np.bincount(which, minlength=count)
        totals = [np.bincount(which, w, minlength=count) for w in (weights, weights * columns, weights * rows)]
        order = np.lexsort((-values, which))
        for label, mine in enumerate(np.split(order, np.cumsum(pixels[1:])[:-1]), start=1):
            some = values[mine[np.linspace(0, len(mine) - 1, min(len(mine), _RANKS)).astype(int)]].astype(np.float32)
            total, x, y = (float(t[label]) for t in totals)
            row, column = int(rows[mine[0]]), int(columns[mine[0]])
            below = int(lower[-1][row, column]) if lower else -1
            sums = np.array([total, *(total * self._places[index] + self._steps @ [x, y])])
            self._parts.append(_Part(level, below, len(mine), some, sums, (index, row, column), float(some[0])))

    def _candidate(self, parts: list[int], inner: list[int]) -> Candidate:
        own = [self._parts[part] for part in parts]
        best = max(own, key=lambda part: part.peak)
        index, row, column = best.place
        middle = (self.thresholds[0] + best.peak) / 2
        core = sum(part.pixels * float((part.values >= middle).mean()) for part in own)
        total = np.sum([self._parts[part].sums for part in inner], axis=0)
        x, y, z = map(float, total[1:] / total[0])
        volume, pixel_ml = self.volume, self.volume.pixel_ml
        centre = None if volume.places is None else (x, y, z)
        ml = None if pixel_ml is None else core * pixel_ml
        at = (volume.samples[index].id, row, column)
        p, slices = self.rule.peak_p_value(best.peak), len({part.place[0] for part in own})
        return Candidate(volume.id, volume.patient, 0, centre, ml, best.peak, p, at, slices)
