"""From scores to probabilities, so that their calibration can be judged.

Platt, "Probabilistic outputs for support vector machines", 1999, with the corrections of Lin, Lin and Weng, "A note on
Platt's probabilistic outputs", 2007: a logistic curve of the score, fitted to slightly softened labels.
"""

import numpy as np

from anomalib_med.evaluation.curves import Floats
from anomalib_med.evaluation.intervals import patient_counts

FOLDS = 5
_STEPS = 50


def cross_fitted(labels: np.ndarray, scores: np.ndarray, patients: np.ndarray) -> Floats | None:
    """Probability of being abnormal of each image, from the labels of other patients.

    A detector that has seen normals alone has no such probabilities. These say how far its scores could be turned into
    some where labels are at hand, at the prevalence of the test set.

    Parameters
    ----------
    labels, scores
        ``(n,)``, 0 or 1, and finite.
    patients
        Whose each image is, ``(n,)``; no patient is on both sides of a fold.

    Returns
    -------
    float64 ``(n,)`` in (0, 1); None with fewer than two patients of a kind.
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
    probabilities = np.empty(len(y))
    for number in range(folds):
        out = fold[whose] == number
        probabilities[out] = _platt(y[~out], s[~out], s[out])
    return probabilities


def _platt(labels: Floats, scores: Floats, asked: Floats) -> Floats:
    """Newton's method for slope and intercept; scores are standardised first."""
    middle, spread = scores.mean(), scores.std() or 1.0
    x = np.stack([(scores - middle) / spread, np.ones_like(scores)], axis=1)
    positives = labels.sum()
    softened = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (len(labels) - positives + 2))
    w = np.zeros(2)
    for _ in range(_STEPS):
        p = _logistic(x @ w)
        hessian = (x * (p * (1 - p))[:, None]).T @ x + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, x.T @ (softened - p))
        w += np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-10:
            break
    return _logistic((asked - middle) / spread * w[0] + w[1])


def _logistic(x: Floats) -> Floats:
    values: Floats = 0.5 * (1 + np.tanh(x / 2))
    return np.clip(values, 1e-12, 1 - 1e-12)
