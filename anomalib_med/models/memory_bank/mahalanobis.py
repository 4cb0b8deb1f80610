"""Mahalanobis distance of pooled features to the normal images.

Rippel, Mertens and Merhof, "Modeling the Distribution of Normal Data in Pre-Trained Deep Features for Anomaly
Detection", ICPR 2020, https://arxiv.org/abs/2005.14140.
"""

from collections.abc import Mapping

import torch
from pydantic import JsonValue

from anomalib_med.errors import FitError
from anomalib_med.models.base import BankConfig, Detector
from anomalib_med.models.memory_bank.description import TINY, contributions, describe, describe_batch, spread
from anomalib_med.preprocessing import Frames

SMALLEST_SHARE = 1e-6  # of the identity, so that numbers which never vary do not make the covariance singular


class Mahalanobis(Detector):
    """Knows how normal images differ from one another as a whole, and how far a new one is outside of that.

    An image is described by the mean and the standard deviation of its features over the valid cells. The score is the
    Mahalanobis distance of its description to the normals', with a shrunk covariance. The anomaly map shows how much
    each cell adds to that distance: the mean of a map is the distance itself.
    """

    name = "mahalanobis"
    title = "Mahalanobis distance of deep features (Rippel et al., ICPR 2020)"

    class Config(BankConfig):
        """Settings of the backbone only. `pooling` is of no use: the score is not taken from the map."""

    config: Config

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings)
        self._mean = torch.empty(0)  # (2 D,)
        self._whitening = torch.empty(0, 0)  # (2 D, 2 D), inverse Cholesky factor of the covariance

    def fit(self, frames: Frames) -> None:
        """Mean and covariance of the normals' descriptions.

        Raises
        ------
        FitError
            Where fewer than two images could be read.
        """
        extractor = self.extractor
        batches = [describe_batch(self.features(b.x), b.valid) for b in frames.batches(extractor.batch_size)]
        described = torch.cat(batches) if batches else torch.empty(0, 0)
        if len(described) < 2:
            raise FitError(
                f"{len(described)} normal images could be read, a covariance needs 2 and better 100: add some"
            )
        scale = spread(described).double()
        mean = described.double().mean(0)
        covariance = ledoit_wolf((described.double() - mean) / scale)
        lower = torch.linalg.cholesky(covariance)
        identity = torch.eye(len(mean), dtype=torch.float64, device=mean.device)
        whitening = torch.linalg.solve_triangular(lower, identity, upper=False) / scale
        self._set(mean.float(), whitening.float())

    def anomaly_map(self, x: torch.Tensor) -> torch.Tensor:
        """What each cell adds to the distance, ``(B, h, w)``, on the grid of the finest layer."""
        self._check_fitted()
        return torch.stack([self._map(grid) for grid in self.features(x)])

    def image_score(self, x: torch.Tensor, maps: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Mahalanobis distances ``(B,)``."""
        self._check_fitted()
        return torch.stack([self._whitened(own).norm() for own in describe_batch(self.features(x), valid)])

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, JsonValue]]:
        """The mean ``(2 D,)`` and the inverse Cholesky factor ``(2 D, 2 D)``, float32."""
        return {"mean": self._mean.cpu(), "whitening": self._whitening.cpu()}, {}

    def load_state(self, tensors: Mapping[str, torch.Tensor], extra: Mapping[str, JsonValue]) -> None:
        """Take what :meth:`state` gave."""
        self._set(tensors["mean"], tensors["whitening"])

    def to(self, device: torch.device) -> "Mahalanobis":
        """Move the extractor and the Gaussian."""
        super().to(device)
        self._set(self._mean, self._whitening)
        return self

    def _set(self, mean: torch.Tensor, whitening: torch.Tensor) -> None:
        self._mean, self._whitening = mean.to(self.device), whitening.to(self.device).contiguous()

    def _whitened(self, own: torch.Tensor) -> torch.Tensor:
        return self._whitening @ (own - self._mean)

    def _map(self, grid: torch.Tensor) -> torch.Tensor:
        whitened = self._whitened(describe(grid.flatten(1)))
        # The distance is the difference to the mean along its own direction.
        direction = self._whitening.T @ whitened / whitened.norm().clamp_min(TINY)
        found: torch.Tensor = contributions(grid, direction) - direction @ self._mean
        return found

    def _check_fitted(self) -> None:
        if not len(self._mean):
            raise FitError("the Mahalanobis distance is not fitted: call fit, or load a saved model")


def ledoit_wolf(centred: torch.Tensor) -> torch.Tensor:
    """Covariance ``(D, D)`` of centred samples ``(N, D)``, shrunk towards a multiple of the identity.

    Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", Journal of Multivariate
    Analysis 2004, as scikit-learn has it.
    """
    count, size = centred.shape
    covariance = centred.T @ centred / count
    level = covariance.diagonal().mean()
    off_target = covariance.square().sum() - size * level.square()
    # Mean over samples of |x x' - S|^2, written without any N matrices.
    noise = (centred.square().sum(1).square().sum() / count - covariance.square().sum()) / count
    share = float((noise / off_target).clamp(0, 1)) if off_target > 0 else 1.0
    identity = torch.eye(size, dtype=centred.dtype, device=centred.device)
    return (1 - share) * covariance + max(share, SMALLEST_SHARE) * torch.where(level > 0, level, 1.0) * identity
