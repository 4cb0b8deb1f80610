"""Curve: how many abnormal and normal cases lie above each threshold, and the metrics that follow from those counts.

Counts may have leading dimensions, one for each bootstrap replicate. "Oracle" marks metrics that choose a threshold on
the very cases they are judged on: they describe a ranking and promise nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Metric = Callable[["Curve"], Floats]
Numbers = Sequence[float] | np.ndarray
Labels = Sequence[int] | Sequence[bool] | np.ndarray


@dataclass(frozen=True, eq=False)
class Curve:
    """Counts of abnormal (`tp`) and normal (`fp`) cases at or above each threshold, or of their weights."""

    thresholds: np.ndarray
    """float ``(T,)``, the distinct scores, descending. A case counts as positive where ``score >= threshold``."""
    tp: Floats
    fp: Floats
    """float64 ``(..., T)`` both; all cases in the last."""

    @property
    def positives(self) -> Floats:
        """Abnormal cases in all, ``(..., 1)``."""
        return self.tp[..., -1:]

    @property
    def negatives(self) -> Floats:
        """Normal cases in all, ``(..., 1)``."""
        return self.fp[..., -1:]

    @property
    def tpr(self) -> Floats:
        """Sensitivity at each threshold, ``(..., T)``; NaN without abnormal cases."""
        with np.errstate(invalid="ignore"):
            return self.tp / self.positives

    @property
    def fpr(self) -> Floats:
        """One minus the specificity at each threshold, ``(..., T)``; NaN without normal cases."""
        with np.errstate(invalid="ignore"):
            return self.fp / self.negatives


def curve_of(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> Curve:
    """Count cases above each distinct score.

    Parameters
    ----------
    labels, scores
        0 or 1, and finite, ``(n,)``; a higher score is more anomalous.
    weights
        ``(..., n)``: how much each case counts, one row for each bootstrap replicate; 1 by default.

    Raises
    ------
    ValueError
        Lengths that differ, labels other than 0 and 1, scores that are not finite, or only one kind of case.
    """
    y, s = check(labels, scores)
    order = np.argsort(-s, kind="stable")
    y, s = y[order], s[order]
    last = np.append(np.flatnonzero(s[1:] != s[:-1]), len(s) - 1)  # ties share one threshold
    w = np.ones(len(s)) if weights is None else np.asarray(weights, float)[..., order]
    tp = np.cumsum(w * y, axis=-1)[..., last]
    fp = np.cumsum(w * ~y, axis=-1)[..., last]
    return Curve(s[last], tp, fp)


def smoothed(curve: Curve) -> Curve:
    """Each normal case spread evenly over the ranks between its score and that of the next higher normal case.

    Above the highest of n normal scores lies on average 1 / (n + 1) of all normal cases, where the counts say none and
    make the precision certain. For draws of :func:`.intervals.draws` this is the smoothed Bayesian bootstrap (Banks,
    Biometrika 75, 1988; for ROC curves Gu, Ghosal and Roy, Statistics in Medicine 27, 2008). A threshold that has
    normal cases in one row of `curve` must have some in all.
    """
    normal = np.diff(curve.fp.reshape(-1, curve.fp.shape[-1])[0], prepend=0.0) > 0
    knots = np.concatenate([[-1], np.flatnonzero(normal)])
    counts = np.concatenate([np.zeros((*curve.fp.shape[:-1], 1)), curve.fp[..., normal]], axis=-1)
    place = np.arange(len(normal))
    above = np.searchsorted(knots, place, side="right") - 1
    below = np.minimum(above + 1, len(knots) - 1)
    share = (place - knots[above]) / np.maximum(knots[below] - knots[above], 1)
    fp = counts[..., above] + share * (counts[..., below] - counts[..., above])
    return Curve(curve.thresholds, curve.tp, fp)


def check(labels: np.ndarray, scores: np.ndarray) -> tuple[npt.NDArray[np.bool_], Floats]:
    """Labels as bool and scores as float64, of one length; errors as in `curve_of`."""
    y, s = np.asarray(labels), np.asarray(scores, float)
    if y.ndim != 1 or y.shape != s.shape:
        raise ValueError(f"labels {y.shape} and scores {s.shape} must be two lists of one length")
    if not np.isin(y, (0, 1)).all():
        raise ValueError("labels must be 0 (normal) or 1 (abnormal)")
    if len(np.unique(y)) < 2:
        raise ValueError("AUROC needs normal and abnormal images, and so does every metric of a ranking")
    if not np.isfinite(s).all():
        what = "NaN" if np.isnan(s).any() else "infinite"
        raise ValueError(f"a score is {what}: leave out the images that could not be scored, and say how many")
    return y.astype(bool), s


def area_below(x: Floats, y: Floats, limit: float) -> Floats:
    """Area ``(...)`` under the broken line through (0, 0) and the points ``(..., T)``, from x = 0 to `limit` in (0, 1].

    x ascends from 0 or above to 1; the line is cut by linear interpolation.
    """
    zero = np.zeros((*x.shape[:-1], 1))
    x0, y0 = np.concatenate([zero, x[..., :-1]], -1), np.concatenate([zero, y[..., :-1]], -1)
    width = x - x0
    inside = np.clip(limit - x0, 0, width)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(width > 0, inside / width, 0.0)
    return np.asarray(np.sum(inside * (y0 + 0.5 * (y - y0) * share), axis=-1))


def auroc(curve: Curve) -> Floats:
    """Area under the ROC curve, ties counted half (scikit-learn's `roc_auc_score`)."""
    return area_below(curve.fpr, curve.tpr, 1.0)


def average_precision(curve: Curve) -> Floats:
    """Sum over thresholds of precision times the rise of recall (scikit-learn's `average_precision_score`)."""
    tpr = curve.tpr
    rise = np.diff(tpr, axis=-1, prepend=0.0)
    flagged = curve.tp + curve.fp
    precision = np.divide(curve.tp, flagged, out=np.zeros_like(flagged), where=flagged > 0)
    return np.asarray(np.sum(rise * precision, axis=-1))


def f1_max(curve: Curve) -> Floats:
    """Best F1 over all thresholds: an oracle. For pixels this is the best pooled Dice."""
    return np.asarray(np.max(2 * curve.tp / (curve.tp + curve.fp + curve.positives), axis=-1))


def accuracy_max(curve: Curve) -> Floats:
    """Best accuracy over all thresholds, flagging nothing among them: an oracle (SQUID's ACC)."""
    right = curve.tp + curve.negatives - curve.fp
    best = np.maximum(np.max(right, axis=-1), curve.negatives[..., 0])
    return np.asarray(best / (curve.positives + curve.negatives)[..., 0])


def sensitivity_at_specificity(curve: Curve, specificity: float) -> Floats:
    """Highest sensitivity among the thresholds whose specificity is at least the one asked for.

    A point of the ROC curve as it is, not interpolated (torchmetrics' `binary_sensitivity_at_specificity`).
    """
    allowed = curve.fpr <= 1 - specificity + 1e-12
    return np.asarray(np.max(np.where(allowed, curve.tpr, 0.0), axis=-1))


def specificity_at_sensitivity(curve: Curve, sensitivity: float) -> Floats:
    """Highest specificity among the thresholds whose sensitivity is at least the one asked for."""
    allowed = curve.tpr >= sensitivity - 1e-12
    return np.asarray(np.max(np.where(allowed, 1 - curve.fpr, 0.0), axis=-1))


def partial_auroc(curve: Curve, max_fpr: float = 0.1) -> Floats:
    """Area under the ROC curve up to `max_fpr`, standardised so that chance is 0.5 and perfection 1.

    McClish, "Analyzing a portion of the ROC curve", 1989 (scikit-learn's ``roc_auc_score(max_fpr=...)``).
    """
    area = area_below(curve.fpr, curve.tpr, max_fpr)
    lowest = 0.5 * max_fpr**2
    return 0.5 * (1 + (area - lowest) / (max_fpr - lowest))


RANKING_METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "auroc": auroc,
        "ap": average_precision,
        "partial_auroc@0.1": partial_auroc,
        "sensitivity@specificity0.95": partial(sensitivity_at_specificity, specificity=0.95),
        "sensitivity@specificity0.90": partial(sensitivity_at_specificity, specificity=0.90),
        "specificity@sensitivity0.95": partial(specificity_at_sensitivity, sensitivity=0.95),
        "f1_max (oracle)": f1_max,
        "accuracy_max (oracle)": accuracy_max,
    }
)
"""Metrics of a ranking by the name they have in every table."""

_FROM_THE_TOP = (average_precision, partial_auroc, f1_max, accuracy_max)


def values_of(metrics: Mapping[str, Metric], curve: Curve) -> dict[str, float]:
    """Values of metrics by name, of a curve without leading dimensions."""
    return {name: float(metric(curve)) for name, metric in metrics.items()}


def replicate_values(metrics: Mapping[str, Metric], curve: Curve) -> dict[str, Floats]:
    """Values of metrics by name for draws of cases: of the smoothed curve where precision at the highest scores counts.

    The AUROC is right without smoothing, and an operating point is meant to be a point of the curve as it is.
    """
    smooth = smoothed(curve)
    return {name: metric(smooth if metric in _FROM_THE_TOP else curve) for name, metric in metrics.items()}


def image_auroc(labels: Labels, scores: Numbers) -> float:
    """Area under the ROC curve of images, 0 normal and 1 abnormal; a higher score is more anomalous.

    Raises
    ------
    ValueError
        A NaN among the scores, or only one kind of image.
    """
    return float(auroc(curve_of(np.asarray(labels), np.asarray(scores))))


def aucp(normal: Numbers, unlabelled: Numbers) -> float:
    """Area under the ROC curve of unlabelled images against training normals, as if all of them were abnormal.

    Where a share rho of them is healthy and scores as the normals do, it is ``(1 - rho) AUROC + rho / 2``: it rises and
    falls with the AUROC, and needs no label. It is transductive: a model chosen by it has seen those images. And it
    counts as abnormal what was merely not learnt from, so few normals, learnt by heart, deceive it.

    Siddiquee et al., "AUCp: Pseudo-AUC for Inference Model Selection with Unlabeled Validation Data in Abnormality
    Detection", 2026, https://arxiv.org/abs/2606.08742.

    Raises
    ------
    ValueError
        A NaN among the scores (higher is more anomalous), or none of either.
    """
    return image_auroc([0] * len(normal) + [1] * len(unlabelled), np.concatenate([normal, unlabelled]))
