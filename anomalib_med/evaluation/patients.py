"""From scores of images to scores of patients, and weights for a stated prevalence.

A patient is abnormal with an abnormal image. The score of a patient is the aggregation named in every table: "max",
"mean", "top<q>%" (mean of the highest q % of the images, at least one) or "noisy-or" (1 - prod(1 - p), for
probabilities). Every metric of images is then one of patients.
"""

from collections.abc import Sequence

import numpy as np

from anomalib_med.errors import ConfigError
from anomalib_med.evaluation.curves import check

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
        As :func:`.curves.curve_of`.
    """
    y, s = check(np.asarray(labels), np.asarray(scores))
    whose = np.unique(np.asarray(patients), return_inverse=True)[1]
    if whose.shape != y.shape:
        raise ValueError(f"{len(whose)} patients were given for {len(y)} images")
    share = aggregated_share(how)
    if how == "noisy-or" and not ((s >= 0) & (s <= 1)).all():
        raise ConfigError("aggregation noisy-or needs scores that are probabilities: choose max, mean or top5%")
    groups = np.split(s[np.argsort(whose, kind="stable")], np.cumsum(np.bincount(whose))[:-1])
    return (np.bincount(whose, weights=y) > 0).astype(int), np.array([_joined(group, how, share) for group in groups])


def prevalence_weights(labels: np.ndarray, ratio: float = PTP_RATIO) -> np.ndarray:
    """Weights ``(n,)`` that make the normal weigh `ratio` times as much as the abnormal; the normal keep 1.

    At 9, the patient-to-patient protocol (PTP), metrics that depend on the prevalence, such as AP and F1, are those of
    a clinic with one abnormal patient in ten.
    """
    y = np.asarray(labels, bool)
    weights: np.ndarray = np.where(y, (~y).sum() / (ratio * max(1, y.sum())), 1.0)
    return weights


def aggregated_share(how: str) -> float:
    """The part of a patient's images that counts; 0 for the highest alone.

    Raises
    ------
    ConfigError
        The aggregation is not known.
    """
    if how in ("max", "mean", "noisy-or"):
        return 0.0 if how == "max" else 1.0
    number = how.removeprefix("top").removesuffix("%")
    if how != f"top{number}%" or not number.replace(".", "", 1).isdigit() or not 0 < float(number) <= 100:
        raise ConfigError(f'aggregation "{how}" is not known: choose max, mean, top<q>% (such as top5%) or noisy-or')
    return float(number) / 100


def _joined(scores: np.ndarray, how: str, share: float) -> float:
    if how == "noisy-or":
        return float(1 - np.prod(1 - scores))
    count = max(1, int(np.ceil(share * len(scores) - 1e-9)))
    return float(np.sort(scores)[-count:].mean())
