"""Exact nearest neighbours: a matrix product in chunks, or a flat index of faiss."""

from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    import faiss

Engine = Literal["auto", "faiss", "torch"]
CHUNK_BYTES = 64 * 2**20  # of distances held at once


class NearestNeighbours:
    """Search in a fixed set of vectors.

    Parameters
    ----------
    bank
        ``(M, D)``, any float type.
    engine
        "torch": a chunked matrix product, on any device; "faiss": a flat index, on the GPU where `bank` is on one and
        faiss was built for it; "auto": torch, which was the faster one for banks of 2,000 to 100,000
        (`make bench-search`). They differ only where two neighbours are equally near to one part in 10,000.
    """

    def __init__(self, bank: torch.Tensor, engine: Engine = "auto") -> None:
        self.device = bank.device
        # Distances do not change under a shift, and float32 holds those of centred vectors better.
        self._centre = bank.float().mean(0)
        self._vectors = bank.float() - self._centre
        self.engine: Engine = "torch" if engine == "auto" else engine
        self._index = _faiss_index(self._vectors) if self.engine == "faiss" else None
        self._squared = (self._vectors * self._vectors).sum(1)

    @torch.inference_mode()
    def search(self, queries: torch.Tensor, k: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """The k nearest vectors of each query.

        Parameters
        ----------
        queries
            ``(Q, D)``, any float type, on the bank's device.

        Returns
        -------
        Euclidean distances float32 ``(Q, k)``, nearest first, and row numbers int64 ``(Q, k)``.
        """
        centred = queries.float() - self._centre
        size = max(1, CHUNK_BYTES // (4 * len(self._vectors)))
        rows = torch.cat([self._nearest(chunk, k) for chunk in torch.split(centred, size)])
        # Engines find neighbours through |q|^2 + |b|^2 - 2qb, which is blind below a thousandth of the norm;
        # the distance itself is taken from the difference, so it is the same from every engine.
        return torch.stack([(centred - self._vectors[column]).norm(dim=1) for column in rows.T], dim=1), rows

    def _nearest(self, queries: torch.Tensor, k: int) -> torch.Tensor:
        if self._index is not None:
            return torch.from_numpy(self._index.search(queries.cpu().numpy(), k)[1]).to(self.device)
        offsets = torch.addmm(self._squared[None], queries, self._vectors.T, alpha=-2)
        return offsets.min(1, keepdim=True).indices if k == 1 else offsets.topk(k, dim=1, largest=False).indices


def _faiss_index(vectors: torch.Tensor) -> "faiss.Index":
    import faiss

    index: faiss.Index = faiss.IndexFlatL2(vectors.shape[1])
    if vectors.device.type == "cuda" and hasattr(faiss, "StandardGpuResources"):
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), vectors.device.index or 0, index)
    index.add(vectors.cpu().numpy())
    return index
