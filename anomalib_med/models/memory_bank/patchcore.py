"""PatchCore: distance to the nearest of a bank of normal patch features.

Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022, https://arxiv.org/abs/2106.08265.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Literal, cast

import torch
from pydantic import Field, JsonValue

from anomalib_med.errors import FitError
from anomalib_med.models.base import BankConfig, Detector
from anomalib_med.models.memory_bank.coreset import k_center
from anomalib_med.models.memory_bank.kmeans import kmeans
from anomalib_med.models.memory_bank.neighbours import Engine, NearestNeighbours
from anomalib_med.models.memory_bank.patch_pool import PatchPool
from anomalib_med.models.pooling import valid_cells
from anomalib_med.preprocessing import Frames


class PatchCore(Detector):
    """Compares each patch of an image with a small bank of patches that covers all normal ones.

    Patches stream into a pool of bounded size, see :class:`PatchPool`; the bank is a greedy k-centre coreset of the
    pool. The anomaly map is the Euclidean distance to the nearest patch of the bank.
    """

    name = "patchcore"
    title = "PatchCore (Roth et al., CVPR 2022)"
    uses_height = True

    class Config(BankConfig):
        """Settings of PatchCore.

        Parameters
        ----------
        bank_size
            Patches in the bank: a number, or a share of all normal patches as in the paper (0.01 is its 1 %).
        max_bank_mb
            Memory for the pool that the bank is chosen from, in MiB of float16 features. When it is full, what it
            holds is replaced by its coreset (twice the bank); for the other ways of sampling a random share of each
            image's patches is kept.
        sampling
            "coreset" (the paper's greedy k-centre), "random", "kmeans" (centres of clusters) or "full" (the whole
            pool; `bank_size` is of no use then).
        position
            How much the place of a patch counts: the height or width of the image is worth that many standard
            deviations of the features. 0: a patch is compared with patches of all places, as in the paper.
        reweighted
            Neighbours b of the paper's image score: the largest distance, times one minus the softmax of the distances
            to the b patches of the bank around the nearest one (equation 7). 0: the map pooled as `pooling` says.
        engine
            Neighbour search, see :class:`anomalib_med.models.memory_bank.neighbours.NearestNeighbours`.
        """

        bank_size: float = Field(2000, gt=0)
        max_bank_mb: float = Field(256.0, gt=0)
        sampling: Literal["coreset", "random", "kmeans", "full"] = "coreset"
        position: float = Field(0.0, ge=0)
        height: float = Field(2.0, gt=0)
        reweighted: int = Field(0, ge=0)
        engine: Engine = "auto"

    config: Config

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings)
        self.bank = torch.empty(0)  # (M, D), with `position` (M, D + 2), with the height one column more
        self.seen = 0  # patches that the bank stands for
        self._spread = 0.0  # standard deviation of the features, what `position` counts in
        self._with_height = False
        self._search: NearestNeighbours | None = None
        self._of_all_heights: NearestNeighbours | None = None

    def fit(self, frames: Frames) -> None:
        """Collect patches of the normals and choose the bank.

        Raises
        ------
        FitError
            Where no image could be read.
        """
        self.seen, self._spread = 0, 0.0
        pool = self._collect(frames)
        self._set_bank(self._choose(pool, self._count(pool, self.seen)))

    def merge(self, other: Detector) -> None:
        """Choose the bank anew from both banks; one whose size is a share keeps the patches of both."""
        assert isinstance(other, PatchCore)
        union = torch.cat([self.bank.cpu(), other.bank.cpu()])
        stands_for = torch.cat([torch.full((len(d.bank),), d.seen / len(d.bank)) for d in (self, other)])
        self.seen += other.seen
        count = len(union) if self.config.bank_size < 1 else self._count(union, self.seen)
        self._set_bank(self._choose(union, count, stands_for))

    def anomaly_map(self, x: torch.Tensor) -> torch.Tensor:
        """Distances ``(B, h, w)`` to the bank on the grid of the finest layer."""
        return self.map_at(x, torch.full((len(x),), torch.nan))

    def map_at(self, x: torch.Tensor, heights: torch.Tensor) -> torch.Tensor:
        """Distances ``(B, h, w)`` to the bank, with what the slices' heights add."""
        return torch.stack(
            [
                self._nearest(grid, height)[0][:, 0].reshape(grid.shape[1:])
                for grid, height in zip(self.features(x), heights.tolist(), strict=True)
            ]
        )

    def image_score(self, x: torch.Tensor, maps: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Scores ``(B,)``: the pooled map, or the paper's score, see `reweighted`."""
        return self.score_at(x, maps, valid, torch.full((len(x),), torch.nan))

    def score_at(self, x: torch.Tensor, maps: torch.Tensor, valid: torch.Tensor, heights: torch.Tensor) -> torch.Tensor:
        """Scores ``(B,)`` of slices of these heights."""
        if not self.config.reweighted:
            return super().image_score(x, maps, valid)
        cells = valid_cells(valid, (maps.shape[1], maps.shape[2])).to(maps.device)
        worst = maps.masked_fill(~cells, -torch.inf).flatten(1).argmax(1).tolist()
        each = zip(self.features(x), heights.tolist(), worst, strict=True)
        return torch.cat([self._reweighted(grid, height, row) for grid, height, row in each])

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, JsonValue]]:
        """The bank, float16 ``(M, D)``; with `position` two more columns, row and column from 0 to 1, then height."""
        extra: dict[str, JsonValue] = {"seen": self.seen, "spread": self._spread, "height": self._with_height}
        return {"bank": self.bank.cpu()}, extra

    def load_state(self, tensors: Mapping[str, torch.Tensor], extra: Mapping[str, JsonValue]) -> None:
        """Take a bank."""
        self.seen, self._spread = int(cast(int, extra["seen"])), float(cast(float, extra["spread"]))
        self._with_height = bool(extra.get("height", False))
        self._set_bank(tensors["bank"])

    def to(self, device: torch.device) -> "PatchCore":
        """Move the extractor and the bank."""
        super().to(device)
        if len(self.bank):
            self._set_bank(self.bank)
        return self

    def _collect(self, frames: Frames) -> torch.Tensor:
        """Pool of patches, float16 ``(P, D)``."""
        extractor = self.extractor
        generator = torch.Generator().manual_seed(self.config.seed)
        batches = iter(frames.batches(extractor.batch_size))
        first = next(batches, None)
        if first is None:
            raise FitError("no normal image could be read: see the failures listed, or check the folder")
        self._with_height = bool(torch.isfinite(first.heights).all())
        channels = extractor.channels + len(self._context())
        capacity = max(4, int(self.config.max_bank_mb * 2**20 / (2 * channels)))
        share = capacity if self.config.sampling == "coreset" else max(1, capacity // max(1, len(frames)))
        images = 0

        def reduce(patches: torch.Tensor) -> torch.Tensor:
            expected = self.seen * len(frames) / max(1, images)
            return self._choose(patches, min(len(patches), capacity // 4, 2 * self._count(patches, expected)))

        pool = PatchPool(capacity, channels, reduce)
        for batch in chain([first], batches):
            if self._with_height != bool(torch.isfinite(batch.heights).all()):
                raise FitError("the height of some normals is known and of others not: fit them apart")
            features = extractor(batch.x).cpu()
            cells = valid_cells(batch.valid, (features.shape[2], features.shape[3]))
            for grid, counted, height in zip(features, cells, batch.heights.tolist(), strict=True):
                rows = torch.nonzero(counted.flatten())[:, 0]
                self.seen += len(rows)
                if len(rows) > share:
                    rows = rows[torch.randperm(len(rows), generator=generator)[:share]].sort().values
                pool.add(self._patches(grid, height)[rows])
                images += 1
        return pool.patches

    def _context(self) -> list[float]:
        """How much each of the last columns of a patch counts: row and column, and the height."""
        return [self.config.position] * (2 if self.config.position else 0) + [self.config.height] * self._with_height

    def _patches(self, grid: torch.Tensor, height: float) -> torch.Tensor:
        """Patches ``(cells, D)`` of features ``(D, h, w)``, with their row and column from 0 to 1, and their height."""
        planes = [grid]
        if self.config.position:
            rows, columns = (torch.linspace(0.5 / n, 1 - 0.5 / n, n, device=grid.device) for n in grid.shape[1:])
            planes.append(torch.stack(torch.meshgrid(rows, columns, indexing="ij")).half())
        if self._with_height:
            planes.append(torch.full_like(grid[:1], height))
        return torch.cat(planes).flatten(1).T

    def _weighed(self, patches: torch.Tensor) -> torch.Tensor:
        """Patches whose place and height, where they count, are in units of the features."""
        context = self._context()
        if not context:
            return patches
        features, places = patches[:, : -len(context)], patches[:, -len(context) :]
        if not self._spread:
            sample = features[:: max(1, len(features) // 50_000)].float()
            self._spread = max(float(sample.var(0, correction=0).sum().sqrt()), 1e-6)
        weights = self._spread * torch.tensor(context, device=places.device)
        return torch.cat([features, (weights * places.float()).half()], 1)

    def _nearest(
        self, grid: torch.Tensor, height: float, rows: Sequence[int] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Distance and row in the bank of the nearest of each patch of an image, or of some of them."""
        search, queries = self._fitted(), self._weighed(self._patches(grid, height))
        if self._with_height and math.isnan(height):
            search, queries = self._without_height(), queries[:, :-1]
        return search.search(queries if rows is None else queries[list(rows)])

    def _count(self, patches: torch.Tensor, seen: float) -> int:
        """Patches of the bank, chosen from these, when it stands for so many."""
        size = self.config.bank_size
        wanted = len(patches) if self.config.sampling == "full" else round(size * seen) if size < 1 else int(size)
        return min(len(patches), max(1, wanted))

    def _choose(self, pool: torch.Tensor, count: int, weights: torch.Tensor | None = None) -> torch.Tensor:
        """So many patches of a pool, each of which stands for `weights` patches."""
        if count == len(pool):
            return pool
        seed = self.config.seed

        def progress(done: int, total: int) -> None:
            self.progress("choosing the bank", done, total)

        if self.config.sampling == "coreset":
            return pool[k_center(self._weighed(pool.to(self.device)), count, seed=seed, progress=progress).cpu()]
        if self.config.sampling == "kmeans":
            return kmeans(pool.to(self.device), count, weights=weights, seed=seed, progress=progress).half().cpu()
        # Smallest of exponential waiting times: a draw without replacement.
        waits = torch.empty(len(pool)).exponential_(generator=torch.Generator().manual_seed(seed))
        return pool[(waits if weights is None else waits / weights).topk(count, largest=False).indices]

    def _set_bank(self, bank: torch.Tensor) -> None:
        self.bank = bank.to(self.device).contiguous()
        self._search = NearestNeighbours(self._weighed(self.bank), self.config.engine)
        self._of_all_heights = None

    def _fitted(self) -> NearestNeighbours:
        if self._search is None:
            raise FitError("PatchCore is not fitted: call fit, or load a saved model")
        return self._search

    def _without_height(self) -> NearestNeighbours:
        """Search that takes no account of the height, made when it is first needed."""
        if self._of_all_heights is None:
            self._of_all_heights = NearestNeighbours(self._weighed(self.bank)[:, :-1].contiguous(), self.config.engine)
        return self._of_all_heights

    def _reweighted(self, grid: torch.Tensor, height: float, row: int) -> torch.Tensor:
        """Equation 7 of the paper for the most anomalous patch of an image."""
        bank, patch = self._weighed(self.bank), self._weighed(self._patches(grid, height))[[row]]
        distance, nearest = self._nearest(grid, height, [row])
        around = self._fitted().search(bank[nearest[0]], self.config.reweighted)[1][0]
        known = bank.shape[1] - (self._with_height and math.isnan(height))
        distances = (patch[:, :known].float() - bank[around, :known].float()).norm(dim=1)
        return (1 - torch.exp(distance[0] - distances.logsumexp(0)).clamp_max(1)) * distance[0]
