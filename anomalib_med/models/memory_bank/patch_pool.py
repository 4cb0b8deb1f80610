"""Patches that stream in and never fill more than a given memory: coresets of shards, merged.

Har-Peled and Mazumdar, "On Coresets for k-Means and k-Median Clustering", STOC 2004: the union of coresets of the parts
is a coreset of the whole, and can be reduced again.
"""

from collections.abc import Callable

import torch


def capacity(megabytes: float, channels: int) -> int:
    """How many patches of float16 features fit in so many MiB, at least 4: so many can be reduced to a quarter."""
    return max(4, int(megabytes * 2**20 / (2 * channels)))


class PatchPool:
    """Holds so many patches of so many channels; a shard that fills it is replaced by its coreset.

    When the coresets fill half of the pool, they are reduced once more: seldom, so the error does not pile up. `reduce`
    chooses the coreset of patches ``(P, D)``, at most a quarter of the capacity.
    """

    def __init__(self, capacity: int, channels: int, reduce: Callable[[torch.Tensor], torch.Tensor]) -> None:
        # Memory that no patch is written to is never taken from the system.
        self._rows = torch.empty(capacity, channels, dtype=torch.float16)
        self._reduce = reduce
        self._coresets = 0  # rows at the front that stand for shards
        self._filled = 0

    @property
    def patches(self) -> torch.Tensor:
        """What it holds, float16 ``(P, D)``."""
        return self._rows[: self._filled]

    def add(self, patches: torch.Tensor) -> None:
        """Take patches ``(P, D)``."""
        while len(patches):
            if self._filled == len(self._rows):
                self._replace(self._coresets)
                if self._coresets > len(self._rows) // 2:
                    self._replace(0)
            taken = patches[: len(self._rows) - self._filled]
            self._rows[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            patches = patches[len(taken) :]

    def _replace(self, start: int) -> None:
        kept = self._reduce(self._rows[start : self._filled])
        self._coresets = self._filled = start + len(kept)
        self._rows[start : self._filled] = kept
