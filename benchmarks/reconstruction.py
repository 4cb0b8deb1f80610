"""The reconstruction family on real data sets, and the pictures of its cards.

    python benchmarks/reconstruction.py table ROOT -o OUT [-d NAME ...] [-m NAME ...] [--steps 500] [--seeds 1]
    python benchmarks/reconstruction.py pictures [-m NAME ...] [--steps 500]

``table`` runs `anomed bench`: every detector with the settings of METHODS and so many steps of 16 images, its last one,
on the data sets in ROOT; finished ones are not run again. It prints image AUROC with its 95 % interval, fit time,
images a second, and the trivial baselines. ``pictures`` trains each detector on chest phantoms and writes
models/NAME/phantoms.jpg: for a nodule and for a foreign body, the largest of fifteen each, the image, its
reconstruction and the anomaly map.
"""

import argparse
import csv
import json
from pathlib import Path

import cv2
import numpy as np
import torch

from anomalib_med import FittedModel, Preprocessing, fit
from anomalib_med.cli.main import main as anomed
from anomalib_med.datasets.folder import discover
from anomalib_med.datasets.synthetic import add_lesion, chest_phantom
from anomalib_med.evaluation import image_auroc, pixel_auroc
from anomalib_med.models.registry import detector_class
from anomalib_med.outputs.overlay import colours
from anomalib_med.preprocessing import Frames

# Settings that a CPU can train in minutes; what is not named is the default. All on 64 pixels.
METHODS = {
    "aeu": "",
    "vae": "",
    "vae dirichlet": "prior=dirichlet",
    "vae ssim": "loss=ssim",
    "memae": "",
    "dae": "widths=16,32,64,128 learning_rate=1e-3",
    "cevae": "",
    "ganomaly": "",
    "cvad": "",
}
BATCH = "batch_size=16"
SIDE, NORMALS, SCALE, GAP = 128, 200, 2, 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("table", "pictures"))
    parser.add_argument("root", type=Path, nargs="?")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("-d", "--dataset", action="append")
    parser.add_argument("-m", "--model", action="append", choices=METHODS)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    chosen = options.model or list(METHODS)
    if options.what == "pictures":
        for key in dict.fromkeys(key.split()[0] for key in chosen):
            print(json.dumps(picture(key, options.steps)), flush=True)
        return
    if options.root is None or options.output is None:
        parser.error("table needs ROOT and -o OUT")
    words = ["bench", "--root", str(options.root), "-o", str(options.output), "--size", "64"]
    words += ["--seeds", str(options.seeds), "--calibration", "0"]
    for name in options.dataset or ("zhanglab_dev", "covid_ct"):
        words += ["-d", name]
    for key in chosen:
        words += ["-m", " ".join([key.split()[0], *METHODS[key].split(), BATCH, f"steps={options.steps}"])]
    anomed(words)
    print_table(options.output / "results.csv")


def print_table(path: Path) -> None:
    """The columns of a card."""
    print("| data set | method | seed | image AUROC (95 %) | fit, s | images/s |\n|---|---|---|---|---|---|")
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["metric"] == "auroc":
                number = f"{float(row['value']):.3f} ({float(row['low']):.3f}-{float(row['high']):.3f})"
                cells = (row["dataset"], row["method"], row["seed"], number, row["fit_s"], row["images_per_s"])
                print(f"| {' | '.join(cells)} |")


def planted(seeds: range, kind: str | None) -> tuple[np.ndarray, list[np.ndarray]]:
    """Chest phantoms, with a lesion in each, and the masks."""
    images, masks = [], []
    for seed in seeds:
        phantom = chest_phantom(seed, SIDE)
        pixels, mask = phantom.pixels, np.zeros((SIDE, SIDE), bool)
        if kind is not None:
            pixels, mask = add_lesion(pixels, phantom.lungs, kind, np.random.default_rng(seed))
        images.append(pixels)
        masks.append(mask)
    return np.stack(images), masks


def picture(name: str, steps: int) -> dict:
    """Train on phantoms, draw the picture of the card, and measure what is in it on more phantoms."""
    settings = dict(word.split("=") for word in f"{METHODS[name]} {BATCH}".split())
    detector = detector_class(name)(**settings, steps=steps)
    normals, _ = planted(range(NORMALS), None)
    model = fit(detector, normals, calibration=0, preprocessing=Preprocessing(size=64), device="cpu")
    healthy, nothing = planted(range(1000, 1030), None)
    sick, masks = zip(*(planted(range(2000, 2015), kind) for kind in ("nodule", "foreign")), strict=True)
    images, truth = np.concatenate([healthy, *sick]), [*nothing, *masks[0], *masks[1]]
    scores = model.score(images)
    labels = [0] * len(healthy) + [1] * (len(images) - len(healthy))
    difference = list(np.abs(images - normals.mean(0)))
    largest = [max(range(len(kind)), key=lambda i, kind=kind: int(kind[i].sum())) for kind in masks]
    rows = [strip(model, sick[k][i], masks[k][i]) for k, i in enumerate(largest)]
    path = Path(__file__).parents[1] / "models" / name / "phantoms.jpg"
    gap = np.full((GAP, rows[0].shape[1], 3), 16, np.uint8)
    cv2.imwrite(str(path), np.concatenate([rows[0], gap, rows[1]])[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
    return {
        "model": name,
        "steps": steps,
        "pixel_auroc": round(pixel_auroc(truth, list(scores.maps)), 3),
        "image_auroc": round(image_auroc(labels, scores.scores), 3),
        "mean_image_pixel_auroc": round(pixel_auroc(truth, difference), 3),
        "mean_image_image_auroc": round(image_auroc(labels, [d.mean() for d in difference]), 3),
    }


def strip(model: FittedModel, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Image with the lesion's outline, reconstruction, map in colours from its median to its maximum; uint8 RGB."""
    (frame,) = Frames(discover(image[None]), model.preprocessing)
    with torch.inference_mode():
        reconstruction = model.detector.reconstruct(torch.from_numpy(frame.pixels)[None])[0].mean(0).numpy()
    side = SCALE * SIDE
    grey = [cv2.resize(part, (side, side)) for part in (frame.pixels.mean(0), reconstruction)]
    panels = [np.repeat(np.rint(255 * part.clip(0, 1)).astype(np.uint8)[..., None], 3, axis=2) for part in grey]
    large = cv2.resize(mask.astype(np.uint8), (side, side), interpolation=cv2.INTER_NEAREST)
    outline, _ = cv2.findContours(large, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    panels[0] = cv2.drawContours(panels[0].copy(), outline, -1, (255, 200, 0), 1)
    map = cv2.resize(model.score(image[None])[0].grid, (side, side))
    panels.append(colours(map, (float(np.median(map)), float(map.max()))))
    gap = np.full((side, GAP, 3), 16, np.uint8)
    return np.concatenate([panels[0], gap, panels[1], gap, panels[2]], axis=1)


if __name__ == "__main__":
    main()
