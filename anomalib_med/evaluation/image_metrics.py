"""Metrics of image-level scores and decisions; of patients in the same way, see :mod:`.patients`.

Each is a pure function that names its definition. "Oracle" marks those that choose a threshold on the very cases they
are judged on: they describe a ranking and promise nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import numpy as np

from anomalib_med.evaluation import curves
from anomalib_med.evaluation.curves import Metric, curve_of

Numbers = Sequence[float] | np.ndarray
Labels = Sequence[int] | Sequence[bool] | np.ndarray

ECE_BINS = 15

RANKING_METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "auroc": curves.auroc,
        "ap": curves.average_precision,
        "partial_auroc@0.1": partial(curves.partial_auroc, max_fpr=0.1),
        "sensitivity@specificity0.95": partial(curves.sensitivity_at_specificity, specificity=0.95),
        "sensitivity@specificity0.90": partial(curves.sensitivity_at_specificity, specificity=0.90),
        "specificity@sensitivity0.95": partial(curves.specificity_at_sensitivity, sensitivity=0.95),
        "f1_max (oracle)": curves.f1_max,
        "accuracy_max (oracle)": curves.accuracy_max,
    }
)
"""Metrics of a ranking by the name they have in every table."""


def image_auroc(labels: Labels, scores: Numbers) -> float:
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
    return ranking_metric("auroc", labels, scores)


def aucp(normal: Numbers, unlabelled: Numbers) -> float:
    """Area under the ROC curve of unlabelled images against training normals, as if all of them were abnormal.

    Where a share rho of them is healthy and scores as the normals do, it is ``(1 - rho) AUROC + rho / 2``: it rises and
    falls with the AUROC, and needs no label. It is transductive: a model chosen by it has seen those images. And it
    counts as abnormal what was merely not learnt from, so few normals, learnt by heart, deceive it.

    Siddiquee et al., "AUCp: Pseudo-AUC for Inference Model Selection with Unlabeled Validation Data in Abnormality
    Detection", 2026, https://arxiv.org/abs/2606.08742.

    Parameters
    ----------
    normal, unlabelled
        Scores; higher is more anomalous.

    Raises
    ------
    ValueError
        For a NaN among the scores, or where there are none of either.
    """
    return image_auroc([0] * len(normal) + [1] * len(unlabelled), np.concatenate([normal, unlabelled]))


def image_average_precision(labels: Labels, scores: Numbers) -> float:
    """Average precision of images (scikit-learn's `average_precision_score`); depends on the prevalence."""
    return ranking_metric("ap", labels, scores)


def ranking_metric(name: str, labels: Labels, scores: Numbers) -> float:
    """One of `RANKING_METRICS` by name.

    Raises
    ------
    ValueError
        As `image_auroc`, and for an unknown name.
    """
    if name not in RANKING_METRICS:
        raise ValueError(f'metric "{name}" is not known: there are {", ".join(RANKING_METRICS)}')
    return float(RANKING_METRICS[name](curve_of(np.asarray(labels), np.asarray(scores))))


@dataclass(frozen=True)
class Decisions:
    """What a fixed threshold does to cases whose truth is known. Rates are NaN where they have no cases.

    Parameters
    ----------
    tp, fp, tn, fn
        Numbers of cases.
    """

    tp: int
    fp: int
    tn: int
    fn: int

    @property
    def accuracy(self) -> float:
        """Share of right decisions."""
        return _ratio(self.tp + self.tn, self.tp + self.fp + self.tn + self.fn)

    @property
    def sensitivity(self) -> float:
        """Share of the abnormal that are flagged."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def specificity(self) -> float:
        """Share of the normal that are not flagged."""
        return _ratio(self.tn, self.tn + self.fp)

    @property
    def false_alarm_rate(self) -> float:
        """Share of the normal that are flagged."""
        return _ratio(self.fp, self.tn + self.fp)

    @property
    def precision(self) -> float:
        """Share of the flagged that are abnormal; depends on the prevalence."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and sensitivity; depends on the prevalence."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def flagged_rate(self) -> float:
        """Share of all cases that are flagged."""
        return _ratio(self.tp + self.fp, self.tp + self.fp + self.tn + self.fn)


def decisions(labels: Labels, flagged: Sequence[bool] | np.ndarray) -> Decisions:
    """Count right and wrong decisions.

    Parameters
    ----------
    labels
        0 normal, 1 abnormal.
    flagged
        What was decided, by a threshold that was fixed beforehand: ``scores > threshold``.

    Raises
    ------
    ValueError
        For lengths that differ or labels other than 0 and 1.
    """
    y, f = np.asarray(labels), np.asarray(flagged, bool)
    if y.shape != f.shape or not np.isin(y, (0, 1)).all():
        raise ValueError(f"labels {y.shape} of 0 and 1 and decisions {f.shape} must be two lists of one length")
    y = y.astype(bool)
    return Decisions(int((y & f).sum()), int((~y & f).sum()), int((~y & ~f).sum()), int((y & ~f).sum()))


def all_positive(labels: Labels) -> Decisions:
    """What flagging every case gives: the baseline beside which any F1 and accuracy must be read."""
    return decisions(labels, np.ones(len(labels), bool))


def expected_calibration_error(labels: Labels, probabilities: Numbers, bins: int = ECE_BINS) -> float:
    """Mean absolute gap between probability and frequency over bins of equal width, weighted by their cases.

    Naeini et al. 2015; torchmetrics' `binary_calibration_error` with the l1 norm.

    Parameters
    ----------
    labels
        0 normal, 1 abnormal.
    probabilities
        In [0, 1]: of being abnormal. Scores must be turned into probabilities first.
    bins
        Their number.

    Raises
    ------
    ValueError
        For probabilities outside [0, 1] or lengths that differ.
    """
    y, p = _probabilities(labels, probabilities)
    index = np.minimum((p * bins).astype(int), bins - 1)
    gaps = np.bincount(index, weights=p - y, minlength=bins)
    return float(np.abs(gaps).sum() / len(p))


def brier_score(labels: Labels, probabilities: Numbers) -> float:
    """Mean squared gap between probability and truth (scikit-learn's `brier_score_loss`); Brier 1950.

    Parameters and errors as `expected_calibration_error`.
    """
    y, p = _probabilities(labels, probabilities)
    return float(np.mean((p - y) ** 2))


def _probabilities(labels: Labels, probabilities: Numbers) -> tuple[np.ndarray, np.ndarray]:
    y, p = np.asarray(labels, float), np.asarray(probabilities, float)
    if y.shape != p.shape or not np.isin(y, (0, 1)).all():
        raise ValueError(f"labels {y.shape} of 0 and 1 and probabilities {p.shape} must be two lists of one length")
    if not (len(p) and (p >= 0).all() and (p <= 1).all()):
        raise ValueError("probabilities must lie in [0, 1]: turn scores into probabilities on calibration data first")
    return y, p


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
