"""The reconstruction family on real data sets, and the pictures of its cards.

    python benchmarks/reconstruction.py table ROOT -o OUT [-d NAME ...] [-m NAME ...] [--steps 400] [--seeds 3]
    python benchmarks/reconstruction.py pictures [-m NAME ...] [--steps 400]
    python benchmarks/reconstruction.py detail ROOT [-d NAME ...]

``table`` runs `anomed bench`: every detector with the settings of METHODS and so many steps of 8 images, its last one,
on the data sets in ROOT; finished ones are not run again. It prints the image AUROC, mean over the seeds, with its 95 %
interval, fit time, images a second, and the difference to the mean image, of all that lies in OUT. ``pictures`` trains
each detector on chest phantoms and writes models/NAME/phantoms.jpg: for a nodule and for a foreign body, the largest of
fifteen each, the image, its reconstruction and the anomaly map. ``detail`` says what an error of pixels meets in a data
set: how well fine detail alone tells the classes apart, and the coarse and the fine part of what the first sixteen
principal components of the normals, a linear autoencoder, leave over.
"""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import torch

from anomalib_med import FittedModel, Preprocessing, fit
from anomalib_med.cli.main import main as anomed
from anomalib_med.datasets.benchmarks import open_benchmark
from anomalib_med.datasets.folder import discover
from anomalib_med.datasets.synthetic import add_lesion, chest_phantom
from anomalib_med.evaluation import image_auroc, pixel_auroc
from anomalib_med.evaluation.baselines import MEAN_IMAGE
from anomalib_med.evaluation.cells import read_cell
from anomalib_med.evaluation.summary import rows_of
from anomalib_med.models.registry import detector_class
from anomalib_med.outputs.overlay import colours
from anomalib_med.preprocessing import Frames

# Settings that a CPU can train in a minute; what is not named is the default. All on 64 pixels. Networks are cut where
# the default ones would take a minute a step; learning rates are those with which the tests find lesions in phantoms.
METHODS = {
    "autoencoder ssim": "loss=ssim learning_rate=3e-3",
    "autoencoder l2": "loss=l2 learning_rate=3e-3",
    "autoencoder perceptual": "learning_rate=3e-3",
    "aeu": "learning_rate=2e-3",
    "vae": "learning_rate=3e-3",
    "vae dirichlet": "prior=dirichlet learning_rate=3e-3",
    "memae": "learning_rate=3e-3",
    "fae": "grid=16 learning_rate=2e-3",
    "dae": "widths=16,32,64,128 learning_rate=2e-3",
    "cevae": "widths=16,64,128,256 learning_rate=1e-3",
    "ganomaly": "learning_rate=2e-3",
    "cvad": "widths=16,32,64,64 latent=128 fine_latent=128 learning_rate=3e-3",
}
DATASETS = ("zhanglab_dev", "covid_ct")
SHARED = "batch_size=8 schedule=cosine"
SIDE, NORMALS, SCALE, GAP = 128, 200, 2, 6
BLUR = 2.0  # standard deviation of the Gaussian between coarse and fine, in pixels of 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("table", "pictures", "detail"))
    parser.add_argument("root", type=Path, nargs="?")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("-d", "--dataset", action="append")
    parser.add_argument("-m", "--model", action="append", choices=METHODS)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    chosen = options.model or list(METHODS)
    if options.what == "pictures":
        for key in {key.split()[0]: key for key in reversed(chosen)}.values():  # of each card the first of its rows
            print(json.dumps(picture(key, options.steps)), flush=True)
        return
    if options.root is not None and options.what == "detail":
        for name in options.dataset or DATASETS:
            print(json.dumps(detail(name, options.root)), flush=True)
        return
    if options.root is None or options.output is None:
        parser.error("table needs ROOT and -o OUT, detail needs ROOT")
    words = ["bench", "--root", str(options.root), "-o", str(options.output), "--size", "64"]
    words += ["--seeds", str(options.seeds), "--calibration", "0"]
    for name in options.dataset or DATASETS:
        words += ["-d", name]
    for key in chosen:
        words += ["-m", label(key, options.steps)]
    anomed(words)
    print_table(options.output, options.steps)


def label(key: str, steps: int) -> str:
    """A method of METHODS as `anomed bench` takes it."""
    return " ".join([key.split()[0], *METHODS[key].split(), *SHARED.split(), f"steps={steps}"])


def print_table(out: Path, steps: int) -> None:
    """Means over the seeds with their 95 % intervals, of all that lies in OUT."""
    names = {label(key, steps): key for key in METHODS} | {MEAN_IMAGE: f"*{MEAN_IMAGE}*"}
    rows = rows_of([read_cell(path) for path in sorted((out / "cells").glob("*/*/seed-*.json"))])
    print("| data set | method | image AUROC [95 %] | sd over seeds | seeds | fit, s | images/s |")
    print("|---|---|---|---|---|---|---|")
    for row in sorted((r for r in rows if r.method in names), key=lambda r: (r.dataset, not r.baseline)):
        number = row.numbers.get("auroc")
        if number is None:
            print(f"| {row.dataset} | {names[row.method]} | {row.error} | | | | |")
            continue
        i, spread = number.interval, number.spread
        said = (f"{i.value:.3f} [{i.low:.3f}, {i.high:.3f}]", f"{spread.sd:.3f}", str(spread.seeds))
        cost = ("-", "-") if row.baseline else (f"{row.mean_of(key):.0f}" for key in ("fit_s", "images_per_s"))
        print(f"| {row.dataset} | {names[row.method]} | {' | '.join((*said, *cost))} |".replace("nan", "-"))


def detail(name: str, root: Path) -> dict[str, object]:
    """Image AUROC, higher is more abnormal, of the sizes of some differences."""
    benchmark = open_benchmark(name, root)
    preprocessing = Preprocessing(size=64, aspect="stretch", windows=((0, 255),))
    normals, images = (
        np.stack([frame.pixels[0] for frame in Frames(samples, preprocessing)])
        for samples in (list(benchmark.train), list(benchmark.test))
    )
    flat = normals.reshape(len(normals), -1)
    parts = np.linalg.svd(flat - flat.mean(0), full_matrices=False)[2][:16]
    centred = images.reshape(len(images), -1) - flat.mean(0)
    left = (centred - centred @ parts.T @ parts).reshape(images.shape)
    coarse = np.stack([cv2.GaussianBlur(each, (0, 0), BLUR) for each in left])
    fine = images - np.stack([cv2.GaussianBlur(each, (0, 0), BLUR) for each in images])
    sizes = {"fine_detail": fine, "error": left, "coarse_error": coarse, "fine_error": left - coarse}
    labels = [sample.label for sample in benchmark.test]
    return {"data set": name} | {k: round(image_auroc(labels, (v**2).mean((1, 2))), 3) for k, v in sizes.items()}


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


def picture(key: str, steps: int) -> dict:
    """Train on phantoms, draw the picture of the card, and measure what is in it on more phantoms."""
    name, *settings = label(key, steps).split()
    detector = detector_class(name)(**dict(word.split("=") for word in settings))
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
        "model": key,
        "steps": steps,
        "pixel_auroc": round(pixel_auroc(truth, list(scores.maps)), 3),
        "image_auroc": round(image_auroc(labels, scores.scores), 3),
        "mean_image_pixel_auroc": round(pixel_auroc(truth, difference), 3),
        "mean_image_image_auroc": round(image_auroc(labels, [d.mean() for d in difference]), 3),
    }


def strip(model: FittedModel, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Image with the lesion's outline, reconstruction where there is one, map in colours from its median; uint8 RGB."""
    (frame,) = Frames(discover(image[None]), model.preprocessing)
    parts = [frame.pixels.mean(0)]
    if hasattr(model.detector, "reconstruct"):
        with torch.inference_mode():
            parts.append(model.detector.reconstruct(torch.from_numpy(frame.pixels)[None])[0].mean(0).numpy())
    side = SCALE * SIDE
    grey = [cv2.resize(part, (side, side)) for part in parts]
    panels = [np.repeat(np.rint(255 * part.clip(0, 1)).astype(np.uint8)[..., None], 3, axis=2) for part in grey]
    large = cv2.resize(mask.astype(np.uint8), (side, side), interpolation=cv2.INTER_NEAREST)
    outline, _ = cv2.findContours(large, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    panels[0] = cv2.drawContours(panels[0].copy(), outline, -1, (255, 200, 0), 1)
    map = cv2.resize(model.score(image[None])[0].grid, (side, side))
    panels.append(colours(map, (float(np.median(map)), float(map.max()))))
    gap = np.full((side, GAP, 3), 16, np.uint8)
    return np.concatenate([part for panel in panels for part in (panel, gap)][:-1], axis=1)


if __name__ == "__main__":
    main()
