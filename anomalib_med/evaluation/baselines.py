"""Trivial baselines: one number an image, nothing learnt. A data set on which they score says little of a detector.

File size, mean grey, standard deviation and Laplacian variance know no direction, so the better of the two is taken: an
oracle, which makes the warning stricter. The difference to the mean image is a detector of its own, and keeps its
direction.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from anomalib_med.datasets.readers import read
from anomalib_med.datasets.sample import Image, Sample
from anomalib_med.errors import ReadError
from anomalib_med.evaluation.image_metrics import image_auroc
from anomalib_med.models.base import Progress, silent

SIDE = 64  # of the images that are compared with their mean
SCORES_FROM = 0.6
"""A set is marked where the interval of a trivial baseline's AUROC lies above this."""

UNDIRECTED = ("file size", "mean grey", "standard deviation", "Laplacian variance")
MEAN_IMAGE = "difference to mean image"


def baseline_scores(
    train: Sequence[Sample], test: Sequence[Sample], *, progress: Progress = silent
) -> dict[str, np.ndarray]:
    """The number of each test image, by name of the baseline.

    Parameters
    ----------
    train
        Normals, of which the mean image is made.
    test
        Images to be judged.
    progress
        Called with stage, done and total.

    Returns
    -------
    float64 ``(N,)`` each; NaN where an image cannot be read.
    """
    total, count = np.zeros((SIDE, SIDE)), 0
    for done, sample in enumerate(train, 1):
        image = _read(sample)
        if image is not None:
            total += _small(image)
            count += 1
        progress("mean image", done, len(train))
    mean = total / max(1, count)
    rows = []
    for done, sample in enumerate(test, 1):
        image = _read(sample)
        rows.append([np.nan] * 5 if image is None else [_size(sample, image), *_numbers(image, mean)])
        progress("trivial baselines", done, len(test))
    return dict(zip((*UNDIRECTED, MEAN_IMAGE), np.array(rows, float).T, strict=True))


def directed(name: str, labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Scores of a baseline, turned round where it has no direction of its own and is better that way."""
    kept = np.isfinite(scores)
    if name in UNDIRECTED and len(np.unique(labels[kept])) == 2 and image_auroc(labels[kept], scores[kept]) < 0.5:
        return -scores
    return scores


def _read(sample: Sample) -> Image | None:
    try:
        return read(sample)
    except ReadError:
        return None


def _size(sample: Sample, image: Image) -> float:
    """Bytes of the file; of a volume or an array, where they say nothing of the image, its pixels."""
    if sample.path is None or sample.frame is not None:
        return float(image.pixels.shape[0] * image.pixels.shape[1])
    return float(sample.path.stat().st_size)


def _numbers(image: Image, mean: np.ndarray) -> tuple[float, float, float, float]:
    grey = _grey(image)
    laplacian = cv2.Laplacian(grey, cv2.CV_32F)
    difference = np.abs(_small(image) - mean).mean()
    return float(grey.mean()), float(grey.std()), float(laplacian.var()), float(difference)


def _grey(image: Image) -> np.ndarray:
    return image.pixels if image.pixels.ndim == 2 else np.ascontiguousarray(image.pixels.mean(axis=2))


def _small(image: Image) -> np.ndarray:
    resized: np.ndarray = cv2.resize(_grey(image), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return resized.astype(float)
