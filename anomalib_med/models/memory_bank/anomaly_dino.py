"""AnomalyDINO: cosine distance of each patch to the nearest of a few normal images, with the views of VisionAD.

Damm et al., "AnomalyDINO: Boosting Patch-based Few-shot Anomaly Detection with DINOv2", WACV 2025,
https://arxiv.org/abs/2405.14529. VisionAD: "Search is All You Need for Few-shot Anomaly Detection", 2025,
https://arxiv.org/abs/2504.11895.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, JsonValue

from anomalib_med.errors import ConfigError, FitError
from anomalib_med.models.base import Detector
from anomalib_med.models.memory_bank.coreset import k_center
from anomalib_med.models.memory_bank.neighbours import NearestNeighbours, SearchConfig
from anomalib_med.models.memory_bank.patch_pool import capacity
from anomalib_med.models.pooling import valid_cells
from anomalib_med.preprocessing import Frames


class AnomalyDINO(Detector):
    """Looks for each patch in a bank of the patches of normal images, few or many, of one kind or several.

    Patches are compared by the angle between their features. The bank takes all valid patches of the normals chosen
    and of their views; an image can be looked at in several views too, each with a bank of its own.
    """

    name = "anomalydino"
    title = "AnomalyDINO (Damm et al., WACV 2025), with the views of VisionAD (2025)"

    class Config(SearchConfig):
        """Settings of AnomalyDINO."""

        fusion: Literal["concat", "mean"] = "concat"
        """How several layers are compared: side by side, so that their cosines are averaged (concat), or by the mean of
        their features, as VisionAD does, for layers of one width (mean)."""
        shots: int = Field(0, ge=0)
        """Normals that the bank is made from, chosen at random; 0 for all. The papers take a few."""
        support_views: tuple[Annotated[str, Field(pattern=r"^(mirror|flip|clamp|rotate-?\d+)$")], ...] = ()
        """Further views of each normal for the bank: mirror (left and right), flip (up and down), clamp (what is darker
        than the backbone's mean grey becomes that), rotate<degrees>. The paper takes eight rotations, VisionAD three
        and two flips; mirrored and rotated chests hide a heart on the wrong side."""
        query_views: tuple[Literal["mirror", "flip", "clamp"], ...] = ()
        """Views that an image is also looked at in: mirror, flip, clamp, each with a bank of its own. The maps are
        averaged. VisionAD takes flip and clamp."""
        bank_size: int = Field(5000, ge=1)
        """Patches in each bank; of more, a greedy k-centre coreset is kept. The paper keeps all."""
        max_bank_mb: float = Field(64.0, gt=0)
        """Memory for the patches that the banks are chosen from, in MiB of float16 features; of more, a random share of
        each image's is kept."""

    config: Config
    _searches: list[NearestNeighbours]  # in the images as they are, then in each view

    def fit(self, frames: Frames) -> None:
        """Collect the patches of the chosen normals in every view, and keep a coreset of each view."""
        c = self.config
        pools = self._collect(frames)
        banks = [pool[k_center(pool, c.bank_size, seed=c.seed, progress=frames.progress)] for pool in pools]
        self.load_state({f"bank{i or ''}": bank for i, bank in enumerate(banks)}, {})

    def anomaly_map(self, x: torch.Tensor) -> torch.Tensor:
        """Cosine distances ``(B, h, w)`` from 0 to 2 to the nearest patches, on the grid of the finest layer."""
        self.check_fitted()
        maps = [self._distances(self.features(x), self._searches[0])]
        for view, search in zip(self.config.query_views, self._searches[1:], strict=True):
            distances = self._distances(self.extractor(in_view(x, view, self.extractor.backbone.mean)), search)
            maps.append(distances.flip({"flip": 1, "mirror": 2}[view]) if view != "clamp" else distances)
        return torch.stack(maps).mean(0)

    def load_state(self, tensors: Mapping[str, torch.Tensor], extra: Mapping[str, JsonValue]) -> None:
        """Take the banks, float16 ``(M, D)`` of unit length: ``bank`` of images as they are, then one for each view."""
        super().load_state(tensors, extra)
        numbers = range(1 + len(self.config.query_views))
        self._searches = [NearestNeighbours(self.learnt(f"bank{i or ''}"), self.config.engine) for i in numbers]

    def _collect(self, frames: Frames) -> list[torch.Tensor]:
        """Patches ``(P, D)`` of the chosen normals in all their views: as they are, then in each view of a query."""
        c, total = self.config, len(frames)
        generator = torch.Generator().manual_seed(c.seed)
        chosen = set(torch.randperm(total, generator=generator)[: c.shots or total].tolist())
        queries, supports = (None, *c.query_views), (None, *c.support_views)
        images = max(1, len(chosen)) * len(queries) * len(supports)
        share = max(1, capacity(c.max_bank_mb, self.extractor.channels) // images)
        pools: list[list[torch.Tensor]] = [[] for _ in queries]
        grey, read = self.extractor.backbone.mean, 0
        for batch in self.normals(frames):
            rows = [i for i in range(len(batch.x)) if read + i in chosen]
            read += len(batch.x)
            if not rows:
                continue
            for support in supports:
                x = in_view(batch.x[rows], support, grey)
                valid = valid_in_view(batch.valid[rows], support)
                for query, pool in zip(queries, pools, strict=True):
                    features = self.extractor(in_view(x, query, grey))
                    cells = valid_cells(valid_in_view(valid, query), features.shape[2:])
                    for grid, counted in zip(features, cells, strict=True):
                        patches = self._unit(grid)[counted.flatten()]
                        if len(patches) > share:
                            patches = patches[torch.randperm(len(patches), generator=generator)[:share].sort().values]
                        pool.append(patches)
        if not pools[0]:
            raise FitError("no normal image could be read among those that shots chose: set more, or another seed")
        return [torch.cat(pool) for pool in pools]

    def _unit(self, grid: torch.Tensor) -> torch.Tensor:
        """Patches ``(h w, D)`` of unit length, float16, of features ``(D, h, w)``."""
        widths = self.extractor.widths
        layers = torch.split(grid.flatten(1).float(), list(widths))
        if self.config.fusion == "concat":
            joined = torch.cat([F.normalize(layer, dim=0) for layer in layers])
        elif len(set(widths)) == 1:
            joined = torch.stack(layers).mean(0)
        else:
            raise ConfigError(f'fusion "mean" needs layers of one width, these have {widths}: use "concat"')
        return F.normalize(joined, dim=0).T.half().contiguous()

    def _distances(self, features: torch.Tensor, search: NearestNeighbours) -> torch.Tensor:
        # Of unit vectors, half the squared distance is one less the cosine.
        nearest = torch.stack([search.search(self._unit(grid))[0][:, 0] for grid in features])
        return nearest.square().reshape(-1, *features.shape[2:]) / 2


def in_view(x: torch.Tensor, view: str | None, mean: Sequence[float]) -> torch.Tensor:
    """A view of inputs ``(B, C, H, W)``, for a backbone with these mean grey values of the channels; None: no other."""
    if view == "clamp":
        return torch.maximum(x, torch.tensor(mean, device=x.device)[:, None, None])
    return x if view is None else _turned(x, view, "border")


def valid_in_view(valid: torch.Tensor, view: str | None) -> torch.Tensor:
    """The same view of valid areas ``(B, H, W)``."""
    if view is None or view == "clamp":
        return valid
    return _turned(valid[:, None].float(), view, "zeros")[:, 0] >= 0.5


def _turned(x: torch.Tensor, view: str, padding: str) -> torch.Tensor:
    """Images ``(B, C, H, W)`` flipped, mirrored or turned about their centre."""
    if view in ("flip", "mirror"):
        return x.flip(2 if view == "flip" else 3)
    angle = math.radians(float(view.removeprefix("rotate")))
    (height, width), cos, sin = x.shape[2:], math.cos(angle), math.sin(angle)
    # Coordinates go from -1 to 1 along each side, so a turn of an oblong image must know its aspect.
    turn = torch.tensor([[cos, -sin * height / width, 0], [sin * width / height, cos, 0]], device=x.device)
    where = F.affine_grid(turn.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, where, padding_mode=padding, align_corners=False)
