"""Slices are compared with normal slices of their own height: the height is one more column of their patches."""

import math
from abc import abstractmethod
from collections.abc import Iterator
from itertools import chain

import torch
from pydantic import Field

from anomalib_med.errors import FitError
from anomalib_med.models.base import Detector
from anomalib_med.models.memory_bank.neighbours import Engine, NearestNeighbours, SearchConfig
from anomalib_med.preprocessing import Batch


class HeightConfig(SearchConfig):
    """Settings of a detector that compares slices with those of their own height."""

    height: float = Field(2.0, gt=0)
    """How much the height of a slice in its volume or lungs counts, where the preprocessing finds heights: from 0 to 1
    it is worth so many standard deviations of the features. A slice of unknown height is compared with all others."""


def with_heights(batches: Iterator[Batch]) -> tuple[bool, Iterator[Batch]]:
    """Whether the heights of the normals are known, and their batches; a FitError where only some are known."""
    first = next(batches)
    known = bool(torch.isfinite(first.heights).all())

    def checked() -> Iterator[Batch]:
        for batch in chain([first], batches):
            if known != bool(torch.isfinite(batch.heights).all()):
                raise FitError("the height of some normals is known and of others not: fit them apart")
            yield batch

    return known, checked()


class HeightDetector(Detector):
    """A detector that looks at the images one after the other, each at its height."""

    uses_height = True
    config: HeightConfig
    _search: "HeightSearch"

    def anomaly_map(self, x: torch.Tensor, heights: torch.Tensor | None = None) -> torch.Tensor:
        """Distances ``(B, h, w)`` to the bank, and what heights add, on the finest layer's grid."""
        self.check_fitted()
        each = zip(self.features(x), _listed(x, heights), strict=True)
        return torch.stack([self._map(grid, height) for grid, height in each])

    def image_score(
        self, x: torch.Tensor, maps: torch.Tensor, valid: torch.Tensor, heights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Scores ``(B,)`` from inputs, their maps and valid areas, and what heights add."""
        return self._score(x, maps, valid, _listed(x, heights))

    map_at, score_at = anomaly_map, image_score

    @abstractmethod
    def _map(self, grid: torch.Tensor, height: float) -> torch.Tensor:
        """Anomaly map ``(h, w)`` of features ``(D, h, w)`` of a slice at a height, NaN where it is not known."""

    @abstractmethod
    def _score(self, x: torch.Tensor, maps: torch.Tensor, valid: torch.Tensor, heights: list[float]) -> torch.Tensor:
        """Scores ``(B,)``."""


def _listed(x: torch.Tensor, heights: torch.Tensor | None) -> list[float]:
    return [math.nan] * len(x) if heights is None else heights.tolist()


def add_height(patches: torch.Tensor, height: float) -> torch.Tensor:
    """Patches ``(P, D)`` of a slice with its height as the last column."""
    return torch.cat([patches, torch.full_like(patches[:, :1], height)], 1)


class HeightSearch:
    """Search among patches ``(M, D)`` whose last column may be a weighed height, without it where it is NaN."""

    def __init__(self, bank: torch.Tensor, engine: Engine, *, with_height: bool) -> None:
        self.bank, self._engine, self._with_height = bank, engine, with_height
        self._search = NearestNeighbours(bank, engine)
        self._of_all_heights: NearestNeighbours | None = None  # made when it is first needed

    def search(self, patches: torch.Tensor, k: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Distances and rows ``(P, k)`` of the patches of the bank nearest to those ``(P, D)`` of one slice."""
        known = self.columns(patches)
        if known == patches.shape[1]:
            return self._search.search(patches, k)
        if self._of_all_heights is None:
            self._of_all_heights = NearestNeighbours(self.bank[:, :known].contiguous(), self._engine)
        return self._of_all_heights.search(patches[:, :known], k)

    def columns(self, patches: torch.Tensor) -> int:
        """How many columns of the patches of one slice count: all, or all but its unknown height."""
        return patches.shape[1] - int(self._with_height and bool(patches[0, -1].isnan()))
