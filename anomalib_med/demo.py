"""The demo: phantoms, fit, score, and how well the planted lesions were found."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from anomalib_med.evaluation import image_auroc, pixel_auroc
from anomalib_med.fitting import fit
from anomalib_med.models.memory_bank.two_view import TwoView
from anomalib_med.outputs.tables import SCORES
from anomalib_med.phantoms.write import write_chest_dataset
from anomalib_med.records import Progress, silent
from anomalib_med.scoring import score_to_folder


@dataclass(frozen=True)
class DemoOutcome:
    """How the demo went."""

    image_auroc: float  # normal against abnormal phantoms
    pixel_auroc: float  # pixels inside against outside the planted lesions, normal phantoms included
    report: Path  # the HTML report


def run_demo(
    folder: Path, *, train: int = 160, test: int = 40, seed: int = 0, device: str = "auto", progress: Progress = silent
) -> DemoOutcome:
    """Write phantoms to ``folder/data``, a model to ``folder/model``, results to ``folder/results``."""
    data = folder / "data"
    write_chest_dataset(data, train=train, normal=test, abnormal=test, seed=seed)
    model = fit(TwoView(seed=seed), data / "train" / "normal", device=device, progress=progress)
    model.save(folder / "model", overwrite=True)
    results = folder / "results"
    score_to_folder(model, f"{data}/test/*normal/*.png", results, report=True, overwrite=True, progress=progress)
    scored = list(SCORES.read(results / "scores.csv"))
    labels = [int(Path(result.path).parent.name == "abnormal") for result in scored]
    maps = [np.load(results / result.map, allow_pickle=False) for result in scored]
    masks = [_mask(data, Path(result.path), map.shape) for result, map in zip(scored, maps, strict=True)]
    found, report = image_auroc(labels, [result.score for result in scored]), results / "report.html"
    return DemoOutcome(found, pixel_auroc(masks, maps), report)


def _mask(data: Path, image: Path, shape: tuple[int, ...]) -> np.ndarray:
    if image.parent.name == "normal":
        return np.zeros(shape, bool)
    mask = cv2.imread(str(data / "test" / "masks" / image.name), cv2.IMREAD_GRAYSCALE)
    assert mask is not None
    return np.asarray(mask) > 0
