"""Scores of patients from those of their images, and weights for a stated prevalence.

A patient is abnormal with an abnormal image. The score of a patient is the aggregation named in every table: "max",
"mean", "top<q>%" (mean of the highest q % of the images, at least one) or "noisy-or" (1 - prod(1 - p), for
probabilities). Every metric of images is then one of patients.
"""

from collections.abc import Sequence

import numpy as np

from anomalib_med.errors import ConfigError
from anomalib_med.evaluation.curves import check
from anomalib_med.pooling_rules import Rule, parse_rule

PTP_RATIO = 9.0


def aggregate(
    labels: Sequence[int] | np.ndarray,
    scores: Sequence[float] | np.ndarray,
    patients: Sequence[str] | np.ndarray,
    how: str = "max",
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores ``(p,)`` of patients, in ascending order of `patients`, from those of images ``(n,)``.

    Raises
    ------
    ConfigError
        `how` is no aggregation, or "noisy-or" of scores that are no probabilities.
    ValueError
        See :func:`.curves.curve_of`.
    """
    y, s = check(np.asarray(labels), np.asarray(scores))
    whose = np.unique(np.asarray(patients), return_inverse=True)[1]
    if whose.shape != y.shape:
        raise ValueError(f"{len(whose)} patients were given for {len(y)} images")
    rule = aggregation_rule(how)
    if rule.kind == "noisy-or" and not ((s >= 0) & (s <= 1)).all():
        raise ConfigError("aggregation noisy-or needs scores that are probabilities: choose max, mean or top5%")
    groups = np.split(s[np.argsort(whose, kind="stable")], np.cumsum(np.bincount(whose))[:-1])
    return (np.bincount(whose, weights=y) > 0).astype(int), np.array([_joined(group, rule) for group in groups])


def prevalence_weights(labels: np.ndarray, ratio: float = PTP_RATIO) -> np.ndarray:
    """Weights ``(n,)`` that make the normal weigh `ratio` times as much as the abnormal; the normal keep 1.

    At 9, the patient-to-patient protocol (PTP), metrics that depend on the prevalence, such as AP and F1, are those of
    a clinic with one abnormal patient in ten.
    """
    y = np.asarray(labels, bool)
    weights: np.ndarray = np.where(y, (~y).sum() / (ratio * max(1, y.sum())), 1.0)
    return weights


def aggregation_rule(how: str) -> Rule:
    """How the scores of a patient's images become one, see :func:`.parse_rule`, which refuses what is not known."""
    return parse_rule(how, ("max", "mean", "share", "noisy-or"), "aggregation")


def _joined(scores: np.ndarray, rule: Rule) -> float:
    if rule.kind == "noisy-or":
        return float(1 - np.prod(1 - scores))
    share = {"max": 0.0, "mean": 1.0}.get(rule.kind, rule.number)
    count = max(1, int(np.ceil(share * len(scores) - 1e-9)))
    return float(np.sort(scores)[-count:].mean())
