"""ScoreCounts: how often each float32 score occurs, in memory that does not grow with the number of pixels.

Scores are held as integers that keep the order of floats. As long as no more than `capacity` distinct values have been
seen, the counts are exact. Beyond that the lowest bits of all integers are dropped, one at a time, until the values
fit: neighbours that agree in their upper bits then share one count. The bits lost are known, and so is the most that a
metric can have changed (:attr:`anomalib_med.evaluation.pixel_metrics.PixelCurve.aupro_error`).
"""

import numpy as np

CAPACITY = 1 << 22
_BUFFER = 1 << 24  # pixels sorted at a time


class ScoreCounts:
    """Counts of normal pixels, counts of abnormal pixels and sums of their weights, by score.

    `capacity` is the largest number of distinct values held of each kind; each costs about 30 bytes.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self.dropped_bits = 0
        self._normal = _Tally(1)
        self._abnormal = _Tally(2)
        self._waiting: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._waiting_pixels = 0

    def add(self, normal: np.ndarray, abnormal: np.ndarray, weights: np.ndarray) -> None:
        """Count the finite float32 scores ``(n,)`` and ``(m,)`` of one image, the abnormal with weights ``(m,)``."""
        self._waiting.append((to_keys(normal), to_keys(abnormal), np.asarray(weights, float)))
        self._waiting_pixels += normal.size + abnormal.size
        if self._waiting_pixels >= _BUFFER:
            self._flush()

    def table(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Scores ``(T,)`` descending, and at each the normal pixels, the abnormal pixels and their weights."""
        self._flush()
        both = np.sort(np.concatenate([self._normal.keys, self._abnormal.keys]))  # many times faster than np.union1d
        keys = _summed(both, None)[0]
        columns = np.zeros((3, len(keys)))
        columns[0, np.searchsorted(keys, self._normal.keys)] = self._normal.columns[0]
        columns[1:, np.searchsorted(keys, self._abnormal.keys)] = self._abnormal.columns
        normal, abnormal, weights = columns[:, ::-1]
        return to_scores(keys[::-1] << np.uint32(self.dropped_bits)), normal, abnormal, weights

    def _flush(self) -> None:
        if self._waiting:
            normal, abnormal, weights = (np.concatenate(parts) for parts in zip(*self._waiting, strict=True))
            self._waiting, self._waiting_pixels = [], 0
            normal >>= np.uint32(self.dropped_bits)
            normal.sort()
            self._normal.merge(normal, None)
            abnormal >>= np.uint32(self.dropped_bits)
            order = np.argsort(abnormal)
            self._abnormal.merge(abnormal[order], np.stack([np.ones(len(order)), weights[order]]))
        while max(len(self._normal.keys), len(self._abnormal.keys)) > self.capacity:
            self.dropped_bits += 1
            self._normal.halve()
            self._abnormal.halve()


class _Tally:
    """Sorted distinct keys ``(k,)`` and their sums ``(columns, k)``."""

    def __init__(self, columns: int) -> None:
        self.keys = np.empty(0, np.uint32)
        self.columns = np.empty((columns, 0))

    def merge(self, keys: np.ndarray, columns: np.ndarray | None) -> None:
        """Add sorted keys, which may repeat; without `columns` each counts one."""
        keys, columns = _summed(keys, columns)
        if len(self.keys):
            # Places of both in the merged order, without sorting what is sorted already.
            at = np.searchsorted(self.keys, keys)
            held = at < len(self.keys)
            held[held] = self.keys[at[held]] == keys[held]
            self.columns[:, at[held]] += columns[:, held]
            keys, columns, at = keys[~held], columns[:, ~held], at[~held]
            self.keys = np.insert(self.keys, at, keys)
            self.columns = np.insert(self.columns, at, columns, axis=1)
        else:
            self.keys, self.columns = keys, columns

    def halve(self) -> None:
        """Drop the lowest bit of every key."""
        self.keys, self.columns = _summed(self.keys >> np.uint32(1), self.columns)


def _summed(keys: np.ndarray, columns: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Distinct ones of sorted keys and the sums of their columns."""
    if not len(keys):
        return keys, np.empty((1 if columns is None else len(columns), 0))
    starts = np.concatenate([[0], np.flatnonzero(keys[1:] != keys[:-1]) + 1])
    if columns is None:
        return keys[starts], np.diff(starts, append=len(keys)).astype(float)[None]
    return keys[starts], np.add.reduceat(columns, starts, axis=1)


def to_keys(scores: np.ndarray) -> np.ndarray:
    """uint32 integers in the order of float32 scores; 0 and -0 have the same."""
    bits = (scores + np.float32(0)).view(np.uint32)
    negative = (bits.view(np.int32) >> 31).view(np.uint32)
    keys: np.ndarray = bits ^ (negative | np.uint32(0x80000000))
    return keys


def to_scores(keys: np.ndarray) -> np.ndarray:
    """The float32 scores of `to_keys`."""
    positive = (keys.view(np.int32) >> 31).view(np.uint32)
    bits: np.ndarray = keys ^ (~positive | np.uint32(0x80000000))
    return bits.view(np.float32)
