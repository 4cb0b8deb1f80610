"""Nearest neighbours of the patches of one image: time and recall of every engine, and of those that were not taken.

    python benchmarks/search.py [--images FOLDER] [--sizes 2000,10000,50000,200000] [--rounds 3]

The bank is patches of radlite, of phantoms or of the images in a folder; the queries are those of one further image.
For each size of the bank, in turn in one process: seconds to make the index, median milliseconds of a search, the share
of queries whose nearest vector is found, and by how much the distance of the worst tenth of a percent is too large.
"""

import statistics
import time
from collections.abc import Callable

import faiss
import numpy as np
import torch
from shared import command_line, show

from anomalib_med import Preprocessing, Sample
from anomalib_med.datasets import discover, samples_from_array
from anomalib_med.features import FeatureExtractor
from anomalib_med.models.memory_bank.neighbours import NearestNeighbours
from anomalib_med.phantoms import chest_phantom
from anomalib_med.preprocessing import Frames

PATCHES = 784  # of an image of 224 x 224 pixels

Search = Callable[[], torch.Tensor]


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--images", metavar="FOLDER", help="by default phantoms")
    parser.add_argument("--sizes", default="2000,10000,50000,200000")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    count = max(sizes) // PATCHES + 2
    samples = discover(options.images)[:count] if options.images else phantoms(count)
    *images, last = patches(samples)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bank = torch.cat(images)
    bank = bank[torch.randperm(len(bank), generator=torch.Generator().manual_seed(0))].to(device)
    for size in sizes:
        if size <= len(bank):
            compare(bank[:size], last.to(device), options.rounds)
    show({"threads": torch.get_num_threads(), "device": str(device), "queries": len(last)})


def phantoms(count: int) -> list[Sample]:
    """Chest phantoms in memory."""
    return samples_from_array(np.stack([chest_phantom(seed, 224).pixels for seed in range(count)]))


def patches(samples: list[Sample]) -> list[torch.Tensor]:
    """Features ``(cells, D)`` of each image."""
    extractor = FeatureExtractor()
    preprocessing = Preprocessing(windows=("percentile",))
    return [
        grid.flatten(1).T.contiguous()
        for batch in Frames(samples, preprocessing).batches(extractor.batch_size)
        for grid in extractor(batch.x)
    ]


def compare(bank: torch.Tensor, queries: torch.Tensor, rounds: int) -> None:
    """Print a line for each engine."""
    exact: torch.Tensor | None = None
    for name, make in engines(bank, queries).items():
        start = time.perf_counter()
        search = make()
        built = time.perf_counter() - start
        search()
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            rows = search()
            if rows.is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        distances = (queries.float() - bank[rows].float()).norm(dim=1)
        exact = distances if exact is None else exact
        excess = (distances / exact.clamp_min(1e-6) - 1).clamp_min(0)
        line = {
            "bank": len(bank),
            "engine": name,
            "made_s": round(built, 2),
            "search_ms": round(1000 * statistics.median(times), 1),
            "recall": round(float((excess < 1e-6).float().mean()), 4),
            "excess_99.9%": round(float(excess.quantile(0.999)), 4),
        }
        show(line)


def engines(bank: torch.Tensor, queries: torch.Tensor) -> dict[str, Callable[[], Search]]:
    """How to make each engine; the first is exact. Those of faiss with a star are not part of the package."""
    numbers = (bank.float() - bank.float().mean(0)).cpu().numpy()
    asked = (queries.float() - bank.float().mean(0)).cpu().numpy()
    lists = int(2 * len(bank) ** 0.5)

    def ours(name: str) -> Callable[[], Search]:
        def make() -> Search:
            engine = NearestNeighbours(bank, name)
            return lambda: engine.search(queries)[1][:, 0]

        return make

    def theirs(kind: str, **settings: float) -> Callable[[], Search]:
        def make() -> Search:
            index = faiss.index_factory(numbers.shape[1], kind)
            index.train(numbers)
            index.add(numbers)
            for key, value in settings.items():
                faiss.ParameterSpace().set_index_parameter(index, key, value)
            return lambda: torch.from_numpy(index.search(asked, 1)[1][:, 0]).to(bank.device)

        return make

    return {
        "torch": ours("torch"),
        "faiss": ours("faiss"),
        **({"half": ours("half")} if bank.is_cuda else {}),
        "flat*": theirs("Flat"),
        "PQ*": theirs("PQ32x4fs,RFlat", k_factor_rf=200),
        "IVF-PQ*": theirs(f"IVF{lists},PQ32x4fs,RFlat", nprobe=32, k_factor_rf=50),
        "HNSW*": theirs("HNSW32", efSearch=64),
    }


if __name__ == "__main__":
    main()
