"""One training of a detector, and what each way from its map to a score is worth; one JSON line for each.

    python benchmarks/poolings.py ROOT -d zhanglab_dev -m 'stfpm steps=800' [-m ...] [--seed 0] [-o results.jsonl]

ROOT holds the data sets. "own" is the detector's own score. All normals of the training side are learnt from, none are
held out for p-values. Intervals are those of ``anomed bench``: draws of patients.
"""

import time
from pathlib import Path

from shared import POOLINGS, command_line, detector_from, show

from anomalib_med import FittedModel, Preprocessing, fit
from anomalib_med.datasets.benchmarks import Benchmark, open_benchmark
from anomalib_med.evaluation.evaluate import evaluate_model
from anomalib_med.models.base import Detector
from anomalib_med.models.training import TrainedDetector

SHOWN = ("auroc", "ap", "pixel_auroc", "pixel_ap", "aupro@0.3")


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("-d", "--dataset", action="append", required=True)
    parser.add_argument("-m", "--model", action="append", required=True)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, help="side of the model input; by default the detector's")
    options = parser.parse_args()
    for dataset in options.dataset:
        benchmark = open_benchmark(dataset, options.root)
        for text in options.model:
            detector = detector_from(text, seed=options.seed)
            start = time.perf_counter()
            size = options.size or detector.input_size
            frames, train = Preprocessing(size=size), list(benchmark.train)
            model = fit(detector, train, calibration=0, preprocessing=frames, device="cpu")
            trained = {"dataset": dataset, "model": text, "seed": options.seed, "size": size}
            trained |= {"fit_s": round(time.perf_counter() - start)}
            if isinstance(detector, TrainedDetector) and detector.training is not None:
                trained |= {"steps": detector.training.step, "loss": round(sum(detector.training.losses.values()), 4)}
            tasks = benchmark.tasks
            for pooling in ("own", *POOLINGS) if "image" in tasks else ("own",):
                line = trained | {"pooling": pooling} | measure(model, detector, benchmark, pooling, tasks)
                show(line, options.output)
                tasks = ("image",)  # the map is the same


def measure(
    model: FittedModel, detector: Detector, benchmark: Benchmark, pooling: str, tasks: tuple[str, ...]
) -> dict[str, object]:
    """Metrics with intervals, of the detector's own score or of its map pooled anew."""
    original, config = detector.image_score, detector.config
    try:
        if pooling != "own":
            detector.config = config.model_copy(update={"pooling": pooling})
            detector.image_score = lambda x, maps, valid: Detector.image_score(detector, x, maps, valid)  # type: ignore[method-assign]
        evaluation = evaluate_model(model, list(benchmark.test), tasks=tasks)
    finally:
        detector.config = config
        detector.image_score = original  # type: ignore[method-assign]
    found: dict[str, object] = {"images_per_s": round(len(benchmark.test) / evaluation.seconds, 1)}
    for key, interval in evaluation.metrics.items():
        if key in SHOWN:
            found[key] = [round(interval.value, 4), round(interval.low, 4), round(interval.high, 4)]
    return found


if __name__ == "__main__":
    main()
