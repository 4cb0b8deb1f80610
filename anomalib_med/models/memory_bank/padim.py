"""PaDiM: a Gaussian of the features at each place of the image, and the Mahalanobis distance to it.

Defard et al., "PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and Localization", ICPR Workshops
2020, https://arxiv.org/abs/2011.08785.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, JsonValue

from anomalib_med.errors import FitError
from anomalib_med.models.base import BankConfig, Detector
from anomalib_med.models.memory_bank.whitening import shrinkage
from anomalib_med.models.pooling import valid_cells
from anomalib_med.preprocessing import Frames

LOOKED_AT = 16  # images that the grid is chosen from
FEWEST = 10  # normals that a place needs for a Gaussian of its own
CHUNK = 64  # places factored at once


class PaDiM(Detector):
    """Knows for each place what its features look like in normal images, and how they vary together.

    Only sums over the normals are kept: memory does not grow with their number. Images of other shapes are compared at
    the same relative place. A place that is valid in fewer than ten normals has the Gaussian of all places together.
    """

    name = "padim"
    title = "PaDiM (Defard et al., ICPR Workshops 2020)"

    class Config(BankConfig):
        """Settings of PaDiM.

        Parameters
        ----------
        dimensions
            Numbers kept of each feature vector; all where it has fewer. Model and sums grow with the square.
        reduction
            "random": a random choice of channels, the paper's; "pca": the principal components of the normals' valid
            cells, for which the normals are read twice.
        shrinkage
            Of each covariance towards a multiple of the identity: "oas", as much as the number of normals asks for
            (Chen et al. 2010), or "none".
        ridge
            Added to the diagonal of each covariance, as a share of the mean variance (paper: 0.01, absolute).
        reach
            Cells around a place whose features count as its own, against loose alignment; 0 for none, as in the paper.
        """

        dimensions: int = Field(100, ge=1)
        reduction: Literal["random", "pca"] = "random"
        shrinkage: Literal["oas", "none"] = "oas"
        ridge: float = Field(0.01, gt=0)
        reach: int = Field(0, ge=0)

    config: Config

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings)
        self._basis = torch.empty(0, 0)  # (D, d)
        self._mean = torch.empty(0, 0, 0)  # (d, h, w)
        self._whitening = torch.empty(0)  # (h w, d, d): transposed inverse of each covariance's Cholesky factor

    def fit(self, frames: Frames) -> None:
        """Sum over the normals and factor the covariances.

        Raises
        ------
        FitError
            Where no image could be read.
        """
        grids, basis = self._look_ahead(frames)
        if not grids:
            raise FitError("no normal image could be read: see the failures listed, or check the folder")
        height, width = grids.most_common(1)[0][0]
        sums = _Sums(basis.shape[1], height, width, self.device)
        for features, cells in self._placed(frames, basis, height, width):
            sums.add(features, cells)
        means, covariances, counts = sums.gaussians(self.config.reach)
        self._set(basis, means.T.reshape(-1, height, width).float(), self._factor(covariances, counts))

    def anomaly_map(self, x: torch.Tensor) -> torch.Tensor:
        """Mahalanobis distances ``(B, h, w)`` on the grid of the model."""
        if not len(self._whitening):
            raise FitError("PaDiM is not fitted: call fit, or load a saved model")
        height, width = self._mean.shape[1:]
        mean = self._mean.flatten(1).T
        maps = []
        for grid in _on_grid(self.features(x), self._basis, height, width):  # a product over a batch rounds differently
            # Contiguous rows times matrices: several times as fast on a CPU as matrices times columns.
            centred = (grid.flatten(1).T - mean).contiguous()
            whitened = torch.bmm(centred[:, None], self._whitening)[:, 0]
            maps.append(whitened.norm(dim=1).reshape(height, width))
        return torch.stack(maps)

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, JsonValue]]:
        """Basis ``(D, d)``, means ``(d, h, w)``, and the upper triangles ``(h w, d (d + 1) / 2)``; all float32."""
        rows, columns = torch.triu_indices(self._basis.shape[1], self._basis.shape[1])
        triangles = self._whitening[:, rows, columns] if len(self._whitening) else self._whitening
        return {"basis": self._basis.cpu(), "mean": self._mean.cpu(), "whitening": triangles.cpu()}, {}

    def load_state(self, tensors: Mapping[str, torch.Tensor], extra: Mapping[str, JsonValue]) -> None:
        """Take what :meth:`state` gave."""
        triangles, size = tensors["whitening"], tensors["basis"].shape[1]
        whitening = torch.zeros(len(triangles), size, size)
        rows, columns = torch.triu_indices(size, size)
        whitening[:, rows, columns] = triangles
        self._set(tensors["basis"], tensors["mean"], whitening)

    def to(self, device: torch.device) -> "PaDiM":
        """Move the extractor and the Gaussians."""
        super().to(device)
        self._set(self._basis, self._mean, self._whitening)
        return self

    def _set(self, basis: torch.Tensor, mean: torch.Tensor, whitening: torch.Tensor) -> None:
        self._basis, self._mean = basis.to(self.device), mean.to(self.device)
        self._whitening = whitening.to(self.device)

    def _look_ahead(self, frames: Frames) -> tuple[Counter[tuple[int, int]], torch.Tensor]:
        """Grids of the first normals, or of all where principal components are asked for; and the basis ``(D, d)``."""
        extractor = self.extractor
        principal = self.config.reduction == "pca"
        grids: Counter[tuple[int, int]] = Counter()
        all_cells = _Sums(extractor.channels, 1, 1, self.device) if principal else None
        for batch in frames.batches(extractor.batch_size):
            features = self.features(batch.x)
            height, width = features.shape[2:]
            grids[height, width] += len(features)
            if all_cells is not None:
                for grid, cells in zip(features, valid_cells(batch.valid, (height, width)), strict=True):
                    rows = grid.flatten(1)[:, cells.flatten()].T
                    all_cells.add(rows[:, :, None, None].double(), torch.ones(len(rows), 1, 1, dtype=torch.bool))
            elif grids.total() >= LOOKED_AT:
                break
        count = min(self.config.dimensions, extractor.channels)
        if all_cells is not None and grids:
            covariance = all_cells.gaussians(0)[1][0]
            return grids, torch.linalg.eigh(covariance)[1].flip(1)[:, :count].float()
        generator = torch.Generator().manual_seed(self.config.seed)
        channels = torch.randperm(extractor.channels, generator=generator)[:count].sort().values
        return grids, torch.eye(extractor.channels)[:, channels].to(self.device)

    def _placed(
        self, frames: Frames, basis: torch.Tensor, height: int, width: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Reduced features ``(B, d, height, width)`` of the normals, float64, and their valid cells."""
        extractor = self.extractor
        for batch in frames.batches(extractor.batch_size):
            yield (
                _on_grid(self.features(batch.x), basis, height, width).double(),
                valid_cells(batch.valid, (height, width)),
            )

    def _factor(self, covariances: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Transposed inverse Cholesky factors ``(P, d, d)``, float32, of the regularised covariances."""
        size = covariances.shape[1]
        identity = torch.eye(size, dtype=torch.float64, device=covariances.device)
        mean_variance = covariances.diagonal(dim1=1, dim2=2).mean()
        ridge = self.config.ridge * torch.where(mean_variance > 0, mean_variance, torch.ones_like(mean_variance))
        factors = []
        for part, number in zip(torch.split(covariances, CHUNK), torch.split(counts, CHUNK), strict=True):
            regular = (shrink(part, number) if self.config.shrinkage == "oas" else part) + ridge * identity
            lower = torch.linalg.cholesky(regular)
            inverse = torch.linalg.solve_triangular(lower, identity.expand_as(lower), upper=False)
            factors.append(inverse.transpose(1, 2).float().contiguous())
        return torch.cat(factors)


class _Sums:
    """First and second moments of features at each place, in double precision, over as many images as come."""

    def __init__(self, dimensions: int, height: int, width: int, device: torch.device) -> None:
        self.shape = (height, width)
        places = height * width
        self.count = torch.zeros(places, dtype=torch.float64, device=device)
        self.first = torch.zeros(places, dimensions, dtype=torch.float64, device=device)
        self.second = torch.zeros(places, dimensions, dimensions, dtype=torch.float64, device=device)

    def add(self, features: torch.Tensor, cells: torch.Tensor) -> None:
        """Take in float64 ``(B, d, h, w)`` where bool ``(B, h, w)`` is True."""
        counted = cells.to(features.device).double()
        values = (features * counted[:, None]).flatten(2).permute(2, 0, 1)  # (places, B, d)
        self.count += counted.sum(0).flatten()
        self.first += values.sum(1)
        self.second.baddbmm_(values.transpose(1, 2), values)

    def gaussians(self, reach: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Means ``(P, d)``, covariances ``(P, d, d)`` (divided by the count) and counts ``(P,)`` of all places."""
        dimensions = self.first.shape[1]
        every = (self.count.sum(), self.first.sum(0), self.second.sum(0))
        count, first, second = (
            _around(sums.reshape(len(self.count), -1), self.shape, reach)
            for sums in (self.count, self.first, self.second)
        )
        count, second = count[:, 0], second.reshape(-1, dimensions, dimensions)
        rare = count < FEWEST
        count[rare], first[rare], second[rare] = every
        means = first / count[:, None]
        second /= count[:, None, None]
        second.baddbmm_(means[:, :, None], means[:, None], alpha=-1)
        return means, second, count


def shrink(covariances: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Shrink covariances ``(P, d, d)`` of `counts` ``(P,)`` samples each towards multiples of the identity."""
    size = covariances.shape[1]
    level = covariances.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    share = shrinkage(covariances, counts)[:, None, None]
    identity = torch.eye(size, dtype=covariances.dtype, device=covariances.device)
    return (1 - share) * covariances + share * level * identity


def _on_grid(features: torch.Tensor, basis: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Reduced features, float32 ``(B, d, height, width)``: of each place the nearest cell, none averaged."""
    reduced = torch.stack([(basis.T @ grid.flatten(1).float()).reshape(-1, *grid.shape[1:]) for grid in features])
    return (
        reduced
        if reduced.shape[2:] == (height, width)
        else F.interpolate(reduced, (height, width), mode="nearest-exact")
    )


def _around(sums: torch.Tensor, shape: tuple[int, int], reach: int) -> torch.Tensor:
    """Sums ``(P, n)`` over the square of cells around each place; a copy."""
    if reach == 0:
        return sums.clone()
    grid = sums.T.reshape(1, -1, *shape)
    return F.avg_pool2d(grid, 2 * reach + 1, 1, reach, divisor_override=1)[0].flatten(1).T.contiguous()
