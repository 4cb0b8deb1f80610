"""The pictures of the reconstruction family's cards, and what its errors meet in a data set.

    python benchmarks/reconstruction.py pictures [-m NAME ...]
    python benchmarks/reconstruction.py detail ROOT [-d NAME ...]

``pictures`` trains each detector, with the settings of families.py, on chest phantoms and writes
models/NAME/phantoms.jpg: for a nodule and for a foreign body, the largest of fifteen each, the image, its
reconstruction and the anomaly map. ``detail`` says what an error of pixels meets in a data
set: how well fine detail alone tells the classes apart, and the coarse and the fine part of what the first sixteen
principal components of the normals, a linear autoencoder, leave over.
"""

from pathlib import Path

import cv2
import numpy as np
import torch
from families import METHODS
from shared import TOP, command_line, show

from anomalib_med import FittedModel, Preprocessing, fit
from anomalib_med.bench.plan import methods_of
from anomalib_med.datasets.benchmarks import open_benchmark
from anomalib_med.datasets.folder import discover
from anomalib_med.evaluation import image_auroc, pixel_auroc
from anomalib_med.models.registry import detector_class
from anomalib_med.outputs.overlay import colours
from anomalib_med.phantoms import add_lesion, chest_phantom
from anomalib_med.preprocessing import Frames

DATASETS = ("zhanglab_dev", "covid_ct")
SIDE, NORMALS, SCALE, GAP = 128, 200, 2, 6
BLUR = 2.0  # standard deviation of the Gaussian between coarse and fine, in pixels of 64


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("what", choices=("pictures", "detail"))
    parser.add_argument("root", type=Path, nargs="?")
    parser.add_argument("-d", "--dataset", action="append")
    parser.add_argument("-m", "--model", action="append", choices=METHODS["reconstruction"])
    options = parser.parse_args()
    if options.what == "pictures":
        chosen = options.model or METHODS["reconstruction"]
        for key in {key.split()[0]: key for key in reversed(chosen)}.values():  # of each card the first of its rows
            show(picture(key))
        return
    if options.root is None:
        parser.error("detail needs ROOT, the folder with the data sets")
    for name in options.dataset or DATASETS:
        show(detail(name, options.root))


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


def picture(key: str) -> dict:
    """Train on phantoms, draw the picture of the card, and measure what is in it on more phantoms."""
    (method,) = methods_of([f"{key.split()[0]} {METHODS['reconstruction'][key]}"], {})
    detector = detector_class(method.detector)(**method.settings)
    normals, _ = planted(range(NORMALS), None)
    model = fit(detector, normals, calibration=0, preprocessing=Preprocessing(size=method.size), device="cpu")
    healthy, nothing = planted(range(1000, 1030), None)
    sick, masks = zip(*(planted(range(2000, 2015), kind) for kind in ("nodule", "foreign")), strict=True)
    images, truth = np.concatenate([healthy, *sick]), [*nothing, *masks[0], *masks[1]]
    scores = model.score(images)
    labels = [0] * len(healthy) + [1] * (len(images) - len(healthy))
    difference = list(np.abs(images - normals.mean(0)))
    largest = [max(range(len(kind)), key=lambda i, kind=kind: int(kind[i].sum())) for kind in masks]
    rows = [strip(model, sick[k][i], masks[k][i]) for k, i in enumerate(largest)]
    path = TOP / "models" / method.detector / "phantoms.jpg"
    gap = np.full((GAP, rows[0].shape[1], 3), 16, np.uint8)
    cv2.imwrite(str(path), np.concatenate([rows[0], gap, rows[1]])[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
    return {
        "model": key,
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
