"""PatchCore: distance to the nearest of a bank of normal patch features.

Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022, https://arxiv.org/abs/2106.08265.
"""

from collections.abc import Mapping

import torch
from pydantic import Field, JsonValue

from anomalib_med.errors import FitError
from anomalib_med.models.base import Detector, FeatureConfig, TrainingFrames
from anomalib_med.models.memory_bank.coreset import k_center
from anomalib_med.models.memory_bank.neighbours import Engine, NearestNeighbours
from anomalib_med.models.pooling import valid_cells


class PatchCore(Detector):
    """Compares each patch of an image with a small bank of patches that covers all normal ones.

    Patches stream into a pool of bounded size (a random share of each image's where they do not all fit); the bank is
    a greedy k-centre coreset of the pool. The anomaly map is the Euclidean distance to the nearest patch of the bank.
    """

    name = "patchcore"
    title = "PatchCore (Roth et al., CVPR 2022)"

    class Config(FeatureConfig):
        """Settings of PatchCore.

        Parameters
        ----------
        bank_size
            Patches in the bank: a number, or a share of all normal patches as in the paper (0.01 is its 1 %).
        max_bank_mb
            Memory for the pool that the bank is chosen from, in MiB of float16 features.
        sampling
            "coreset" (the paper's greedy k-centre) or "random".
        engine
            Neighbour search, see :class:`anomalib_med.models.memory_bank.neighbours.NearestNeighbours`.
        """

        bank_size: float = Field(2000, gt=0)
        max_bank_mb: float = Field(256.0, gt=0)
        sampling: str = Field("coreset", pattern="^(coreset|random)$")
        engine: Engine = "auto"

    config: Config

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings)
        self.bank = torch.empty(0)
        self._search: NearestNeighbours | None = None

    def fit(self, frames: TrainingFrames) -> None:
        """Collect patches of the normals and choose the bank.

        Raises
        ------
        FitError
            Where no image could be read.
        """
        pool, seen = self._collect(frames)
        size = self.config.bank_size
        count = min(len(pool), max(1, round(size * seen) if size < 1 else int(size)))
        if self.config.sampling == "random":
            picks = torch.randperm(len(pool), generator=torch.Generator().manual_seed(self.config.seed))[:count]
        else:
            picks = k_center(
                pool.to(self.device),
                count,
                seed=self.config.seed,
                progress=lambda done, total: self.progress("choosing the bank", done, total),
            )
        self._set_bank(pool[picks.cpu()])

    def anomaly_map(self, x: torch.Tensor) -> torch.Tensor:
        """Distances ``(B, h, w)`` to the bank on the grid of the finest layer."""
        return torch.stack([self._distances(features) for features in self.features(x)])

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, JsonValue]]:
        """The bank, float16 ``(M, D)``."""
        return {"bank": self.bank.cpu()}, {}

    def load_state(self, tensors: Mapping[str, torch.Tensor], extra: Mapping[str, JsonValue]) -> None:
        """Take a bank."""
        self._set_bank(tensors["bank"])

    def to(self, device: torch.device) -> "PatchCore":
        """Move the extractor and the bank."""
        super().to(device)
        if len(self.bank):
            self._set_bank(self.bank)
        return self

    def _collect(self, frames: TrainingFrames) -> tuple[torch.Tensor, int]:
        """Pool of patches, float16 ``(P, D)``, and how many patches there were."""
        generator = torch.Generator().manual_seed(self.config.seed)
        extractor = self.extractor
        assert extractor is not None
        capacity = max(1, int(self.config.max_bank_mb * 2**20 / (2 * extractor.channels)))
        share = max(1, capacity // max(1, len(frames)))
        # Memory that no patch is written to is never taken from the system.
        pool = torch.empty(share * len(frames), extractor.channels, dtype=torch.float16)
        filled = seen = 0
        for batch in frames.batches(extractor.batch_size):
            features = extractor(batch.x).cpu()
            cells = valid_cells(batch.valid, (features.shape[2], features.shape[3]))
            for grid, counted in zip(features, cells, strict=True):
                rows = torch.nonzero(counted.flatten())[:, 0]
                seen += len(rows)
                if len(rows) > share:
                    rows = rows[torch.randperm(len(rows), generator=generator)[:share]].sort().values
                pool[filled : filled + len(rows)] = grid.flatten(1).T[rows]
                filled += len(rows)
        if not filled:
            raise FitError("no normal image could be read: see the failures listed, or check the folder")
        return pool[:filled], seen

    def _set_bank(self, bank: torch.Tensor) -> None:
        self.bank = bank.to(self.device).contiguous()
        self._search = NearestNeighbours(self.bank, self.config.engine)

    def _distances(self, features: torch.Tensor) -> torch.Tensor:
        if self._search is None:
            raise FitError("PatchCore is not fitted: call fit, or load a saved model")
        height, width = features.shape[1:]
        distances, _ = self._search.search(features.flatten(1).T)
        return distances[:, 0].reshape(height, width)
