"""Exact nearest neighbours of the patches of one image: the chunked matrix product against faiss's flat index.

    python benchmarks/search.py [--patches 784] [--dimensions 128] [--rounds 7]

For each size of the bank the median time of a search, in turn in one process, their ratio, and how many of the
neighbours found are the same.
"""

import argparse
import json
import statistics
import time

import torch

from anomalib_med.models.memory_bank.neighbours import NearestNeighbours

SIZES = (1_000, 2_000, 10_000, 100_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, default=784)
    parser.add_argument("--dimensions", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    for size in SIZES:
        bank = torch.randn(size, options.dimensions, generator=generator).half()
        queries = torch.randn(options.patches, options.dimensions, generator=generator).half()
        engines = {name: NearestNeighbours(bank, name) for name in ("torch", "faiss")}
        times: dict[str, list[float]] = {name: [] for name in engines}
        rows = {}
        for _ in range(options.rounds):
            for name, engine in engines.items():
                start = time.perf_counter()
                rows[name] = engine.search(queries)[1]
                times[name].append(time.perf_counter() - start)
        line = {
            "bank": size,
            **{f"{name}_ms": round(1000 * statistics.median(values), 2) for name, values in times.items()},
            "faiss/torch": round(
                statistics.median(f / t for t, f in zip(times["torch"], times["faiss"], strict=True)), 2
            ),
            "same": round(float((rows["torch"] == rows["faiss"]).float().mean()), 5),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
