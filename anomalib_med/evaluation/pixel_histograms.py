"""Histograms of maps, one an image, so that metrics of pooled pixels can be resampled by patient.

The edges are quantiles of the pooled scores, half of normal and half of abnormal pixels, so that a few hundred bins
follow every curve closely. The value of a metric is the exact one of :mod:`.pixel_metrics`; only its interval comes
from here.
"""

from collections.abc import Sequence

import numpy as np

from anomalib_med.evaluation.curves import Floats
from anomalib_med.evaluation.pixel_metrics import PixelCurve, region_weights

BINS = 512

Histogram = np.ndarray
"""float32 ``(3, bins)``, scores descending: normal pixels, abnormal pixels, sum of region weights."""


def choose_edges(curve: PixelCurve, bins: int = BINS) -> np.ndarray:
    """Edges ``(<= bins,)``, ascending: a score lies in the bin of the highest edge that it reaches."""
    levels = np.linspace(0, 1, bins // 2 + 1)[1:]
    places = [np.searchsorted(counts, levels * counts[-1]) for counts in (curve.fp, curve.tp)]
    last = len(curve.thresholds) - 1
    return np.unique(curve.thresholds[np.minimum(np.concatenate(places), last)].astype(np.float32))


def histogram(map: np.ndarray, mask: np.ndarray, edges: np.ndarray) -> Histogram:
    """Counts of one image.

    Parameters
    ----------
    map
        float ``(H, W)``.
    mask
        ``(H, W)``, non-zero where abnormal.
    edges
        From `choose_edges`.
    """
    place = np.maximum(np.searchsorted(edges, map.ravel().astype(np.float32), side="right") - 1, 0)
    place = len(edges) - 1 - place
    abnormal = mask.ravel() != 0
    counts = np.zeros((3, len(edges)), np.float32)
    counts[0] = np.bincount(place[~abnormal], minlength=len(edges))
    if abnormal.any():
        counts[1] = np.bincount(place[abnormal], minlength=len(edges))
        weights = region_weights(mask).ravel()[abnormal]
        counts[2] = np.bincount(place[abnormal], weights=weights, minlength=len(edges))
    return counts


def replicate_curve(histograms: Sequence[Histogram], edges: np.ndarray, rows: Floats) -> PixelCurve:
    """The pooled curve of each replicate.

    Parameters
    ----------
    histograms
        One an image.
    edges
        Of the histograms.
    rows
        ``(r, N)``: how often each image was drawn.
    """
    stacked = np.stack(histograms).astype(float)
    fp, tp, overlap = (np.cumsum(rows @ stacked[:, kind], axis=-1) for kind in range(3))
    return PixelCurve(edges[::-1], tp, fp, overlap)
