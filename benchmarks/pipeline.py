"""Whole fit and whole scoring of one detector on folders, in this process: seconds, images a second, peak memory.

    python benchmarks/pipeline.py NORMALS TEST [--count 200] [--size 256] [--weights FILE] [-s bank_size=0.01] ...

TEST may have a folder "normal" beside others: then the image AUROC of normal against all others is printed, for each
pooling. Scoring counts everything from the file to the score and the map in the original geometry. One JSON line.
"""

import random
import resource
import time
from pathlib import Path

import numpy as np
import torch
from shared import POOLINGS, command_line, pooled, show

from anomalib_med import Preprocessing, fit
from anomalib_med.cli.options import parse_settings
from anomalib_med.datasets import discover
from anomalib_med.evaluation import image_auroc
from anomalib_med.models.registry import detector_class


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("normals")
    parser.add_argument("test")
    parser.add_argument("-m", "--model", default="patchcore")
    parser.add_argument("--count", type=int, help="normals to fit on, drawn at random; all by default")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--calibration", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", default="pretrained")
    parser.add_argument("-s", "--set", action="append", default=[])
    options = parser.parse_args()
    normals = discover(options.normals)
    random.Random(options.seed).shuffle(normals)
    normals = normals[: options.count]
    settings = {"weights": options.weights, "seed": options.seed} | parse_settings(tuple(options.set))
    detector = detector_class(options.model)(**settings)

    start = time.perf_counter()
    model = fit(detector, normals, calibration=options.calibration, preprocessing=Preprocessing(size=options.size))
    fitted = time.perf_counter() - start
    start = time.perf_counter()
    scores = model.score(options.test)
    for map in scores.maps:
        assert np.isfinite(map).all()
    scored = time.perf_counter() - start

    result = {
        "model": options.model,
        "settings": settings,
        "size": options.size,
        "images": len(normals),
        "fit_s": round(fitted, 2),
        "score_s": round(scored, 2),
        "score_img_s": round(len(scores) / scored, 1),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "threads": torch.get_num_threads(),
    }
    groups = [Path(r.path).parent.name for r in scores]
    if "normal" in groups and len(set(groups)) > 1:
        labels = np.array([g != "normal" for g in groups])
        for pooling in POOLINGS:
            values = pooled([r.grid for r in scores], pooling)
            result[f"auroc {pooling}"] = {"all": round(image_auroc(labels, values), 4)} | {
                g: round(image_auroc(labels[m], values[m]), 4)
                for g in sorted(set(groups) - {"normal"})
                if len(m := [i for i, h in enumerate(groups) if h in ("normal", g)])
            }
    show(result)


if __name__ == "__main__":
    main()
