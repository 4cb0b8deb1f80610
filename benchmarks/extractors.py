"""The features of several backbones under the same detectors on the same data sets; one JSON line for each result.

    python benchmarks/extractors.py ROOT -d zhanglab_dev -d nih_rsna -b radlite -b resnet18=FILE -o results.jsonl

ROOT holds the data sets (`anomed datasets show NAME` has the layout). A backbone is a name, or NAME=WEIGHTS;
``resnet50v2_gluon`` is the ResNet-50 v2 trunk of models/radlite/teachers.py. A result that the file already has is not
computed again. Detectors with a random choice run once for each seed, the others once. Image scores under every pooling
come from one fit.
"""

import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from shared import POOLINGS, backbone_from, command_line, pooled, show

from anomalib_med import FittedModel, Preprocessing, Sample, fit
from anomalib_med.datasets.benchmarks import Benchmark, open_benchmark
from anomalib_med.datasets.masks import read_mask
from anomalib_med.evaluation import image_auroc, pixel_auroc
from anomalib_med.models.registry import detector_class

sys.path.insert(0, str(Path(__file__).parents[1] / "models" / "radlite"))
import teachers  # noqa: F401 - makes resnet50v2_gluon known to timm

SEEDED = ("patchcore", "padim", "anomalydino")
POOLED = ("patchcore", "padim", "anomalydino")  # their score is a pooling of their map


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("-d", "--dataset", action="append", required=True)
    parser.add_argument("-b", "--backbone", action="append", required=True, metavar="NAME[=WEIGHTS]")
    parser.add_argument("-m", "--model", action="append", default=[])
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--cache", type=Path, help="folder that keeps features; by default they go after each backbone")
    options = parser.parse_args()
    known = [json.loads(line) for line in options.output.read_text().splitlines()] if options.output.exists() else []
    done = {(r["dataset"], r["backbone"], r["model"], r["seed"]) for r in known}
    for name in options.dataset:
        benchmark = open_benchmark(name, options.root)
        for backbone in options.backbone:
            with contextlib.nullcontext(options.cache) if options.cache else tempfile.TemporaryDirectory() as cache:
                for model in options.model or ("patchcore", "spade"):
                    for seed in range(options.seeds if model in SEEDED else 1):
                        if (name, backbone, model, seed) in done:
                            continue
                        result = {"dataset": name, "backbone": backbone, "model": model, "seed": seed}
                        result |= measure(benchmark, backbone, model, seed, options.size, cache)
                        show(result, options.output)


def measure(benchmark: Benchmark, backbone: str, model: str, seed: int, size: int, cache: str | Path) -> dict:
    detector = detector_class(model)(**backbone_from(backbone), seed=seed)
    start = time.perf_counter()
    frames, train = Preprocessing(size=size), list(benchmark.train)
    fitted = fit(detector, train, calibration=0, preprocessing=frames, seed=seed, cache=cache)
    result: dict = {"fit_s": round(time.perf_counter() - start, 1)}
    test = list(benchmark.test)
    start = time.perf_counter()
    scores = fitted.score(test)
    result["score_s"] = round(time.perf_counter() - start, 1)
    labels = np.array([sample.label for sample in test])
    if "image" in benchmark.tasks:
        result["image_auroc"] = image_level(fitted, test, labels, scores.scores, [r.grid for r in scores])
    if "pixel" in benchmark.tasks:
        maps = [scores.maps[i].astype(np.float16) for i in range(len(test))]
        masks = [read_mask(sample, map.shape) for sample, map in zip(test, maps, strict=True)]
        inside = labels == 1
        if inside.all() or "image" not in benchmark.tasks:
            maps, masks = ([v for v, kept in zip(values, inside, strict=True) if kept] for values in (maps, masks))
        result["pixel_auroc"] = round(pixel_auroc(masks, maps), 4)
    return result


def image_level(
    fitted: FittedModel, test: list[Sample], labels: np.ndarray, scores: np.ndarray, grids: list[np.ndarray]
) -> dict:
    """AUROC of the detector's own score and of other poolings of its map, by kind of lesion where it is known."""
    found = {"score": scores}
    if fitted.detector.name in POOLED:
        found |= {pooling: pooled(grids, pooling) for pooling in POOLINGS}
    result = {key: round(image_auroc(labels, values), 4) for key, values in found.items()}
    for key in ("kind", "view"):
        for kind in sorted({sample.meta.get(key, "") for sample in test if sample.label == 1}):
            rows = [i for i, s in enumerate(test) if s.meta.get(key, "") == kind or (key == "kind" and s.label == 0)]
            if kind and 20 <= labels[rows].sum() < labels.sum() and (labels[rows] == 0).any():
                result[f"score, {kind}"] = round(image_auroc(labels[rows], scores[rows]), 4)
    return result


if __name__ == "__main__":
    main()
