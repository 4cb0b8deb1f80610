"""AnomalyDINO: cosine distance of each patch to the nearest of a few normal images, with the views of VisionAD.

Damm et al., "AnomalyDINO: Boosting Patch-based Few-shot Anomaly Detection with DINOv2", WACV 2025,
https://arxiv.org/abs/2405.14529. VisionAD: "Search is All You Need for Few-shot Anomaly Detection", 2025,
https://arxiv.org/abs/2504.11895.
"""

import math
import re
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, JsonValue, field_validator

from anomalib_med.errors import ConfigError, FitError
from anomalib_med.models.base import BankConfig, Detector
from anomalib_med.models.memory_bank.coreset import k_center
from anomalib_med.models.memory_bank.neighbours import Engine, NearestNeighbours
from anomalib_med.models.pooling import valid_cells
from anomalib_med.preprocessing import Frames

QUERY_VIEWS = ("flip", "mirror", "clamp")
SUPPORT_VIEW = re.compile(r"flip|mirror|clamp|rotate-?\d+")


class AnomalyDINO(Detector):
    """Looks for each patch in a bank of the patches of normal images, few or many, of one kind or several.

    Patches are compared by the angle between their features. The bank takes all valid patches of the normals chosen,
    and of their views; an image can be looked at in several views as well, each with a bank of its own.
    """

    name = "anomalydino"
    title = "AnomalyDINO (Damm et al., WACV 2025), with the views of VisionAD (2025)"

    class Config(BankConfig):
        """Settings of AnomalyDINO.

        Parameters
        ----------
        fusion
            Of several layers: "concat", each of unit length, so that their cosines are averaged; or "mean" of their
            features, VisionAD's, for layers of one width.
        shots
            Normals that the bank is made from, chosen at random; 0 for all.
        support_views
            Further views of each normal for the bank: "mirror" (left and right), "flip" (up and down), "clamp" (all
            that is darker than the backbone's mean grey becomes that), "rotate<degrees>". On chest images, mirrored and
            rotated normals hide a heart on the wrong side.
        query_views
            Views that an image is also looked at in: "mirror", "flip", "clamp". Each has a bank of the normals in the
            same view; maps are averaged.
        bank_size
            Patches in each bank; of more, a greedy k-centre coreset is kept.
        max_bank_mb
            Memory for the patches that the banks are chosen from, in MiB of float16 features.
        engine
            Neighbour search, see :class:`anomalib_med.models.memory_bank.neighbours.NearestNeighbours`.
        """

        fusion: Literal["concat", "mean"] = "concat"
        shots: int = Field(0, ge=0)
        support_views: tuple[str, ...] = ()
        query_views: tuple[str, ...] = ()
        bank_size: int = Field(5000, ge=1)
        max_bank_mb: float = Field(64.0, gt=0)
        engine: Engine = "auto"

        @field_validator("support_views", "query_views", mode="before")
        @classmethod
        def _split_views(cls, views: object) -> object:
            return tuple(part.strip() for part in views.split(",") if part.strip()) if isinstance(views, str) else views

        @field_validator("support_views")
        @classmethod
        def _known_support(cls, views: tuple[str, ...]) -> tuple[str, ...]:
            for view in views:
                if not SUPPORT_VIEW.fullmatch(view):
                    raise ValueError(f'"{view}" is not a view: use mirror, flip, clamp or an angle as in rotate5')
            return views

        @field_validator("query_views")
        @classmethod
        def _known_query(cls, views: tuple[str, ...]) -> tuple[str, ...]:
            for view in views:
                if view not in QUERY_VIEWS:
                    raise ValueError(f'"{view}" is not a view of a query: use {", ".join(QUERY_VIEWS)}')
            return views

    config: Config

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings)
        self._banks: list[torch.Tensor] = []  # (M, D) each, of unit length: of the image as it is, then of each view
        self._searches: list[NearestNeighbours] = []

    def fit(self, frames: Frames) -> None:
        """Collect the patches of the chosen normals in every view.

        Raises
        ------
        FitError
            Where no image could be read.
        """
        pools = self._collect(frames)
        if not pools[0]:
            raise FitError("no normal image could be read: see the failures listed, or check the folder")
        self._set([self._reduced(torch.cat(pool)) for pool in pools])

    def anomaly_map(self, x: torch.Tensor) -> torch.Tensor:
        """Cosine distances ``(B, h, w)`` from 0 to 2 to the nearest patches, on the grid of the finest layer."""
        if not self._banks:
            raise FitError("AnomalyDINO is not fitted: call fit, or load a saved model")
        maps = [self._distances(self.features(x), self._searches[0])]
        for view, search in zip(self.config.query_views, self._searches[1:], strict=True):
            distances = self._distances(self._extract(self._view(x, view)), search)
            maps.append(distances.flip({"flip": 1, "mirror": 2}[view]) if view != "clamp" else distances)
        return torch.stack(maps).mean(0)

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, JsonValue]]:
        """The banks, float16 ``(M, D)``: ``bank`` of images as they are, and one for each view of a query."""
        return {_bank_name(i): bank.cpu() for i, bank in enumerate(self._banks)}, {}

    def load_state(self, tensors: Mapping[str, torch.Tensor], extra: Mapping[str, JsonValue]) -> None:
        """Take banks."""
        self._set([tensors[_bank_name(i)] for i in range(1 + len(self.config.query_views))])

    def to(self, device: torch.device) -> "AnomalyDINO":
        """Move the extractor and the banks."""
        super().to(device)
        self._set(self._banks)
        return self

    def _set(self, banks: list[torch.Tensor]) -> None:
        self._banks = [bank.to(self.device).contiguous() for bank in banks]
        self._searches = [NearestNeighbours(bank, self.config.engine) for bank in self._banks]

    def _collect(self, frames: Frames) -> list[list[torch.Tensor]]:
        """Patches ``(P, D)`` of the chosen normals, for each view of a query and for each view of the normals."""
        extractor = self.extractor
        c, total = self.config, len(frames)
        generator = torch.Generator().manual_seed(c.seed)
        chosen = set(torch.randperm(total, generator=generator)[: c.shots or total].tolist())
        queries, supports = (None, *c.query_views), (None, *c.support_views)
        images = max(1, len(chosen)) * len(queries) * len(supports)
        share = max(1, int(c.max_bank_mb * 2**20 / (2 * extractor.channels)) // images)
        pools: list[list[torch.Tensor]] = [[] for _ in queries]
        read = 0
        for batch in frames.batches(extractor.batch_size):
            rows = [i for i in range(len(batch.x)) if read + i in chosen]
            read += len(batch.x)
            if not rows:
                continue
            for support in supports:
                x, valid = self._view(batch.x[rows], support), _view_valid(batch.valid[rows], support)
                for query, pool in zip(queries, pools, strict=True):
                    features = self._extract(self._view(x, query))
                    cells = valid_cells(_view_valid(valid, query), (features.shape[2], features.shape[3]))
                    pool += [
                        _some(self._unit(g)[v.flatten()], share, generator)
                        for g, v in zip(features, cells, strict=True)
                    ]
        return pools

    def _reduced(self, pool: torch.Tensor) -> torch.Tensor:
        if len(pool) <= self.config.bank_size:
            return pool
        picks = k_center(
            pool,
            self.config.bank_size,
            seed=self.config.seed,
            progress=lambda done, total: self.progress("choosing the bank", done, total),
        )
        return pool[picks]

    def _extract(self, x: torch.Tensor) -> torch.Tensor:
        extractor = self.extractor
        return extractor(x)

    def _unit(self, grid: torch.Tensor) -> torch.Tensor:
        """Patches ``(h w, D)`` of unit length, float16, of features ``(D, h, w)``."""
        extractor = self.extractor
        widths = extractor.widths
        layers = torch.split(grid.flatten(1).float(), list(widths))
        if self.config.fusion == "concat":
            joined = torch.cat([F.normalize(layer, dim=0) for layer in layers])
        elif len(set(widths)) == 1:
            joined = torch.stack(layers).mean(0)
        else:
            raise ConfigError(f'fusion "mean" needs layers of one width, these have {widths}: use "concat"')
        return F.normalize(joined, dim=0).T.half().contiguous()

    def _distances(self, features: torch.Tensor, search: NearestNeighbours) -> torch.Tensor:
        shape = features.shape[2:]
        # Of unit vectors, half the squared distance is one less the cosine.
        nearest = [search.search(self._unit(grid))[0][:, 0] for grid in features]
        return torch.stack([distances.square().reshape(shape) / 2 for distances in nearest])

    def _view(self, x: torch.Tensor, view: str | None) -> torch.Tensor:
        """A view of inputs ``(B, C, H, W)``."""
        if view == "clamp":
            extractor = self.extractor
            mean = torch.tensor(extractor.backbone.mean, device=x.device)[:, None, None]
            return torch.maximum(x, mean)
        return x if view is None else _turned(x, view, "border")


def _view_valid(valid: torch.Tensor, view: str | None) -> torch.Tensor:
    """The same view of valid areas ``(B, H, W)``."""
    if view is None or view == "clamp":
        return valid
    return _turned(valid[:, None].float(), view, "zeros")[:, 0] >= 0.5


def _turned(x: torch.Tensor, view: str, padding: str) -> torch.Tensor:
    """Images ``(B, C, H, W)`` flipped, mirrored or turned about their centre."""
    if view in ("flip", "mirror"):
        return x.flip(2 if view == "flip" else 3)
    angle = math.radians(float(view.removeprefix("rotate")))
    height, width = x.shape[2:]
    # Coordinates go from -1 to 1 along each side, so a turn of an oblong image must know its aspect.
    cos, sin = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[cos, -sin * height / width, 0], [sin * width / height, cos, 0]], device=x.device)
    where = F.affine_grid(turn.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, where, padding_mode=padding, align_corners=False)


def _some(patches: torch.Tensor, share: int, generator: torch.Generator) -> torch.Tensor:
    """At most `share` of the patches, at random."""
    if len(patches) <= share:
        return patches
    return patches[torch.randperm(len(patches), generator=generator)[:share].sort().values]


def _bank_name(number: int) -> str:
    return f"bank{number}" if number else "bank"
