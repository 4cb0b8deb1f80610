"""Nearest neighbours in a bank: exact by a matrix product, in half precision on a GPU, or by inverted lists of faiss.

Engines only propose neighbours; distances are taken in float32 from the difference itself. So engines differ only
where one of them misses the nearest vector: `make bench-search` shows how rarely, and how fast each one is.
Inverted lists: Sivic and Zisserman, "Video Google", ICCV 2003, as in faiss, https://arxiv.org/abs/2401.08281.
"""

import importlib.util
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field

from anomalib_med.models.base import PooledBankConfig

if TYPE_CHECKING:
    import faiss

Engine = Literal["auto", "torch", "half", "faiss"]
BLOCK = 8192  # vectors of the bank in one matrix product
CHUNK_BYTES = 64 * 2**20  # of distances held at once
LISTS_FROM = 10_000  # vectors from which inverted lists are worth their making
PROBED = 32  # lists that are searched for each query
PROPOSED = 8  # neighbours that a half-precision product proposes beyond those asked for
HALF_NORM = 100.0  # of the longest vector in half precision: products stay far below its largest number, 65,504


class SearchConfig(PooledBankConfig):
    """Settings of a detector that looks for each patch in a bank."""

    max_bank_mb: float = Field(256.0, gt=0)
    """Memory for the patches that the bank is chosen from, in MiB of float16 features. When it is full, its content is
    replaced by a coreset. With radlite at 224 pixels all patches of 1,337 images fit."""
    engine: Engine = "auto"
    """Engine of the neighbour search: torch (exact), faiss (inverted lists, for large banks on a CPU), half (half
    precision, for a GPU), or auto, which chooses by device and size of the bank. A distance differs from the exact one
    by more than 1 % for fewer than one patch in 100."""


class NearestNeighbours:
    """Search in a fixed set of vectors ``(M, D)``, of any float type.

    Engine "torch" is a matrix product in blocks, on any device; "half" the same in half precision, and the best few
    exactly; "faiss" the 32 nearest of about ``2 sqrt(M)`` inverted lists exactly, on the CPU. "auto" takes "half" on a
    GPU, and on a CPU "torch" up to 10,000 vectors and above it "faiss" where that is installed.
    """

    def __init__(self, bank: torch.Tensor, engine: Engine = "auto") -> None:
        has_faiss = importlib.util.find_spec("faiss") is not None
        on_cpu: Engine = "faiss" if len(bank) > LISTS_FROM and has_faiss else "torch"
        suitable: Engine = "half" if bank.device.type == "cuda" else on_cpu
        self.engine: Engine = suitable if engine == "auto" else engine
        self._bank = bank
        # Distances do not change under a shift, and float32 holds those of centred vectors better.
        self._centre = bank.float().mean(0)
        vectors = bank.float() - self._centre
        self._squared = (vectors * vectors).sum(1)
        self._scale, self._index = 1.0, None
        if self.engine == "faiss":
            self._index, vectors = _inverted_lists(vectors), vectors[:0]
        elif self.engine == "half":
            self._scale = HALF_NORM / max(float(self._squared.max().sqrt()), 1e-12)
            self._squared *= self._scale**2
            vectors = (vectors * self._scale).half()
        self._vectors = vectors

    @torch.inference_mode()
    def search(self, queries: torch.Tensor, k: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Euclidean distances float32 ``(Q, k)``, nearest first, and rows int64 of the vectors nearest to each query.

        Queries ``(Q, D)`` are of any float type and on the bank's device; all vectors come back where there are fewer.
        """
        k = min(k, len(self._bank))
        centred = queries.float() - self._centre
        proposed = min(k + PROPOSED, len(self._bank)) if self.engine == "half" else k
        rows = self._by_product(centred, proposed) if self._index is None else _by_lists(self._index, centred, k)
        # Products find neighbours through |q|^2 + |b|^2 - 2qb, which is blind below a thousandth of the norm.
        apart = [(centred - (self._bank[column].float() - self._centre)).norm(dim=1) for column in rows.T]
        distances = torch.stack(apart, dim=1)
        if proposed > k:
            distances, order = distances.topk(k, dim=1, largest=False)
            rows = rows.gather(1, order)
        return distances, rows

    def _by_product(self, queries: torch.Tensor, k: int) -> torch.Tensor:
        queries = (queries * self._scale).to(self._vectors.dtype) if self.engine == "half" else queries
        size = max(1, CHUNK_BYTES // (4 * min(BLOCK, len(self._vectors))))
        return torch.cat([self._nearest(chunk, k) for chunk in torch.split(queries, size)])

    def _nearest(self, queries: torch.Tensor, k: int) -> torch.Tensor:
        values, rows = [], []
        for start in range(0, len(self._vectors), BLOCK):
            block, lengths = self._vectors[start : start + BLOCK], self._squared[start : start + BLOCK]
            if self.engine == "half":
                offsets = (queries @ block.T).float().mul_(-2).add_(lengths)
            else:
                offsets = torch.addmm(lengths[None], queries, block.T, alpha=-2)
            least = offsets.min(1, keepdim=True) if k == 1 else offsets.topk(min(k, len(block)), 1, largest=False)
            values.append(least.values)
            rows.append(least.indices + start)
        if len(rows) == 1:
            return rows[0]
        best = torch.cat(values, 1).topk(k, 1, largest=False).indices
        return torch.cat(rows, 1).gather(1, best)


def _inverted_lists(vectors: torch.Tensor) -> "faiss.IndexIVFFlat":
    import faiss

    count = max(1, int(2 * len(vectors) ** 0.5))
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(vectors.shape[1]), vectors.shape[1], count)
    # Where the lists lie hardly matters, and they are made whenever the model is loaded.
    index.cp.niter, index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 5, 1, 40
    numbers = vectors.cpu().numpy()
    index.train(numbers)
    index.add(numbers)
    index.nprobe = PROBED
    return index


def _by_lists(index: "faiss.IndexIVFFlat", queries: torch.Tensor, k: int) -> torch.Tensor:
    import faiss

    numbers = queries.cpu().numpy()
    rows = index.search(numbers, k)[1]
    if (rows < 0).any():  # the lists that were searched hold fewer than k
        every = faiss.SearchParametersIVF()
        every.nprobe = index.nlist
        rows = index.search(numbers, k, params=every)[1]
    return torch.from_numpy(rows).to(queries.device)
