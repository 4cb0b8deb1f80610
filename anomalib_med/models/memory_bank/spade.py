"""SPADE: the nearest normal images by their pooled features, and the distance of each patch to theirs.

Cohen and Hoshen, "Sub-Image Anomaly Detection with Deep Pyramid Correspondences", 2020, https://arxiv.org/abs/2005.02357.
"""

from collections.abc import Mapping

import torch
from pydantic import Field, JsonValue

from anomalib_med.features.grid import to_grid
from anomalib_med.models.base import Detector
from anomalib_med.models.memory_bank import description
from anomalib_med.models.memory_bank.description import describe, describe_batch
from anomalib_med.preprocessing import Frames


class Spade(description.GalleryDetector):
    """Finds the normal images that are most alike and looks for what they do not have.

    The anomaly map is the distance of each patch to the nearest patch, around the same place, of the nearest images.
    """

    name = "spade"
    title = "SPADE (Cohen and Hoshen, 2020)"

    class Config(description.GalleryConfig):
        """Settings of SPADE; `neighbours` counts for the map too."""

        window: int = Field(3, ge=0)
        """How far a patch may lie from its place in a normal image, in cells of the finest layer. The paper looks
        everywhere, where it also finds lung in place of bone."""
        max_bank_mb: float = Field(256.0, gt=0)
        """Memory for the normals' patches, in MiB of float16 features. Where not all normals fit, maps come from a
        random share of them and scores from all. With radlite at 224 pixels 1,337 images fit."""

    config: Config
    _patches: list[torch.Tensor]  # a grid (D, h, w) of each kept normal
    _whole: torch.Tensor  # descriptions of their grids

    def fit(self, frames: Frames) -> None:
        """Keep the normals' descriptions, and the patches of as many as the budget allows."""
        order = torch.randperm(len(frames), generator=torch.Generator().manual_seed(self.config.seed)).tolist()
        budget = self.config.max_bank_mb * 2**20 / 2
        described: list[torch.Tensor] = []
        kept: dict[int, torch.Tensor] = {}  # by rank in the random order; the last ranks go when memory is short
        for batch in self.normals(frames):
            features = self.features(batch.x)
            for grid, own in zip(features, describe_batch(features, batch.valid), strict=True):
                rank = order[len(described)]
                described.append(own)
                kept[rank] = grid.cpu()
                budget -= grid.numel()
                while budget < 0 and len(kept) > 1:
                    budget += kept.pop(max(kept)).numel()
        self._keep(torch.stack(described), [kept[rank] for rank in sorted(kept)])

    def merge(self, other: Detector) -> None:
        """Keep the descriptions of both, and the patches of a random choice where not all fit in the budget."""
        assert isinstance(other, Spade)
        kept = [*self._patches, *other._patches]
        # A kept normal stands for all normals of its part, kept or not.
        stands_for = [len(d.learnt("described")) / len(d._patches) for d in (self, other) for _ in d._patches]
        generator = torch.Generator().manual_seed(self.config.seed)
        order = torch.empty(len(kept)).exponential_(generator=generator) / torch.tensor(stands_for)
        chosen: list[torch.Tensor] = []
        budget = self.config.max_bank_mb * 2**20 / 2
        for i in order.argsort().tolist():
            budget -= kept[i].numel()
            if budget < 0 and chosen:
                break
            chosen.append(kept[i].cpu())
        self._keep(torch.cat([d.learnt("described").cpu() for d in (self, other)]), chosen)

    def load_state(self, tensors: Mapping[str, torch.Tensor], extra: Mapping[str, JsonValue]) -> None:
        """Take descriptions float32 ``(N, 2 D)``, kept patches float16 ``(P, D)``, and the sides of each grid."""
        super().load_state(tensors, extra)
        grids = tensors["grids"].cpu()
        parts = zip(torch.split(self.learnt("patches"), grids.prod(1).tolist()), grids.tolist(), strict=True)
        self._patches = [part.T.reshape(-1, rows, columns) for part, (rows, columns) in parts]
        # A map is made without the valid area, so the images for it are found by descriptions of all cells.
        self._whole = torch.stack([describe(grid.flatten(1)) for grid in self._patches]) / self._scale

    def _keep(self, described: torch.Tensor, kept: list[torch.Tensor]) -> None:
        patches = torch.cat([grid.flatten(1).T for grid in kept]).contiguous()
        grids = torch.tensor([grid.shape[1:] for grid in kept])
        self.load_state({"described": described, "patches": patches, "grids": grids}, {})

    def _map(self, grid: torch.Tensor) -> torch.Tensor:
        height, width = grid.shape[1:]
        own = describe(grid.flatten(1)) / self._scale
        alike = description.nearest(own, self._whole, self.config.neighbours)[1].tolist()
        patches = torch.cat([to_grid(self._patches[i][None], (height, width))[0].flatten(1).T for i in alike]).float()
        # Distances do not change under a shift, and float32 holds those of centred vectors better.
        centre = patches.mean(0)
        patches, queries = patches - centre, grid.flatten(1).T.float() - centre
        offsets = torch.addmm((patches * patches).sum(1)[None], queries, patches.T, alpha=-2)
        apart = _out_of_reach(height, width, self.config.window, self.device)
        offsets.view(len(queries), len(alike), -1).masked_fill_(apart[:, None], torch.inf)
        rows = offsets.min(1).indices
        distances: torch.Tensor = (queries - patches[rows]).norm(dim=1).reshape(height, width)
        return distances


def _out_of_reach(height: int, width: int, window: int, device: torch.device) -> torch.Tensor:
    """Bool ``(h * w, h * w)``: True where two cells lie more than `window` rows or columns apart."""
    rows, columns = (torch.arange(n, device=device) for n in (height, width))
    far_rows, far_columns = ((n[:, None] - n).abs() > window for n in (rows, columns))
    return (far_rows[:, None, :, None] | far_columns[None, :, None, :]).reshape(height * width, height * width)
