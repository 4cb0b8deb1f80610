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
    """The result of each test image, by name of the baseline.

    Parameters
    ----------
    train
        Normals, of which the mean image is made.
    test
        Images to be judged, labelled.
    progress
        Called with stage, done and total.

    Returns
    -------
    Lists of the length of `test`. Only the difference to the mean image has maps, and those only where `test` has
    lesions to find.
    """
    mean = _mean_image(train, progress)
    located = any(sample.label == 1 and has_mask(sample) for sample in test)
    results: dict[str, list[Result]] = {name: [] for name in (*UNDIRECTED, MEAN_IMAGE)}
    for done, sample in enumerate(test, 1):
        try:
            image = read(sample)
        except ReadError as error:
            for name in results:
                results[name].append(_result(sample, float("nan"), status=str(error)))
        else:
            for name, number in zip(UNDIRECTED, (_size(sample, image), *_numbers(image)), strict=True):
                results[name].append(_result(sample, number))
            difference = np.abs(_small(image) - mean).astype(np.float32)
            whole = Geometry(image.shape, (SIDE, SIDE), (0, 0, SIDE, SIDE))
            maps = {"grid": difference, "geometry": whole} if located else {}
            results[MEAN_IMAGE].append(_result(sample, float(difference.mean()), **maps))
        progress("trivial baselines", done, len(test))
    return {name: _directed(given, test) if name in UNDIRECTED else given for name, given in results.items()}


def _directed(results: list[Result], test: Sequence[Sample]) -> list[Result]:
    """Turned round where that ranks the images better."""
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


def _result(sample: Sample, score: float, **rest: object) -> Result:
    return Result(sample.id, "", sample.frame, sample.patient, score, **rest)  # type: ignore[arg-type]


def _size(sample: Sample, image: Image) -> float:
    """Bytes of the file; of a volume or an array, where they say nothing of the image, its pixels."""
    if sample.path is None or sample.frame is not None:
        return float(image.pixels.shape[0] * image.pixels.shape[1])
    return float(sample.path.stat().st_size)


def _numbers(image: Image) -> tuple[float, float, float]:
    grey = _grey(image)
    return float(grey.mean()), float(grey.std()), float(cv2.Laplacian(grey, cv2.CV_32F).var())


def _grey(image: Image) -> np.ndarray:
    return image.pixels if image.pixels.ndim == 2 else np.ascontiguousarray(image.pixels.mean(axis=2))


def _small(image: Image) -> np.ndarray:
    resized: np.ndarray = cv2.resize(_grey(image), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return resized.astype(float)
