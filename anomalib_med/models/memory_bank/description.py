"""An image as one vector: moments of its features over the valid cells, and the detectors that compare such vectors."""

from abc import abstractmethod
from collections.abc import Mapping

import torch
from pydantic import Field, JsonValue

from anomalib_med.models.base import BankConfig, Detector
from anomalib_med.models.pooling import valid_cells

TINY = torch.finfo(torch.float32).tiny  # keeps a division by nothing from being one


def describe(features: torch.Tensor, moments: int = 2) -> torch.Tensor:
    """Moments of features ``(D, cells)``, float32 ``(moments * D,)``: mean and standard deviation.

    Skewness and the logarithm of the kurtosis make four moments, and see what fills a part of the image.
    """
    values = features.float()
    mean = values.mean(1)
    centred = values - mean[:, None]
    squares = centred.square()
    deviation = squares.mean(1).sqrt()  # torch.std gives the same at ten times the time
    if moments == 2:
        return torch.cat([mean, deviation])
    scale = deviation.clamp_min(1e-6)
    skewness = (squares * centred).mean(1) / scale**3
    kurtosis = squares.square().mean(1) / scale**4
    return torch.cat([mean, deviation, skewness, kurtosis.clamp_min(1e-6).log()])


def describe_batch(features: torch.Tensor, valid: torch.Tensor, moments: int = 2) -> torch.Tensor:
    """Descriptions, float32 ``(B, moments * D)``, of features ``(B, D, h, w)`` in the valid area ``(B, H, W)``."""
    cells = valid_cells(valid, features.shape[2:]).to(features.device)
    # One image at a time: a sum over a batch rounds differently.
    parts = zip(features, cells, strict=True)
    return torch.stack([describe(grid.flatten(1)[:, c.flatten()], moments) for grid, c in parts])


def spread(described: torch.Tensor) -> torch.Tensor:
    """Standard deviation ``(K,)`` of each number among descriptions ``(N, K)``; 1 where it does not vary."""
    deviation = described.std(0) if len(described) > 1 else torch.zeros_like(described[0])
    return torch.where(deviation > 0, deviation, torch.ones_like(deviation))


def nearest(
    own: torch.Tensor, others: torch.Tensor, count: int, apart: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Euclidean distances and rows of the `count` descriptions ``(N, K)``, or of all, nearest to another ``(K,)``.

    Those that lie `apart` ``(N,)`` from it in a further dimension are so much farther.
    """
    # From the differences themselves, in one pass over memory: with ten thousand normals a tenth of the time of
    # subtracting and taking norms.
    distances = torch.cdist(own[None], others, compute_mode="donot_use_mm_for_euclid_dist")[0]
    distances = distances if apart is None else torch.hypot(distances, apart)
    values, rows = distances.topk(min(count, len(distances)), largest=False)
    return values, rows


class GalleryConfig(BankConfig):
    """Settings of a detector whose score is the mean distance to the nearest normal images."""

    neighbours: int = Field(5, ge=1)
    """Normal images that an image is compared with, and whose distances are averaged. The default is that of
    byungjae89/SPADE-pytorch, a re-implementation of SPADE."""
    standardise: bool = True
    """Whether each number that describes an image is divided by its standard deviation among the normals. The papers
    take the plain Euclidean distance."""


class GalleryDetector(Detector):
    """A detector whose score is the mean distance to the nearest normal images; a subclass makes the map of an image.

    An image is described by the mean and the standard deviation of its features over the valid cells.
    """

    Config = GalleryConfig
    config: GalleryConfig
    _scale: torch.Tensor  # of each number of a description, (2 D,)
    _scaled: torch.Tensor  # descriptions of the normals, (N, 2 D)

    def anomaly_map(self, x: torch.Tensor) -> torch.Tensor:
        """Maps ``(B, h, w)`` on the grid of the finest layer."""
        self.check_fitted()
        return torch.stack([self._map(grid) for grid in self.features(x)])

    def image_score(self, x: torch.Tensor, maps: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Mean distances ``(B,)`` of the descriptions to those of the nearest normals."""
        self.check_fitted()
        return torch.stack([self._nearest(own)[0].mean() for own in describe_batch(self.features(x), valid)])

    def load_state(self, tensors: Mapping[str, torch.Tensor], extra: Mapping[str, JsonValue]) -> None:
        """Take the descriptions of the normals, float32 ``(N, 2 D)``."""
        super().load_state(tensors, extra)
        described = self.learnt("described")
        self._scale = spread(described) if self.config.standardise else torch.ones_like(described[0])
        self._scaled = described / self._scale

    def _nearest(self, own: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Distances and rows of the normals nearest to a description ``(2 D,)``."""
        return nearest(own / self._scale, self._scaled, self.config.neighbours)

    @abstractmethod
    def _map(self, grid: torch.Tensor) -> torch.Tensor:
        """Anomaly map ``(h, w)`` of features ``(D, h, w)``."""


def contributions(grid: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """What each cell adds to ``direction @ describe(grid)``, float32 ``(h, w)``: their mean is that number.

    A mean is the average of the cells' values, and a standard deviation s the average of their squared distances from
    the mean, divided by s: both split into cells exactly. The direction ``(2 D,)`` says how much each number that
    describes the features ``(D, h, w)`` counts.
    """
    values = grid.flatten(1).float()
    mean, deviation = describe(values).chunk(2)
    squares = (values - mean[:, None]).square() / deviation.clamp_min(TINY)[:, None]
    towards_mean, towards_deviation = direction.chunk(2)
    return (towards_mean @ values + towards_deviation @ squares).reshape(grid.shape[1:])
