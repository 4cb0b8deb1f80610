"""PatchCore: distance to the nearest of a bank of normal patch features.

Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022, https://arxiv.org/abs/2106.08265.
"""

from collections.abc import Mapping
from typing import Literal, cast

import torch
from pydantic import Field, JsonValue

from anomalib_med.models.base import Detector
from anomalib_med.models.memory_bank.coreset import k_center
from anomalib_med.models.memory_bank.heights import HeightConfig, HeightDetector, HeightSearch, add_height, with_heights
from anomalib_med.models.memory_bank.kmeans import kmeans
from anomalib_med.models.memory_bank.patch_pool import PatchPool, capacity
from anomalib_med.models.pooling import pool, valid_cells
from anomalib_med.preprocessing import Frames
from anomalib_med.records import Progress, silent


class PatchCore(HeightDetector):
    """Compares each patch of an image with a small bank of patches that covers all normal ones.

    The bank is a greedy k-centre coreset of a pool of bounded size, which patches stream into. The anomaly map is the
    Euclidean distance to the nearest patch of the bank.
    """

    name = "patchcore"
    title = "PatchCore (Roth et al., CVPR 2022)"

    class Config(HeightConfig):
        """Settings of PatchCore."""

        bank_size: float = Field(2000, gt=0)
        """Patches in the bank: a number, or below 1 a share of all normal patches (0.01 is the paper's 1 %). With a
        number, more normals make neither the model larger nor a score slower."""
        sampling: Literal["coreset", "random", "kmeans", "full"] = "coreset"
        """How the bank is chosen from the patches: as the paper's greedy k-centre coreset, at random, as the centres of
        clusters (kmeans), or not at all (full; `bank_size` is not used then). Without a coreset, a random share of each
        image's patches is kept where not all fit."""
        position: float = Field(0.0, ge=0)
        """How much the place of a patch counts: the height or the width of the image is worth so many standard
        deviations of the features. With 0 a patch is compared with patches of all places, as in the paper."""
        reweighted: int = Field(0, ge=0)
        """Neighbours b of the paper's image score (equation 7): the largest distance, times one minus the softmax of
        the distances to the b patches of the bank around the nearest one; 0 for the map pooled as `pooling` says. 9 is
        usual; the official code has none."""

    config: Config
    seen = 0  # patches that the bank stands for
    _spread = 0.0  # standard deviation of the features, the unit of place and height
    _with_height = False

    def fit(self, frames: Frames) -> None:
        """Collect patches of the normals and choose the bank."""
        c, extractor = self.config, self.extractor
        self.seen, self._spread = 0, 0.0
        self._with_height, batches = with_heights(self.normals(frames))
        channels = extractor.channels + len(self._context())
        most = capacity(c.max_bank_mb, channels)
        share = most if c.sampling == "coreset" else max(1, most // max(1, len(frames)))
        generator = torch.Generator().manual_seed(c.seed)
        images = 0

        def reduce(patches: torch.Tensor) -> torch.Tensor:
            expected = self.seen * len(frames) / max(1, images)
            size = min(len(patches), most // 4, 2 * self._count(patches, expected))
            return self._choose(patches, size, frames.progress)

        kept = PatchPool(most, channels, reduce)
        for batch in batches:
            features = extractor(batch.x).cpu()
            cells = valid_cells(batch.valid, features.shape[2:])
            for grid, counted, height in zip(features, cells, batch.heights.tolist(), strict=True):
                rows = torch.nonzero(counted.flatten())[:, 0]
                self.seen += len(rows)
                if len(rows) > share:
                    rows = rows[torch.randperm(len(rows), generator=generator)[:share]].sort().values
                kept.add(self._with_context(grid, height)[rows])
                images += 1
        self._keep(self._choose(kept.patches, self._count(kept.patches, self.seen), frames.progress))

    def merge(self, other: Detector) -> None:
        """Choose the bank anew from both banks; one whose size is a share keeps the patches of both."""
        assert isinstance(other, PatchCore)
        union = torch.cat([self.bank.cpu(), other.bank.cpu()])
        stands_for = torch.cat([torch.full((len(d.bank),), d.seen / len(d.bank)) for d in (self, other)])
        self.seen += other.seen
        count = len(union) if self.config.bank_size < 1 else self._count(union, self.seen)
        self._keep(self._choose(union, count, silent, stands_for))

    def _map(self, grid: torch.Tensor, height: float) -> torch.Tensor:
        return self._search.search(self._patches(grid, height))[0].reshape(grid.shape[1:])

    def _score(self, x: torch.Tensor, maps: torch.Tensor, valid: torch.Tensor, heights: list[float]) -> torch.Tensor:
        """The pooled map, or the paper's score, see `reweighted`."""
        if not self.config.reweighted:
            return pool(maps, valid, self.config.pooling)
        cells = valid_cells(valid, maps.shape[1:]).to(maps.device)
        worst = maps.masked_fill(~cells, -torch.inf).flatten(1).argmax(1).tolist()
        each = zip(self.features(x), heights, worst, strict=True)
        return torch.cat([self._reweighted(grid, height, row) for grid, height, row in each])

    @property
    def bank(self) -> torch.Tensor:
        """The bank, float16 ``(M, D)``; with `position` two more columns, row and column from 0 to 1, then height."""
        return self.learnt("bank")

    def load_state(self, tensors: Mapping[str, torch.Tensor], extra: Mapping[str, JsonValue]) -> None:
        """Take a bank, what it stands for and the standard deviation of its features."""
        super().load_state(tensors, extra)
        self.seen, self._spread = int(cast(int, extra["seen"])), float(cast(float, extra["spread"]))
        self._with_height = bool(extra.get("height", False))
        self._search = HeightSearch(self._weighed(self.bank), self.config.engine, with_height=self._with_height)

    def _keep(self, bank: torch.Tensor) -> None:
        self._weighed(bank)  # finds the standard deviation, if nothing did before
        extra: dict[str, JsonValue] = {"seen": self.seen, "spread": self._spread, "height": self._with_height}
        self.load_state({"bank": bank.contiguous()}, extra)

    def _context(self) -> list[float]:
        """How much each of the last columns of a patch counts: row and column, and the height."""
        return [self.config.position] * (2 if self.config.position else 0) + [self.config.height] * self._with_height

    def _with_context(self, grid: torch.Tensor, height: float) -> torch.Tensor:
        """Patches ``(cells, D)`` of features ``(D, h, w)``, with their row and column from 0 to 1, and their height."""
        if self.config.position:
            rows, columns = (torch.linspace(0.5 / n, 1 - 0.5 / n, n, device=grid.device) for n in grid.shape[1:])
            grid = torch.cat([grid, torch.stack(torch.meshgrid(rows, columns, indexing="ij")).half()])
        patches = grid.flatten(1).T
        return add_height(patches, height) if self._with_height else patches

    def _weighed(self, patches: torch.Tensor) -> torch.Tensor:
        """Patches whose place and height, where they count, are in units of the features."""
        if not (context := self._context()):
            return patches
        features, places = patches[:, : -len(context)], patches[:, -len(context) :]
        if not self._spread:
            sample = features[:: max(1, len(features) // 50_000)].float()
            self._spread = max(float(sample.var(0, correction=0).sum().sqrt()), 1e-6)
        weights = self._spread * torch.tensor(context, device=places.device)
        return torch.cat([features, (weights * places.float()).half()], 1)

    def _patches(self, grid: torch.Tensor, height: float) -> torch.Tensor:
        """Patches of features ``(D, h, w)`` as they are compared with the bank."""
        return self._weighed(self._with_context(grid, height))

    def _count(self, patches: torch.Tensor, seen: float) -> int:
        """Patches of the bank, chosen from these, when it stands for so many."""
        size = self.config.bank_size
        wanted = len(patches) if self.config.sampling == "full" else round(size * seen) if size < 1 else int(size)
        return min(len(patches), max(1, wanted))

    def _choose(
        self, patches: torch.Tensor, count: int, progress: Progress, weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Choose so many patches of a pool, each of which stands for `weights` patches."""
        seed, sampling = self.config.seed, self.config.sampling
        if count == len(patches):
            return patches
        if sampling == "coreset":
            return patches[k_center(self._weighed(patches.to(self.device)), count, seed=seed, progress=progress)]
        if sampling == "kmeans":
            return kmeans(patches.to(self.device), count, weights, seed=seed, progress=progress).half().cpu()
        # Smallest of exponential waiting times: a draw without replacement.
        waits = torch.empty(len(patches)).exponential_(generator=torch.Generator().manual_seed(seed))
        return patches[(waits if weights is None else waits / weights).topk(count, largest=False).indices]

    def _reweighted(self, grid: torch.Tensor, height: float, row: int) -> torch.Tensor:
        """Equation 7 of the paper for the most anomalous patch of an image."""
        bank, patch = self._search.bank, self._patches(grid, height)[[row]]
        distance, nearest = self._search.search(patch)
        around = self._search.search(bank[nearest[0]], self.config.reweighted)[1][0]
        known = self._search.columns(patch)
        distances = (patch[:, :known].float() - bank[around, :known].float()).norm(dim=1)
        return (1 - torch.exp(distance[0] - distances.logsumexp(0)).clamp_max(1)) * distance[0]
