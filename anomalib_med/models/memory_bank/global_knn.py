"""Nearest normal images by pooled features: one vector an image, one distance an image.

Bergman, Cohen and Hoshen, "Deep Nearest Neighbor Anomaly Detection", 2020, https://arxiv.org/abs/2002.10445.
"""

import torch

from anomalib_med.models.memory_bank.description import TINY, GalleryDetector, contributions, describe, describe_batch
from anomalib_med.preprocessing import Frames


class GlobalKNN(GalleryDetector):
    """Compares an image as a whole with the normal images that are most alike.

    The anomaly map shows how much each cell adds to the distance: the mean of a map is the distance itself.
    """

    name = "knn"
    title = "Deep nearest neighbours (Bergman et al., 2020)"

    def fit(self, frames: Frames) -> None:
        """Describe the normals."""
        described = [describe_batch(self.features(b.x), b.valid) for b in self.normals(frames)]
        self.load_state({"described": torch.cat(described)}, {})

    def _map(self, grid: torch.Tensor) -> torch.Tensor:
        own = describe(grid.flatten(1))
        distances, rows = self._nearest(own)
        # A distance d is the difference of two descriptions along its own direction, difference / d.
        normals = self.learnt("described")[rows]
        directions = (own - normals) / self._scale.square() / distances.clamp_min(TINY)[:, None]
        return contributions(grid, directions.mean(0)) - (directions * normals).sum(1).mean()
