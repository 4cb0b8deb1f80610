"""Mahalanobis distance of pooled features to the normal images.

Rippel, Mertens and Merhof, "Modeling the Distribution of Normal Data in Pre-Trained Deep Features for Anomaly
Detection", ICPR 2020, https://arxiv.org/abs/2005.14140.
"""

import torch

from anomalib_med.errors import FitError
from anomalib_med.models.base import BankConfig, Detector
from anomalib_med.models.memory_bank.description import TINY, contributions, describe, describe_batch, spread
from anomalib_med.preprocessing import Frames

SMALLEST_SHARE = 1e-6  # of the identity, so that numbers which never vary do not make the covariance singular


class Mahalanobis(Detector):
    """Knows how normal images differ from one another as a whole, and how far a new one is outside of that.

    The score is the Mahalanobis distance of the image's description (mean and standard deviation of its features) to
    the normals'. The anomaly map shows how much each cell adds to it: the mean of a map is the distance itself.
    """

    name = "mahalanobis"
    title = "Mahalanobis distance of deep features (Rippel et al., ICPR 2020)"
    Config = BankConfig

    def fit(self, frames: Frames) -> None:
        """Mean and covariance of the normals' descriptions; a FitError for fewer than two images."""
        described = torch.cat([describe_batch(self.features(b.x), b.valid) for b in self.normals(frames)])
        if len(described) < 2:
            raise FitError("1 normal image could be read, a covariance needs 2 and better 100: add some")
        scale = spread(described).double()
        mean = described.double().mean(0)
        covariance = ledoit_wolf((described.double() - mean) / scale)
        lower = torch.linalg.cholesky(covariance)
        identity = torch.eye(len(mean), dtype=torch.float64, device=mean.device)
        whitening = torch.linalg.solve_triangular(lower, identity, upper=False) / scale
        # Float32: the mean (2 D,) and the inverse Cholesky factor (2 D, 2 D) of the covariance.
        self.load_state({"mean": mean.float(), "whitening": whitening.float().contiguous()}, {})

    def anomaly_map(self, x: torch.Tensor) -> torch.Tensor:
        """What each cell adds to the distance, ``(B, h, w)``, on the grid of the finest layer."""
        self.check_fitted()
        return torch.stack([self._map(grid) for grid in self.features(x)])

    def image_score(self, x: torch.Tensor, maps: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Mahalanobis distances ``(B,)``."""
        return torch.stack([self._whitened(own).norm() for own in describe_batch(self.features(x), valid)])

    def _whitened(self, own: torch.Tensor) -> torch.Tensor:
        return self.learnt("whitening") @ (own - self.learnt("mean"))

    def _map(self, grid: torch.Tensor) -> torch.Tensor:
        whitened = self._whitened(describe(grid.flatten(1)))
        # The distance is the difference to the mean along its own direction.
        direction = self.learnt("whitening").T @ whitened / whitened.norm().clamp_min(TINY)
        return torch.sub(contributions(grid, direction), direction @ self.learnt("mean"))


def ledoit_wolf(centred: torch.Tensor) -> torch.Tensor:
    """Covariance ``(D, D)`` of centred samples ``(N, D)``, shrunk towards a multiple of the identity.

    Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", JMVA 2004.
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
