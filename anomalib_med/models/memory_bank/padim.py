"""PaDiM: a Gaussian of the features at each place of the image, and the Mahalanobis distance to it.

Defard et al., "PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and Localization", ICPR Workshops
2020, https://arxiv.org/abs/2011.08785.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, JsonValue

from anomalib_med.models.base import Detector, PooledBankConfig
from anomalib_med.models.memory_bank.whitening import shrinkage
from anomalib_med.models.pooling import valid_cells
from anomalib_med.preprocessing import Frames

LOOKED_AT = 16  # images that the grid is chosen from
FEWEST = 10  # normals that a place needs for a Gaussian of its own
CHUNK = 64  # places factored at once


class PaDiM(Detector):
    """Knows for each place what its features look like in normal images, and how they vary together.

    Only sums over the normals are kept, so memory does not grow with their number. Images of other shapes are compared
    at the same relative place. A place valid in fewer than ten normals has the Gaussian of all places together.
    """

    name = "padim"
    title = "PaDiM (Defard et al., ICPR Workshops 2020)"

    class Config(PooledBankConfig):
        """Settings of PaDiM."""

        dimensions: int = Field(100, ge=1)
        """Numbers kept of each feature vector, all where it has fewer; model and sums grow with the square. The default
        is the paper's for a ResNet-18; it takes 550 for a WideResNet-50."""
        reduction: Literal["random", "pca"] = "random"
        """Which numbers are kept: a random choice of channels, as in the paper, or the principal components of the
        normals' valid cells (pca), for which the normals are read twice."""
        shrinkage: Literal["oas", "none"] = "oas"
        """Whether each covariance is pulled towards a multiple of the identity, as far as the number of normals asks
        for (oas, Chen et al. 2010). The paper does not do this."""
        ridge: float = Field(0.01, gt=0)
        """Share of the mean variance that is added to the diagonal of each covariance. The paper adds 0.01 itself."""
        reach: int = Field(0, ge=0)
        """Cells around a place whose features count as its own, against loose alignment; 0 for none (paper)."""

    config: Config
    _whitening: torch.Tensor  # (h w, d, d): transposed inverse of each covariance's Cholesky factor

    def fit(self, frames: Frames) -> None:
        """Sum over the normals and factor the covariances."""
        (height, width), basis = self._look_ahead(frames)
        sums = PlaceSums(basis.shape[1], height, width, self.device)
        for batch in self.normals(frames):
            features = _on_grid(self.features(batch.x), basis, height, width).double()
            sums.add(features, valid_cells(batch.valid, (height, width)))
        means, covariances, counts = sums.gaussians(self.config.reach)
        rows, columns = torch.triu_indices(basis.shape[1], basis.shape[1])
        whitening = self._factor(covariances, counts)[:, rows, columns]
        mean = means.T.reshape(-1, height, width).float()
        self.load_state({"basis": basis, "mean": mean, "whitening": whitening}, {})

    def anomaly_map(self, x: torch.Tensor) -> torch.Tensor:
        """Mahalanobis distances ``(B, h, w)`` on the grid of the model."""
        mean = self.learnt("mean")
        # One image at a time: a product over a batch rounds differently.
        centred = (grid - mean for grid in _on_grid(self.features(x), self.learnt("basis"), *mean.shape[1:]))
        # Contiguous rows times matrices: several times as fast on a CPU as matrices times columns.
        rows = (grid.flatten(1).T.contiguous()[:, None] for grid in centred)
        return torch.stack([torch.bmm(r, self._whitening)[:, 0].norm(dim=1).reshape(mean.shape[1:]) for r in rows])

    def load_state(self, tensors: Mapping[str, torch.Tensor], extra: Mapping[str, JsonValue]) -> None:
        """Take the basis ``(D, d)``, means ``(d, h, w)``, and upper triangles ``(h w, d (d + 1) / 2)``, float32."""
        super().load_state(tensors, extra)
        triangles, size = self.learnt("whitening"), tensors["basis"].shape[1]
        rows, columns = torch.triu_indices(size, size)
        self._whitening = torch.zeros(len(triangles), size, size, device=self.device)
        self._whitening[:, rows, columns] = triangles

    def _look_ahead(self, frames: Frames) -> tuple[tuple[int, int], torch.Tensor]:
        """The commonest grid of the first normals, or of all with principal components, and the basis ``(D, d)``."""
        extractor = self.extractor
        grids = Counter[tuple[int, int]]()
        all_cells = PlaceSums(extractor.channels, 1, 1, self.device) if self.config.reduction == "pca" else None
        for batch in self.normals(frames):
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
        commonest = grids.most_common(1)[0][0]
        if all_cells is not None:
            covariance = all_cells.gaussians(0)[1][0]
            return commonest, torch.linalg.eigh(covariance)[1].flip(1)[:, :count].float()
        generator = torch.Generator().manual_seed(self.config.seed)
        channels = torch.randperm(extractor.channels, generator=generator)[:count].sort().values
        return commonest, torch.eye(extractor.channels)[:, channels].to(self.device)

    def _factor(self, covariances: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Transposed inverse Cholesky factors ``(P, d, d)``, float32, of the regularised covariances."""
        identity = torch.eye(covariances.shape[1], dtype=torch.float64, device=covariances.device)
        mean_variance = covariances.diagonal(dim1=1, dim2=2).mean()
        ridge = self.config.ridge * torch.where(mean_variance > 0, mean_variance, torch.ones_like(mean_variance))
        factors = []
        for part, number in zip(torch.split(covariances, CHUNK), torch.split(counts, CHUNK), strict=True):
            regular = (shrink(part, number) if self.config.shrinkage == "oas" else part) + ridge * identity
            lower = torch.linalg.cholesky(regular)
            inverse = torch.linalg.solve_triangular(lower, identity.expand_as(lower), upper=False)
            factors.append(inverse.transpose(1, 2).float().contiguous())
        return torch.cat(factors)


class PlaceSums:
    """First and second moments of features at each place, in double precision, over as many images as come."""

    def __init__(self, dimensions: int, height: int, width: int, device: torch.device) -> None:
        self.shape = (height, width)
        sizes = (height * width,), (height * width, dimensions), (height * width, dimensions, dimensions)
        self.count, self.first, self.second = (torch.zeros(s, dtype=torch.float64, device=device) for s in sizes)

    def add(self, features: torch.Tensor, cells: torch.Tensor) -> None:
        """Take in float64 ``(B, d, h, w)`` where bool ``(B, h, w)`` is True."""
        counted = cells.to(features.device).double()
        values = (features * counted[:, None]).flatten(2).permute(2, 0, 1)  # (places, B, d)
        self.count += counted.sum(0).flatten()
        self.first += values.sum(1)
        self.second.baddbmm_(values.transpose(1, 2), values)

    def gaussians(self, reach: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Means ``(P, d)``, covariances ``(P, d, d)`` (divided by the count) and counts ``(P,)`` of all places."""
        sums = (part.reshape(len(self.count), -1) for part in (self.count, self.first, self.second))
        count, first, second = (_around(part, self.shape, reach) for part in sums)
        count, second = count[:, 0], second.reshape(self.second.shape)
        rare = count < FEWEST
        count[rare], first[rare], second[rare] = self.count.sum(), self.first.sum(0), self.second.sum(0)
        means = first / count[:, None]
        second /= count[:, None, None]
        second.baddbmm_(means[:, :, None], means[:, None], alpha=-1)
        return means, second, count


def shrink(covariances: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Shrink covariances ``(P, d, d)`` of `counts` ``(P,)`` samples each towards multiples of the identity."""
    level = covariances.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    share = shrinkage(covariances, counts)[:, None, None]
    identity = torch.eye(covariances.shape[1], dtype=covariances.dtype, device=covariances.device)
    return (1 - share) * covariances + share * level * identity


def _on_grid(features: torch.Tensor, basis: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Reduced features, float32 ``(B, d, height, width)``: those of the cell nearest to each place, none averaged."""
    reduced = torch.stack([(basis.T @ grid.flatten(1).float()).reshape(-1, *grid.shape[1:]) for grid in features])
    return F.interpolate(reduced, (height, width), mode="nearest-exact")


def _around(sums: torch.Tensor, shape: tuple[int, int], reach: int) -> torch.Tensor:
    """Sums ``(P, n)`` over the square of cells around each place; a copy."""
    if reach == 0:
        return sums.clone()
    grid = sums.T.reshape(1, -1, *shape)
    return F.avg_pool2d(grid, 2 * reach + 1, 1, reach, divisor_override=1)[0].flatten(1).T.contiguous()
