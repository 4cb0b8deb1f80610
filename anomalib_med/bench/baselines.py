"""Trivial baselines: one number an image, nothing learnt. A data set on which they score says little of a detector.

File size, mean grey, standard deviation and Laplacian variance know no direction, so the better of the two is taken: an
oracle, which makes the warning stricter. The difference to the mean image is a detector of its own, and keeps its
direction.
"""

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from anomalib_med.datasets.masks import has_mask
from anomalib_med.datasets.readers import read
from anomalib_med.errors import ReadError
from anomalib_med.evaluation import image_auroc
from anomalib_med.records import Geometry, Image, Progress, Result, Sample, silent

SIDE = 64  # of the images that are compared with their mean
SCORES_FROM = 0.6
"""A set is marked where the interval of a trivial baseline's AUROC lies above this."""

UNDIRECTED = ("file size", "mean grey", "standard deviation", "Laplacian variance")
MEAN_IMAGE = "difference to mean image"


def baseline_results(
    train: Sequence[Sample], test: Sequence[Sample], *, progress: Progress = silent
) -> dict[str, list[Result]]:
    """The result of each labelled test image, by name of the baseline; the mean image is that of the normals `train`.

    Only the difference to the mean image has maps, and those only where `test` has lesions to find.
    """
    mean = _mean_image(train, progress)
    located = any(sample.label == 1 and has_mask(sample) for sample in test)
    results: dict[str, list[Result]] = {name: [] for name in (*UNDIRECTED, MEAN_IMAGE)}
    for done, sample in enumerate(test, 1):
        blank = Result(sample.id, "", sample.frame, sample.patient, float("nan"))
        try:
            image = read(sample)
        except ReadError as error:
            for given in results.values():
                given.append(replace(blank, status=str(error)))
        else:
            for name, number in zip(UNDIRECTED, _numbers(sample, image), strict=True):
                results[name].append(replace(blank, score=number))
            difference = np.abs(_small(image) - mean).astype(np.float32)
            scored = replace(blank, score=float(difference.mean()))
            if located:
                whole = Geometry(image.shape, (SIDE, SIDE), (0, 0, SIDE, SIDE))
                scored = replace(scored, grid=difference, geometry=whole)
            results[MEAN_IMAGE].append(scored)
        progress("trivial baselines", done, len(test))
    return results | {name: _directed(results[name], test) for name in UNDIRECTED}


def _directed(results: list[Result], test: Sequence[Sample]) -> list[Result]:
    """The results with their sign turned where that ranks the images better."""
    kept = [(s.label, r.score) for s, r in zip(test, results, strict=True) if r.ok]
    labels, scores = np.array([label for label, _ in kept]), np.array([score for _, score in kept])
    if len(np.unique(labels)) == 2 and image_auroc(labels, scores) < 0.5:
        return [replace(result, score=-result.score) for result in results]
    return results


def _mean_image(train: Sequence[Sample], progress: Progress) -> np.ndarray:
    total, count = np.zeros((SIDE, SIDE)), 0
    for done, sample in enumerate(train, 1):
        try:
            total += _small(read(sample))
            count += 1
        except ReadError:
            pass  # fitting names it
        progress("mean image", done, len(train))
    return total / max(1, count)


def _numbers(sample: Sample, image: Image) -> tuple[float, float, float, float]:
    """Values of `UNDIRECTED`."""
    grey = _grey(image)
    # In a volume or an array the size of the file says nothing of the image: its pixels are counted.
    size = grey.size if sample.path is None or sample.frame is not None else sample.path.stat().st_size
    return float(size), float(grey.mean()), float(grey.std()), float(cv2.Laplacian(grey, cv2.CV_32F).var())


def _grey(image: Image) -> np.ndarray:
    return image.pixels if image.pixels.ndim == 2 else np.ascontiguousarray(image.pixels.mean(axis=2))


def _small(image: Image) -> np.ndarray:
    resized: np.ndarray = cv2.resize(_grey(image), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return resized.astype(float)
