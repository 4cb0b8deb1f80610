"""DeLong: variance of an AUROC and the test of correlated ones, without resampling.

DeLong, DeLong and Clarke-Pearson, Biometrics 1988, in the O(n log n) form of Sun and Xu, "Fast implementation of
DeLong's algorithm", 2014. Images of one patient count as one cluster: Obuchowski, "Nonparametric analysis of clustered
ROC curve data", Biometrics 1997, which is DeLong's where every patient has one image.
"""

from collections.abc import Sequence
from math import erfc, sqrt
from statistics import NormalDist

import numpy as np
from scipy.stats import rankdata

from anomalib_med.evaluation.curves import Floats, check
from anomalib_med.evaluation.intervals import LEVEL, Interval


def delong_covariance(
    labels: np.ndarray, scores: np.ndarray, patients: Sequence[str] | np.ndarray | None = None
) -> tuple[Floats, Floats]:
    """AUROC of each method and the covariance of their estimates.

    Parameters
    ----------
    labels, patients
        0 or 1, and the patient of each image, ``(n,)``; by default each image has its own.
    scores
        Finite scores ``(m, n)``, one row a method.

    Returns
    -------
    AUROCs ``(m,)`` and covariances ``(m, m)``.

    Raises
    ------
    ValueError
        Cases that :func:`.curves.curve_of` refuses, or fewer than two patients of a kind.
    """
    s = np.stack([check(labels, row)[1] for row in np.atleast_2d(scores)])
    y = np.asarray(labels, bool)
    above, below = int(y.sum()), int((~y).sum())
    parts = np.zeros(s.shape)  # structural components: the share of the other kind that a case beats
    ranks = rankdata(s, axis=1)
    parts[:, y] = (ranks[:, y] - rankdata(s[:, y], axis=1)) / below
    parts[:, ~y] = 1 - (ranks[:, ~y] - rankdata(s[:, ~y], axis=1)) / above
    areas: Floats = parts[:, y].mean(axis=1)
    whose = np.arange(len(y)) if patients is None else np.unique(np.asarray(patients), return_inverse=True)[1]
    of_abnormal, number_abnormal = _sums(parts - areas[:, None], y, whose)
    of_normal, number_normal = _sums(parts - areas[:, None], ~y, whose)
    if min(number_abnormal, number_normal) < 2:
        raise ValueError("DeLong's variance needs two patients of each kind at least")
    covariance = number_abnormal / (number_abnormal - 1) * (of_abnormal @ of_abnormal.T) / above**2
    covariance += number_normal / (number_normal - 1) * (of_normal @ of_normal.T) / below**2
    both = of_abnormal @ of_normal.T  # zero unless patients have images of both kinds
    number = int(whose.max()) + 1
    covariance += number / (number - 1) * (both + both.T) / (above * below)
    return areas, covariance


def delong_contrast(
    labels: np.ndarray, scores: np.ndarray, contrast: np.ndarray, patients: Sequence[str] | np.ndarray | None = None
) -> tuple[Interval, float]:
    """A weighted sum of AUROCs, such as the difference of two methods, and its two-sided p-value against 0.

    `contrast` ``(m,)`` are the weights of the rows of `scores`: 1 and -1 for a difference. The rest is as for
    `delong_covariance`.
    """
    areas, covariance = delong_covariance(labels, scores, patients)
    value, sd = float(contrast @ areas), sqrt(max(0.0, float(contrast @ covariance @ contrast)))
    half = NormalDist().inv_cdf((1 + LEVEL) / 2) * sd
    interval = Interval(value, value - half, value + half)
    if sd < 1e-12:
        return interval, 1.0 if abs(value) < 1e-12 else 0.0
    return interval, erfc(abs(value) / sd / sqrt(2))


def _sums(parts: Floats, chosen: np.ndarray, whose: np.ndarray) -> tuple[Floats, int]:
    """Sums of the chosen cases by patient ``(m, patients)``, and how many patients have any."""
    count = int(whose.max()) + 1
    sums: Floats = np.stack([np.bincount(whose, weights=row * chosen, minlength=count).astype(float) for row in parts])
    return sums, len(np.unique(whose[chosen]))
