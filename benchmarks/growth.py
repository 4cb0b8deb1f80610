"""How the cost of fitting and scoring grows with the number of images: processor time and peak memory, plotted.

    python benchmarks/growth.py [-m patchcore] [--counts 100,300,1000,3000,10000] [--budget 32] [--plot docs/growth.png]

The images are phantoms of 128 pixels, a few hundred drawn ones shifted and with fresh noise, so that as many as are
asked for can be made in little time. They are written to a temporary folder and taken through the ordinary path: `fit`
on the first so many with default settings but for the budget (MiB), then `score_to_folder` of as many. Each number of
images and each half runs in a process of its own; processor time, all threads together, is less disturbed by other
work on the machine than the time on the clock.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from shared import command_line, show

SIDE, DRAWN = 128, 200


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("-m", "--model", action="append", help="detectors; by default patchcore")
    parser.add_argument("--counts", default="100,300,1000,3000,10000")
    parser.add_argument("--budget", type=float, default=32)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    counts = [int(count) for count in options.counts.split(",")]
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_images(root / "images", max(counts))
        for name in options.model or ["patchcore"]:
            for count in counts:
                line: dict = {"model": name, "images": count, "budget_mb": options.budget}
                for stage in ("fit", "score"):
                    arguments = [stage, str(root), name, str(count), str(options.budget)]
                    command = [sys.executable, "-W", "ignore", __file__, *arguments]
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    line |= json.loads(done.stdout.splitlines()[-1])
                lines.append(line)
                show(line)
    if options.plot:
        plot(lines, options.plot)


def write_images(folder: Path, count: int) -> None:
    """PNG files whose names sort in order; the first do not depend on how many follow."""
    from anomalib_med.phantoms import chest_phantom

    folder.mkdir()
    drawn = [chest_phantom(seed, SIDE).pixels for seed in range(min(DRAWN, count))]
    for i in range(count):
        rng = np.random.default_rng(i)
        pixels = np.roll(drawn[i % len(drawn)], rng.integers(-4, 5, 2), (0, 1)).astype(np.float32)
        pixels = 255 * (pixels - pixels.min()) / np.ptp(pixels) + rng.normal(0, 2, pixels.shape)
        cv2.imwrite(str(folder / f"{i:06d}.png"), pixels.clip(0, 255).astype(np.uint8))


def stage(name: str, root: Path, model: str, count: int, budget: float) -> None:
    """One half of the work in this process; prints what it cost."""
    from anomalib_med import Preprocessing, fit, load, score_to_folder
    from anomalib_med.models.registry import detector_class

    images = [str(path) for path in sorted((root / "images").iterdir())[:count]]
    before = processor_seconds()
    folder = root / f"{model}_{count}"
    if name == "fit":
        detector = detector_class(model)
        settings = {"max_bank_mb": budget} if "max_bank_mb" in detector.Config.model_fields else {}
        fitted = fit(detector(**settings), images, preprocessing=Preprocessing(size=SIDE), device="cpu")
        fitted.save(folder)
    else:
        score_to_folder(load(folder, device="cpu"), images, root / f"{model}_{count}_out", maps="none", overlays=False)
    spent = processor_seconds() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    show({f"{name}_cpu_s": round(spent, 1), f"{name}_peak_mb": round(peak)})


def processor_seconds() -> float:
    """Processor time of this process so far, all threads together."""
    return sum(os.times()[:2])


def plot(lines: list[dict], path: Path) -> None:
    """Processor time and peak memory over the number of images."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for name in dict.fromkeys(line["model"] for line in lines):
        own = [line for line in lines if line["model"] == name]
        for half, style in (("fit", "o-"), ("score", "s--")):
            counts = [line["images"] for line in own]
            left.plot(counts, [line[f"{half}_cpu_s"] for line in own], style, label=f"{name}, {half}")
            right.plot(counts, [line[f"{half}_peak_mb"] for line in own], style, label=f"{name}, {half}")
    left.set(xscale="log", yscale="log", xlabel="images", ylabel="processor seconds")
    right.set(xscale="log", ylim=(0, None), xlabel="images", ylabel="peak memory of the process, MiB")
    left.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    if sys.argv[1:2] in (["fit"], ["score"]):
        stage(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), float(sys.argv[5]))
    else:
        main()
