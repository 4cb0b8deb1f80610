"""Metrics of anomaly maps against lesion masks, over all pixels of all images, in one pass and bounded memory.

All pixels of all images count together, those of normal images included. AUPRO as Bergmann et al., IJCV 2021, in the
form of anomalib: regions are 8-connected, the overlap is averaged over regions, the false-positive rate is that of the
background of all images, the curve is cut at the limit by linear interpolation and the area divided by the limit.

For intervals, histograms of the maps, one an image, are resampled by patient. Their edges are quantiles of the pooled
scores, half of normal and half of abnormal pixels, so that a few hundred bins follow every curve closely.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np

from anomalib_med.evaluation import curves
from anomalib_med.evaluation.curves import Curve, Floats, area_below, values_of
from anomalib_med.evaluation.score_counts import CAPACITY, ScoreCounts

BINS = 512

Histogram = np.ndarray
"""float32 ``(3, bins)``, scores descending: normal pixels, abnormal pixels, sum of region weights."""


@dataclass(frozen=True, eq=False)
class PixelCurve(Curve):
    """Counts of pixels above each threshold, and the overlap with regions."""

    overlap: Floats
    """float64 ``(..., T)``: sum over regions of the part of each that lies at or above the threshold."""
    dropped_bits: int = 0
    """Low bits of the float32 scores that were not told apart; 0 where all values are exact."""

    @property
    def regions(self) -> Floats:
        """Regions in all, ``(..., 1)``."""
        return self.overlap[..., -1:]

    def aupro_error(self, limit: float = 0.3) -> float:
        """The most by which `aupro` can differ from the value of the full scores; 0 where those are exact.

        Between two thresholds that are told apart the curve stays inside the rectangle that its ends span, and the
        straight line through it is off by half of it at most.
        """
        if not self.dropped_bits:
            return 0.0
        x, y = self.fpr, self.overlap / self.regions
        steps = np.diff(x, prepend=0.0) * np.diff(y, prepend=0.0)
        return float(0.5 * steps[: np.searchsorted(x, limit) + 1].sum() / limit)


class PixelMetrics:
    """Takes one map and its mask after the other; then gives the curve of all pixels.

    With up to `capacity` distinct scores of a kind all values are exact; beyond that memory stays where it is, and
    :meth:`PixelCurve.aupro_error` bounds what was lost.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._counts = ScoreCounts(capacity)

    def add(self, map: np.ndarray, mask: np.ndarray | None = None) -> None:
        """Take one image: a map ``(H, W)``, as float32, and its mask, non-zero where abnormal, None for a normal image.

        Raises
        ------
        ValueError
            The shapes differ, or the map is not finite.
        """
        scores = np.ascontiguousarray(map, np.float32).ravel()
        if not np.isfinite(scores).all():
            raise ValueError("an anomaly map holds NaN or infinity: leave the image out, and say so")
        if mask is None:
            self._counts.add(scores, scores[:0], np.empty(0))
            return
        if mask.shape != map.shape:
            raise ValueError(f"a mask of {mask.shape} does not fit its map of {map.shape}")
        abnormal = np.flatnonzero(mask)
        normal = np.ones(scores.size, bool)
        normal[abnormal] = False
        self._counts.add(scores[normal], scores[abnormal], region_weights(mask).ravel()[abnormal])

    def curve(self) -> PixelCurve:
        """Counts at every threshold.

        Raises
        ------
        ValueError
            There are no normal or no abnormal pixels.
        """
        thresholds, normal, abnormal, weights = self._counts.table()
        if not (normal.any() and abnormal.any()):
            raise ValueError("AUROC needs normal and abnormal pixels, and so do the other metrics of maps")
        tp, fp, overlap = np.cumsum(abnormal), np.cumsum(normal), np.cumsum(weights)
        return PixelCurve(thresholds, tp, fp, overlap, self._counts.dropped_bits)


def aupro(curve: Curve, limit: float = 0.3) -> Floats:
    """Area under the per-region overlap curve up to a false-positive rate, divided by that rate: in [0, 1].

    The usual limit is 0.3; 0.05 is stricter and says more of small lesions. The curve must be a `PixelCurve`.
    """
    if not isinstance(curve, PixelCurve):
        raise TypeError("AUPRO needs the overlap with regions: give a PixelCurve")
    return area_below(curve.fpr, curve.overlap / curve.regions, limit) / limit


PIXEL_METRICS: dict[str, curves.Metric] = {
    "pixel_auroc": curves.auroc,
    "pixel_ap": curves.average_precision,
    "aupro@0.3": aupro,
    "aupro@0.05": partial(aupro, limit=0.05),
    "best_dice (oracle)": curves.f1_max,
}
"""Metrics of pooled pixels by the name they have in every table."""


def region_weights(mask: np.ndarray) -> Floats:
    """One over the area of the 8-connected region each abnormal pixel belongs to; 0 elsewhere.

    Mask and result are ``(H, W)``; the result is float64 and sums to the number of regions.
    """
    _, labels = cv2.connectedComponents((mask != 0).astype(np.uint8), connectivity=8)
    areas = np.bincount(labels.ravel()).astype(float)
    inverse = 1 / np.maximum(areas, 1)
    inverse[0] = 0
    weights: Floats = inverse[labels]
    return weights


def best_dice_of_image(map: np.ndarray, mask: np.ndarray) -> float:
    """Best Dice of one image over all thresholds, from its map and mask ``(H, W)``: an oracle.

    Its mean over abnormal images is ``dice_img``, a higher and different number than the pooled best Dice.

    Raises
    ------
    ValueError
        The mask is empty.
    """
    truth = mask != 0
    abnormal = np.sort(map[truth])[::-1]
    if not len(abnormal):
        raise ValueError("the best Dice of an image needs a lesion")
    normal = np.sort(map[~truth])
    # The best threshold is the score of an abnormal pixel: below it only normal pixels are added.
    tp = np.searchsorted(-abnormal, -abnormal, side="right")
    fp = len(normal) - np.searchsorted(normal, abnormal, side="left")
    return float(np.max(2 * tp / (tp + fp + len(abnormal))))


def pixel_auroc(masks: Sequence[np.ndarray], maps: Sequence[np.ndarray]) -> float:
    """Area under the ROC curve of all pixels of all images together, those of normal images included.

    Masks are ``(H, W)``, non-zero where abnormal, and so are maps, which are compared as float32.

    Raises
    ------
    ValueError
        The shapes differ, or there are only normal or only abnormal pixels.
    """
    return pixel_metrics(zip(masks, maps, strict=True))["pixel_auroc"]


def pixel_metrics(pairs: Iterable[tuple[np.ndarray | None, np.ndarray]]) -> dict[str, float]:
    """Every pooled metric of pairs of mask (None for a normal image) and map, by name; only counts are held."""
    metrics = PixelMetrics()
    for mask, map in pairs:
        metrics.add(map, mask)
    return values_of(PIXEL_METRICS, metrics.curve())


def choose_edges(curve: PixelCurve, bins: int = BINS) -> np.ndarray:
    """Edges ``(<= bins,)``, ascending: a score lies in the bin of the highest edge that it reaches."""
    levels = np.linspace(0, 1, bins // 2 + 1)[1:]
    places = [np.searchsorted(counts, levels * counts[-1]) for counts in (curve.fp, curve.tp)]
    last = len(curve.thresholds) - 1
    return np.unique(curve.thresholds[np.minimum(np.concatenate(places), last)].astype(np.float32))


def histogram(map: np.ndarray, mask: np.ndarray, edges: np.ndarray) -> Histogram:
    """Counts of one image: map ``(H, W)``, mask ``(H, W)``, non-zero where abnormal, and edges of `choose_edges`."""
    place = np.maximum(np.searchsorted(edges, map.ravel().astype(np.float32), side="right") - 1, 0)
    place = len(edges) - 1 - place
    abnormal = mask.ravel() != 0
    counts = np.zeros((3, len(edges)), np.float32)
    counts[0] = np.bincount(place[~abnormal], None, len(edges))
    if abnormal.any():
        counts[1] = np.bincount(place[abnormal], None, len(edges))
        counts[2] = np.bincount(place[abnormal], region_weights(mask).ravel()[abnormal], len(edges))
    return counts


def replicate_curve(histograms: Sequence[Histogram], edges: np.ndarray, rows: Floats) -> PixelCurve:
    """The pooled curve of each replicate, from a histogram an image, their edges and weights of images ``(r, N)``."""
    stacked = np.stack(histograms).astype(float)
    fp, tp, overlap = (np.cumsum(rows @ stacked[:, kind], axis=-1) for kind in range(3))
    return PixelCurve(edges[::-1], tp, fp, overlap)
