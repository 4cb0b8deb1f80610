"""SPADE: the nearest normal images by their pooled features, and the distance of each patch to theirs.

Cohen and Hoshen, "Sub-Image Anomaly Detection with Deep Pyramid Correspondences", 2020, https://arxiv.org/abs/2005.02357.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from pydantic import Field, JsonValue

from anomalib_med.errors import FitError
from anomalib_med.models.base import BankConfig, Detector
from anomalib_med.models.memory_bank.description import describe, describe_batch, distances_to, spread
from anomalib_med.preprocessing import Frames


class Spade(Detector):
    """Finds the normal images that are most alike and looks for what they do not have.

    An image is described by the mean and the standard deviation of its features over the valid cells. The image score
    is the mean distance of its description to those of the nearest normal images. The anomaly map is the distance of
    each patch to the nearest patch, around the same place, of the nearest images.
    """

    name = "spade"
    title = "SPADE (Cohen and Hoshen, 2020)"

    class Config(BankConfig):
        """Settings of SPADE. `pooling` is of no use to it: its score is not taken from its map.

        Parameters
        ----------
        neighbours
            Normal images that an image is compared with.
        standardise
            Divide each number of the description by its standard deviation among the normals.
        window
            How far, in cells of the finest layer, a patch may lie from its place in a normal image.
        max_bank_mb
            Memory for the normals' patches, in MiB of float16 features. Where not all normals fit, maps come from a
            random share of them; scores come from all.
        """

        neighbours: int = Field(5, ge=1)
        standardise: bool = True
        window: int = Field(3, ge=0)
        max_bank_mb: float = Field(256.0, gt=0)

    config: Config

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings)
        self._described = torch.empty(0)  # (N, 2 D), a description of each normal
        self._patches = torch.empty(0)  # (cells of all kept normals, D)
        self._grids = torch.empty(0, 2, dtype=torch.int64)  # rows and columns of each kept normal
        self._gallery: list[torch.Tensor] = []  # the same patches, a grid (D, h, w) for each kept normal

    def fit(self, frames: Frames) -> None:
        """Keep the normals' descriptions, and the patches of as many as the budget allows.

        Raises
        ------
        FitError
            Where no image could be read.
        """
        extractor = self.extractor
        order = torch.randperm(len(frames), generator=torch.Generator().manual_seed(self.config.seed)).tolist()
        budget = self.config.max_bank_mb * 2**20 / 2
        described: list[torch.Tensor] = []
        kept: dict[int, torch.Tensor] = {}  # by rank in the random order; the last ranks go when memory is short
        for batch in frames.batches(extractor.batch_size):
            features = self.features(batch.x)
            for grid, description in zip(features, describe_batch(features, batch.valid), strict=True):
                rank = order[len(described)]
                described.append(description)
                kept[rank] = grid.cpu()
                budget -= grid.numel()
                while budget < 0 and len(kept) > 1:
                    budget += kept.pop(max(kept)).numel()
        if not described:
            raise FitError("no normal image could be read: see the failures listed, or check the folder")
        gallery = [kept[rank] for rank in sorted(kept)]
        self._keep(torch.stack(described), gallery)

    def merge(self, other: Detector) -> None:
        """Keep the descriptions of both, and the patches of a random choice where not all fit in the budget."""
        assert isinstance(other, Spade)
        kept = [*self._gallery, *other._gallery]
        # A kept normal stands for all normals of its part, kept or not.
        stands_for = [len(d._described) / len(d._gallery) for d in (self, other) for _ in d._gallery]
        generator = torch.Generator().manual_seed(self.config.seed)
        order = torch.empty(len(kept)).exponential_(generator=generator) / torch.tensor(stands_for)
        gallery: list[torch.Tensor] = []
        budget = self.config.max_bank_mb * 2**20 / 2
        for i in order.argsort().tolist():
            budget -= kept[i].numel()
            if budget < 0 and gallery:
                break
            gallery.append(kept[i].cpu())
        self._keep(torch.cat([self._described.cpu(), other._described.cpu()]), gallery)

    def anomaly_map(self, x: torch.Tensor) -> torch.Tensor:
        """Distances ``(B, h, w)`` to the nearest patches of the nearest normals on the grid of the finest layer."""
        self._check_fitted()
        return torch.stack([self._map(grid) for grid in self.features(x)])

    def image_score(self, x: torch.Tensor, maps: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Mean distances ``(B,)`` of the descriptions to those of the nearest normals."""
        self._check_fitted()
        scores = []
        for own in describe_batch(self.features(x), valid):
            distances = distances_to(own / self._scale, self._scaled)
            scores.append(distances.topk(min(self.config.neighbours, len(distances)), largest=False).values.mean())
        return torch.stack(scores)

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, JsonValue]]:
        """Descriptions float32 ``(N, 2 D)``, patches float16 ``(P, D)``, and the grid ``(rows, columns)`` of each."""
        return {
            "described": self._described.cpu(),
            "patches": self._patches.cpu(),
            "grids": self._grids.cpu(),
        }, {}

    def load_state(self, tensors: Mapping[str, torch.Tensor], extra: Mapping[str, JsonValue]) -> None:
        """Take what :meth:`state` gave."""
        self._set(tensors["described"], tensors["patches"], tensors["grids"])

    def to(self, device: torch.device) -> "Spade":
        """Move the extractor and the normals."""
        super().to(device)
        if len(self._described):
            self._set(self._described, self._patches, self._grids)
        return self

    def _keep(self, described: torch.Tensor, gallery: list[torch.Tensor]) -> None:
        patches = torch.cat([grid.flatten(1).T for grid in gallery])
        self._set(described, patches, torch.tensor([grid.shape[1:] for grid in gallery]))

    def _set(self, described: torch.Tensor, patches: torch.Tensor, grids: torch.Tensor) -> None:
        self._described = described.to(self.device)
        self._patches = patches.to(self.device).contiguous()
        self._grids = grids
        parts = zip(torch.split(self._patches, grids.prod(1).tolist()), grids.tolist(), strict=True)
        self._gallery = [part.T.reshape(-1, rows, columns) for part, (rows, columns) in parts]
        self._scale = spread(self._described) if self.config.standardise else torch.ones_like(self._described[0])
        self._scaled = self._described / self._scale
        # A map is made without the valid area, so the images for it are found by descriptions of all cells.
        self._whole = torch.stack([describe(grid.flatten(1)) for grid in self._gallery]) / self._scale

    def _map(self, grid: torch.Tensor) -> torch.Tensor:
        """Distances ``(h, w)`` of one image's features ``(D, h, w)``."""
        height, width = grid.shape[1:]
        alike = distances_to(describe(grid.flatten(1)) / self._scale, self._whole)
        nearest = alike.topk(min(self.config.neighbours, len(alike)), largest=False).indices.tolist()
        patches = torch.cat([_on_grid(self._gallery[i], height, width) for i in nearest]).float()
        # Distances do not change under a shift, and float32 holds those of centred vectors better.
        centre = patches.mean(0)
        patches, queries = patches - centre, grid.flatten(1).T.float() - centre
        offsets = torch.addmm((patches * patches).sum(1)[None], queries, patches.T, alpha=-2)
        apart = _out_of_reach(height, width, self.config.window, self.device)
        offsets.view(len(queries), len(nearest), -1).masked_fill_(apart[:, None], torch.inf)
        rows = offsets.min(1).indices
        distances: torch.Tensor = (queries - patches[rows]).norm(dim=1)
        return distances.reshape(height, width)

    def _check_fitted(self) -> None:
        if not len(self._described):
            raise FitError("SPADE is not fitted: call fit, or load a saved model")


def _on_grid(grid: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Patches ``(height * width, D)`` of a normal ``(D, h, w)``, brought to another grid where its own differs."""
    if grid.shape[1:] != (height, width):
        grid = F.interpolate(grid[None].float(), size=(height, width), mode="bilinear", align_corners=False)[0].half()
    return grid.flatten(1).T


def _out_of_reach(height: int, width: int, window: int, device: torch.device) -> torch.Tensor:
    """Bool ``(h * w, h * w)``: True where two cells lie more than `window` rows or columns apart."""
    rows, columns = (torch.arange(n, device=device) for n in (height, width))
    far_rows, far_columns = ((n[:, None] - n).abs() > window for n in (rows, columns))
    return (far_rows[:, None, :, None] | far_columns[None, :, None, :]).reshape(height * width, height * width)
