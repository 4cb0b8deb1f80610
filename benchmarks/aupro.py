"""AUPRO of many maps, streamed: seconds and peak memory, and the same of the peer where it is installed.

    python benchmarks/aupro.py [--images 1000] [--side 512] [--peer-images 200]

Maps are smoothed noise with lesions of random size, made from a seed. The peer (anomalib, optional) takes
all its maps as one array, in a process of its own, so it may be given fewer; both are then also run on that number,
and the ratio of speeds is that of one run on the same arrays. One JSON line each.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator

import cv2
import numpy as np

DISTINCT = 32  # noise fields; each image is one of them, turned, scaled and shifted


def pairs(count: int, side: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    fields = [cv2.GaussianBlur(rng.random((side, side), np.float32), (0, 0), 4) for _ in range(DISTINCT)]
    for i in range(count):
        mask = np.zeros((side, side), np.uint8)
        for _ in range(rng.integers(1, 4)):
            centre, axes = rng.integers(side // 8, side - side // 8, 2), rng.integers(side // 50, side // 12, 2)
            cv2.ellipse(mask, centre.tolist(), axes.tolist(), 0, 0, 360, 1, -1)
        map = np.rot90(fields[i % DISTINCT], i // DISTINCT) * np.float32(rng.uniform(0.9, 1.1)) + 0.02 * mask
        yield np.ascontiguousarray(map, np.float32), mask


def ours(count: int, side: int) -> tuple[float, float, dict[str, float]]:
    from anomalib_med.evaluation.curves import values_of
    from anomalib_med.evaluation.pixel_metrics import PIXEL_METRICS, PixelMetrics

    metrics, seconds = PixelMetrics(), 0.0
    for map, mask in pairs(count, side):
        start = time.perf_counter()
        metrics.add(map, mask)
        seconds += time.perf_counter() - start
    start = time.perf_counter()
    curve = metrics.curve()
    values = values_of(PIXEL_METRICS, curve)
    seconds += time.perf_counter() - start
    return values["aupro@0.3"], seconds, {"error_bound": curve.aupro_error()} | values


def peer(count: int, side: int) -> tuple[float, float, dict[str, float]]:
    import torch
    from anomalib.metrics.aupro import _AUPRO

    metric, seconds = _AUPRO(fpr_limit=0.3), 0.0
    for map, mask in pairs(count, side):
        start = time.perf_counter()
        metric.update(torch.from_numpy(map)[None], torch.from_numpy(mask.astype(np.int64))[None])
        seconds += time.perf_counter() - start
    start = time.perf_counter()
    value = float(metric.compute())
    return value, seconds + time.perf_counter() - start, {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--peer-images", type=int, default=200)
    parser.add_argument("--only", choices=["ours", "peer"], help=argparse.SUPPRESS)
    parser.add_argument("--peer-python", default=sys.executable, help="Python of an environment that has the peer")
    options = parser.parse_args()
    if options.only:
        value, seconds, more = (ours if options.only == "ours" else peer)(options.images, options.side)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({"aupro": value, "seconds": round(seconds, 3), "peak_gb": round(peak, 2)} | more))
        return
    show("ours", options.images, options.side, sys.executable)
    mine = show("ours", options.peer_images, options.side, sys.executable)
    theirs = show("peer", options.peer_images, options.side, options.peer_python)
    if mine and theirs:
        ratio = round(theirs["seconds"] / mine["seconds"], 2)
        print(json.dumps({"times_faster": ratio, "difference": mine["aupro"] - theirs["aupro"]}))


def show(who: str, images: int, side: int, python: str) -> dict[str, float] | None:
    """Run one of them in a process of its own, so that its peak memory is its own."""
    command = [python, __file__, "--only", who, "--images", str(images), "--side", str(side)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        print(f"{who}: not run ({run.stderr.strip().splitlines()[-1]})")
        return None
    result: dict[str, float] = json.loads(run.stdout)
    print(json.dumps({"who": who, "images": images, "side": side} | result))
    return result


if __name__ == "__main__":
    main()
