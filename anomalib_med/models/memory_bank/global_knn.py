"""Nearest normal images by pooled features: one vector an image, one distance an image.

Bergman, Cohen and Hoshen, "Deep Nearest Neighbor Anomaly Detection", 2020, https://arxiv.org/abs/2002.10445.
"""

from collections.abc import Mapping

import torch
from pydantic import Field, JsonValue

from anomalib_med.models.base import BankConfig, Detector
from anomalib_med.models.memory_bank.description import TINY, Gallery, contributions, describe, describe_batch
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
        """Settings of the nearest neighbours."""

        neighbours: int = Field(5, ge=1)
        """Normal images whose distances are averaged. The default is that of SPADE's re-implementation."""

        standardise: bool = True
        """Whether each number of the description is divided by its standard deviation among the normals. The paper
        takes the plain Euclidean distance."""

    config: Config
    _normals: Gallery

    def fit(self, frames: Frames) -> None:
        """Describe the normals."""
        described = [describe_batch(self.features(b.x), b.valid) for b in self.normals(frames)]
        self.load_state({"described": torch.cat(described)}, {})

    def anomaly_map(self, x: torch.Tensor) -> torch.Tensor:
        """What each cell adds to the distance, ``(B, h, w)``, on the grid of the finest layer."""
        self.check_fitted()
        return torch.stack([self._map(grid) for grid in self.features(x)])

    def image_score(self, x: torch.Tensor, maps: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Mean distances ``(B,)`` of the descriptions to those of the nearest normals."""
        self.check_fitted()
        return self._normals.scores(self.features(x), valid)

    def load_state(self, tensors: Mapping[str, torch.Tensor], extra: Mapping[str, JsonValue]) -> None:
        """Take the descriptions of the normals, float32 ``(N, 2 D)``."""
        super().load_state(tensors, extra)
        c = self.config
        self._normals = Gallery(self.learnt("described"), c.neighbours, standardise=c.standardise)

    def _map(self, grid: torch.Tensor) -> torch.Tensor:
        own = describe(grid.flatten(1))
        distances, rows = self._normals.nearest(own)
        # A distance d is the difference of two descriptions along its own direction, difference / d.
        normals = self._normals.described[rows]
        directions = (own - normals) / self._normals.scale.square() / distances.clamp_min(TINY)[:, None]
        return contributions(grid, directions.mean(0)) - (directions * normals).sum(1).mean()
