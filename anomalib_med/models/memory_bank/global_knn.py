"""Nearest normal images by pooled features: one vector an image, one distance an image.

Bergman, Cohen and Hoshen, "Deep Nearest Neighbor Anomaly Detection", 2020, https://arxiv.org/abs/2002.10445.
"""

from collections.abc import Mapping

import torch
from pydantic import Field, JsonValue

from anomalib_med.errors import FitError
from anomalib_med.models.base import BankConfig, Detector
from anomalib_med.models.memory_bank.description import (
    TINY,
    contributions,
    describe,
    describe_batch,
    distances_to,
    spread,
)
from anomalib_med.preprocessing import Frames


class GlobalKNN(Detector):
    """Compares an image as a whole with the normal images that are most alike.

    An image is described by the mean and the standard deviation of its features over the valid cells. The score is the
    mean distance of its description to those of the nearest normals. The anomaly map shows how much each cell adds to
    that distance: the mean of a map is the distance itself.
    """

    name = "knn"
    title = "Deep nearest neighbours (Bergman et al., 2020)"

    class Config(BankConfig):
        """Settings of the nearest neighbours. `pooling` is of no use: the score is not taken from the map.

        Parameters
        ----------
        neighbours
            Normal images whose distances are averaged.
        standardise
            Divide each number of the description by its standard deviation among the normals.
        """

        neighbours: int = Field(5, ge=1)
        standardise: bool = True

    config: Config

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings)
        self._described = torch.empty(0)  # (N, 2 D), a description of each normal

    def fit(self, frames: Frames) -> None:
        """Describe the normals.

        Raises
        ------
        FitError
            Where no image could be read.
        """
        extractor = self.extractor
        described = [describe_batch(self.features(b.x), b.valid) for b in frames.batches(extractor.batch_size)]
        if not described:
            raise FitError("no normal image could be read: see the failures listed, or check the folder")
        self._set(torch.cat(described))

    def anomaly_map(self, x: torch.Tensor) -> torch.Tensor:
        """What each cell adds to the distance, ``(B, h, w)``, on the grid of the finest layer."""
        self._check_fitted()
        return torch.stack([self._map(grid) for grid in self.features(x)])

    def image_score(self, x: torch.Tensor, maps: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Mean distances ``(B,)`` of the descriptions to those of the nearest normals."""
        self._check_fitted()
        return torch.stack([self._nearest(own)[0].mean() for own in describe_batch(self.features(x), valid)])

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, JsonValue]]:
        """Descriptions, float32 ``(N, 2 D)``."""
        return {"described": self._described.cpu()}, {}

    def load_state(self, tensors: Mapping[str, torch.Tensor], extra: Mapping[str, JsonValue]) -> None:
        """Take descriptions."""
        self._set(tensors["described"])

    def to(self, device: torch.device) -> "GlobalKNN":
        """Move the extractor and the descriptions."""
        super().to(device)
        if len(self._described):
            self._set(self._described)
        return self

    def _set(self, described: torch.Tensor) -> None:
        self._described = described.to(self.device)
        self._scale = spread(self._described) if self.config.standardise else torch.ones_like(self._described[0])
        self._scaled = self._described / self._scale

    def _nearest(self, own: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Distances and row numbers ``(k,)`` of the normals nearest to a description."""
        distances = distances_to(own / self._scale, self._scaled)
        values, rows = distances.topk(min(self.config.neighbours, len(distances)), largest=False)
        return values, rows

    def _map(self, grid: torch.Tensor) -> torch.Tensor:
        own = describe(grid.flatten(1))
        distances, rows = self._nearest(own)
        # A distance d is the difference of two descriptions along its own direction, difference / d.
        normals = self._described[rows]
        directions = (own - normals) / self._scale.square() / distances.clamp_min(TINY)[:, None]
        return contributions(grid, directions.mean(0)) - (directions * normals).sum(1).mean()

    def _check_fitted(self) -> None:
        if not len(self._described):
            raise FitError("the nearest neighbours are not fitted: call fit, or load a saved model")
