"""Metrics as pure functions; each names its definition and its reference."""

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import roc_auc_score


def image_auroc(labels: Sequence[int] | np.ndarray, scores: Sequence[float] | np.ndarray) -> float:
    """Area under the ROC curve of images, ties counted half (scikit-learn's `roc_auc_score`).

    Parameters
    ----------
    labels
        0 normal, 1 abnormal.
    scores
        Higher is more anomalous.

    Raises
    ------
    ValueError
        For a NaN among the scores, or where only one kind of image is there.
    """
    y, s = np.asarray(labels), np.asarray(scores, float)
    if len(np.unique(y)) < 2:
        raise ValueError("AUROC needs normal and abnormal images")
    if np.isnan(s).any():
        raise ValueError("a score is NaN: leave out the images that could not be scored, and say how many")
    return float(roc_auc_score(y, s))


def pixel_auroc(masks: Sequence[np.ndarray], maps: Sequence[np.ndarray]) -> float:
    """Area under the ROC curve of all pixels of all images together, those of normal images included.

    Parameters
    ----------
    masks
        bool ``(H, W)`` each, True where abnormal.
    maps
        float ``(H, W)`` each, of the shape of its mask.
    """
    for mask, map in zip(masks, maps, strict=True):
        if mask.shape != map.shape:
            raise ValueError(f"a mask of {mask.shape} does not fit its map of {map.shape}")
    return image_auroc(np.concatenate([m.ravel() > 0 for m in masks]), np.concatenate([m.ravel() for m in maps]))
