"""What the shared feature pass saves: PatchCore, then SPADE on the same backbone, with and without the cache.

    python benchmarks/shared_pass.py ROOT WEIGHTS [-d nih_rsna] [--backbone resnet18]

Prints the processor and wall seconds of each fit, reading and calibration included.
"""

import tempfile
import time
from pathlib import Path

from shared import command_line

from anomalib_med import fit
from anomalib_med.datasets.benchmarks import open_benchmark
from anomalib_med.models.registry import detector_class


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("root", type=Path, help="folder with the data sets")
    parser.add_argument("weights", help="safetensors file of the backbone")
    parser.add_argument("-d", "--dataset", default="nih_rsna")
    parser.add_argument("--backbone", default="resnet18")
    options = parser.parse_args()
    train = list(open_benchmark(options.dataset, options.root).train)
    with tempfile.TemporaryDirectory() as cache:
        for name, folder in (("patchcore", cache), ("spade", cache), ("spade", None)):
            detector = detector_class(name)(backbone=options.backbone, weights=options.weights)
            processor, wall = time.process_time(), time.perf_counter()
            fit(detector, train, cache=folder, device="cpu")
            spent = f"{time.process_time() - processor:.1f} s processor, {time.perf_counter() - wall:.1f} s wall"
            print(f"{name:<10} {'cache' if folder else 'no cache':<9} {spent}", flush=True)


if __name__ == "__main__":
    main()
