"""FROC: how many lesions are found at how many false detections an image, from maps and masks or boxes.

Bandos et al., "Area under the free-response ROC curve", 2009; the mean of sensitivities at 1/8, 1/4, 1/2, 1, 2, 4 and
8 false detections is LUNA16's CPM (Setio et al. 2017). Two conventions of what a detection is and when it hits:

"peak"
    A detection is a local maximum of the map; it hits the lesion that its pixel lies in (CAMELYON16, LUNA16, MONAI).
"overlap"
    A detection is an 8-connected component of the thresholded map with the maximum inside as its score; it hits a
    lesion where the boxes of both have an intersection over union above 0.1 (nnDetection).

In both a lesion hit twice counts once, with its higher score, and the second detection is not a false one. False
detections are counted on all images, normal ones included.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from anomalib_med.evaluation.curves import Floats
from anomalib_med.evaluation.intervals import Statistic
from anomalib_med.records import Box

FALSE_DETECTIONS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
LEAST_OVERLAP = 0.1
MISSED = -np.inf
RADIUS = 5


@dataclass(frozen=True, eq=False)
class Found:
    """What was found in one image, in float64 arrays."""

    lesions: np.ndarray
    """Score of the best detection that hits each lesion ``(L,)``, minus infinity where none does."""
    sizes: np.ndarray
    """Pixels of each lesion ``(L,)`` (of a box its area), or its share of the image."""
    false: np.ndarray
    """Scores of the detections that hit no lesion ``(F,)``."""

    def of_size(self, low: float, high: float) -> "Found":
        """Only the lesions of a size from `low` to below `high`, with the false detections of the whole image."""
        chosen = (self.sizes >= low) & (self.sizes < high)
        return Found(self.lesions[chosen], self.sizes[chosen], self.false)

    @classmethod
    def of(cls, scores: np.ndarray, inside: np.ndarray, sizes: np.ndarray) -> "Found":
        """What comes of the scores of detections ``(n,)`` and of which hits which lesion, bool ``(n, L)``."""
        best = np.where(inside, scores[:, None], MISSED).max(axis=0, initial=MISSED)
        return cls(best, sizes, scores[~inside.any(axis=1)])


@dataclass(frozen=True, eq=False)
class FrocCurve:
    """Sensitivity in [0, 1] against false detections an image, ``(..., T)``, ascending; the first are 0."""

    sensitivity: Floats
    false_per_image: Floats


FrocMetric = Callable[[FrocCurve], Floats]


def peaks(map: np.ndarray, radius: int = RADIUS) -> tuple[np.ndarray, np.ndarray]:
    """Local maxima of a map ``(H, W)``: pixels that no other in a square exceeds; of a plateau the first pixel.

    `radius` is half the side of the square, in pixels. Returns the scores ``(n,)``, descending, and the positions
    ``(n, 2)`` as row and column.
    """
    values = np.ascontiguousarray(map, np.float32)
    highest = cv2.dilate(values, np.ones((2 * radius + 1,) * 2, np.uint8), borderType=cv2.BORDER_REPLICATE)
    candidates = (values == highest).astype(np.uint8)
    _, labels = cv2.connectedComponents(candidates, connectivity=8)
    at = np.argwhere(candidates)
    at = at[np.unique(labels[candidates > 0], return_index=True)[1]]
    scores = values[tuple(at.T)].astype(float)
    order = np.argsort(-scores, kind="stable")
    return scores[order], at[order]


def components(map: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """8-connected components of ``map > threshold``: the maximum inside each ``(n,)``, and its box ``(n, 4)``."""
    labels, boxes, _ = _regions(map > threshold)
    assert labels is not None
    highest = np.full(len(boxes) + 1, -np.inf)
    np.maximum.at(highest, labels.ravel().astype(np.intp), np.asarray(map, float).ravel())
    return highest[1:], boxes


def found_by_peaks(map: np.ndarray, lesions: np.ndarray | Sequence[Box], radius: int = RADIUS) -> Found:
    """Detections of one image by the convention "peak".

    `lesions` is a mask ``(H, W)`` whose 8-connected regions are the lesions, or boxes ``(x, y, width, height)``, which
    may overlap: a peak hits every box it lies in. For `radius` see `peaks`.
    """
    scores, at = peaks(map, radius)
    labels, boxes, sizes = _regions(lesions)
    if labels is not None:
        inside = labels[tuple(at.T)][:, None] == np.arange(1, len(sizes) + 1)
    else:
        place = at[:, None, ::-1]
        inside = ((place >= boxes[:, :2]) & (place < boxes[:, :2] + boxes[:, 2:])).all(axis=2)
    return Found.of(scores, inside, sizes)


def found_by_overlap(map: np.ndarray, lesions: np.ndarray | Sequence[Box], threshold: float) -> Found:
    """Detections of one image by the convention "overlap".

    Map and lesions as for `found_by_peaks`; of a mask the boxes around its regions count. The components are those of
    ``map > threshold``, with the detector's threshold from held-out normals.
    """
    scores, boxes = components(map, threshold)
    _, truth, sizes = _regions(lesions)
    return Found.of(scores, _overlaps(boxes, truth) > LEAST_OVERLAP, sizes)


def froc_curve(images: Sequence[Found], weights: np.ndarray | None = None) -> FrocCurve:
    """The curve over all images, normal ones included.

    `weights` ``(..., N)`` say how often each image counts, one row for each bootstrap replicate; once by default.

    Raises
    ------
    ValueError
        There is no lesion.
    """
    lesions, false = (np.concatenate([getattr(f, name) for f in images]) for name in ("lesions", "false"))
    if not lesions.size:
        raise ValueError("FROC needs lesions: none of the images has a mask or a box")
    w = np.ones(len(images)) if weights is None else np.asarray(weights, float)
    of_lesions = w[..., np.repeat(np.arange(len(images)), [len(f.lesions) for f in images])]
    of_false = w[..., np.repeat(np.arange(len(images)), [len(f.false) for f in images])]
    thresholds = np.unique(np.concatenate([lesions[lesions > MISSED], false]))[::-1]
    hits, alarms = _at_least(lesions, of_lesions, thresholds), _at_least(false, of_false, thresholds)
    with np.errstate(invalid="ignore"):  # a replicate without any lesion has no sensitivity
        sensitivity = hits / of_lesions.sum(axis=-1, keepdims=True)
    return FrocCurve(sensitivity, alarms / w.sum(axis=-1, keepdims=True))


def sensitivity_at(curve: FrocCurve, false_per_image: float) -> Floats:
    """Sensitivity at a number of false detections an image, by linear interpolation; beyond the curve its end."""
    x, y = curve.false_per_image, curve.sensitivity
    if x.ndim == 1:
        return np.asarray(np.interp(false_per_image, x, y))
    return np.asarray([np.interp(false_per_image, a, b) for a, b in zip(x, y, strict=True)])


def cpm(curve: FrocCurve, points: Sequence[float] = FALSE_DETECTIONS) -> Floats:
    """Mean sensitivity at the given numbers of false detections an image: LUNA16's competition metric."""
    return np.asarray(np.mean([sensitivity_at(curve, point) for point in points], axis=0))


def lesion_statistic(
    images: Sequence[Found], at: np.ndarray, metrics: Mapping[str, FrocMetric], cases: int
) -> Statistic:
    """Metrics of the curve of images in the places `at` ``(n,)`` among all; `cases` are the patients behind them."""

    def values(rows: Floats) -> Mapping[str, Floats]:
        curve = froc_curve(images, rows[:, at])
        return {name: metric(curve) for name, metric in metrics.items()}

    return Statistic(values, cases)


def _regions(lesions: np.ndarray | Sequence[Box]) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """Labels ``(H, W)`` of the 8-connected regions of a mask, the box of each ``(n, 4)`` and its area ``(n,)``."""
    if isinstance(lesions, np.ndarray):
        _, labels, stats, _ = cv2.connectedComponentsWithStats((lesions != 0).astype(np.uint8), connectivity=8)
        return labels, stats[1:, :4].astype(float), stats[1:, 4].astype(float)
    boxes = np.array(lesions, float).reshape(-1, 4)
    return None, boxes, boxes[:, 2] * boxes[:, 3]


def _at_least(scores: np.ndarray, weights: Floats, thresholds: np.ndarray) -> Floats:
    """Weight of scores at or above each threshold, after a first column of none at all."""
    order = np.argsort(-scores, kind="stable")
    zero = np.zeros((*weights.shape[:-1], 1))
    sums = np.concatenate([zero, np.cumsum(weights[..., order], axis=-1)], axis=-1)
    counts = np.searchsorted(-scores[order], -thresholds, side="right")
    return np.concatenate([zero, sums[..., counts]], axis=-1)


def _overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes ``(n, 4)`` and ``(m, 4)``: ``(n, m)``."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, :2] + a[:, None, 2:], b[None, :, :2] + b[None, :, 2:])
    both = np.prod(np.clip(high - low, 0, None), axis=2)
    union = np.prod(a[:, 2:], axis=1)[:, None] + np.prod(b[:, 2:], axis=1) - both
    overlaps: np.ndarray = both / np.maximum(union, 1e-12)
    return overlaps
