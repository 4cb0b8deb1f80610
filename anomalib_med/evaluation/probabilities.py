"""Probabilities from scores, and how well they are calibrated.

Platt, "Probabilistic outputs for support vector machines", 1999, as corrected by Lin, Lin and Weng, 2007: a logistic
curve of the score, fitted to slightly softened labels. Scikit-learn's fits one curve at a time; here those of all draws
of patients are fitted side by side.
"""

import numpy as np
from scipy.special import expit

from anomalib_med.evaluation.curves import Floats
from anomalib_med.evaluation.intervals import patient_counts

ECE_BINS = 15
FOLDS = 5
_STEPS = 50  # Newton's method takes far fewer


def cross_fitted(labels: np.ndarray, scores: np.ndarray, patients: np.ndarray, weights: Floats) -> Floats | None:
    """Probability of being abnormal of each image, from the labels of other patients.

    A detector that has seen normals alone has no such probabilities. These say how far its scores could be turned into
    some where labels are at hand, at the prevalence of the test set.

    Parameters
    ----------
    labels, scores, patients
        0 or 1, finite scores, and the patient of each image ``(n,)``. The images of a patient are in one of five folds,
        and the probabilities of a fold come from the other four.
    weights
        ``(r, n)``, one row for each draw of patients: a curve is fitted to each row.

    Returns
    -------
    float64 ``(r, n)`` in (0, 1); None with fewer than two patients of a kind.
    """
    y, s = np.asarray(labels, float), np.asarray(scores, float)
    whose = np.unique(patients, return_inverse=True)[1]
    folds = min(FOLDS, *patient_counts(y, whose))
    if folds < 2 or len(patient_counts(y, whose)) < 2:
        return None
    abnormal = np.bincount(whose, weights=y) > 0
    fold = np.empty(len(abnormal), int)
    for kind in (False, True):  # every fold has patients of both kinds
        fold[abnormal == kind] = np.arange((abnormal == kind).sum()) % folds
    probabilities = np.empty(weights.shape)
    for number in range(folds):
        out = fold[whose] == number
        probabilities[:, out] = _platt(y[~out], s[~out], weights[:, ~out], s[out])
    return probabilities


def _platt(labels: Floats, scores: Floats, weights: Floats, asked: Floats) -> Floats:
    """Probabilities of the scores asked for, one row for each row of weights; scores are standardised first."""
    middle, spread = scores.mean(), scores.std() or 1.0
    x = (scores - middle) / spread
    near = _newton(labels, x, weights.mean(axis=0, keepdims=True), np.zeros((2, 1, 1)))
    slope, intercept = _newton(labels, x, weights, near)
    return _logistic((asked - middle) / spread * slope + intercept)


def _newton(labels: Floats, x: Floats, weights: Floats, start: Floats) -> Floats:
    """Slope and intercept of every row of weights, ``(2, r, 1)``."""
    positives = weights @ labels
    low, high = 1 / (weights.sum(axis=1) - positives + 2), (positives + 1) / (positives + 2)
    softened = np.where(labels == 1, high[:, None], low[:, None])
    squared, line = x * x, start
    for _ in range(_STEPS):
        p = _logistic(line[0] * x + line[1])
        rest, curvature = weights * (softened - p), weights * p * (1 - p)
        a, b, c = curvature @ squared + 1e-9, curvature @ x, curvature.sum(axis=1) + 1e-9
        along, total = rest @ x, rest.sum(axis=1)
        step = np.stack([c * along - b * total, a * total - b * along]) / (a * c - b * b)
        line = line + np.clip(step, -2, 2)[:, :, None]
        if np.abs(step).max() < 1e-3:  # the error left is of the order of its square
            break
    return line


def _logistic(x: Floats) -> Floats:
    probabilities: Floats = expit(x)
    return np.clip(probabilities, 1e-12, 1 - 1e-12)


def expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = ECE_BINS) -> float:
    """Mean absolute gap between probability and frequency over bins of equal width, weighted by their cases.

    Naeini et al. 2015, as torchmetrics' `binary_calibration_error` with the l1 norm.

    Raises
    ------
    ValueError
        Probabilities outside [0, 1].
    """
    y, p = np.asarray(labels, float), np.asarray(probabilities, float)
    if not (len(p) and (p >= 0).all() and (p <= 1).all()):
        raise ValueError("probabilities must lie in [0, 1]: turn scores into probabilities on calibration data first")
    index = np.minimum((p * bins).astype(int), bins - 1)
    return float(np.abs(np.bincount(index, weights=p - y, minlength=bins)).sum() / len(p))
