"""Statistics of image-level scores: ranking, decisions, probabilities, patients."""

from collections.abc import Mapping
from functools import partial
from typing import TypeVar

import numpy as np

from anomalib_med.evaluation import patients
from anomalib_med.evaluation.curves import RANKING_METRICS, Floats, curve_of, replicate_values, values_of
from anomalib_med.evaluation.intervals import BRIER, ECE, Statistic, patient_counts
from anomalib_med.evaluation.probabilities import ECE_BINS, cross_fitted, expected_calibration_error

PTP_METRICS = ("ap", "f1_max (oracle)")
"""Metrics that depend on the prevalence, and are given at nine normal patients to one abnormal as well."""

T = TypeVar("T")


def image_statistics(
    labels: np.ndarray,
    scores: np.ndarray,
    flagged: np.ndarray | None,
    whose: np.ndarray,
    kept: np.ndarray,
    aggregation: str | None,
) -> list[Statistic]:
    """What can be said of scores and labels.

    Parameters
    ----------
    labels, scores, flagged, whose
        Arrays ``(n,)`` of the images that were scored; `flagged` is None without calibration.
    kept
        Places of these images among all images, for which the weights are drawn.
    aggregation
        How scores of images become one of a patient, see :func:`.patients.aggregate`; None for no numbers of patients.
    """
    counts = patient_counts(labels, whose)
    rarer = min(counts)
    statistics = [ranked(labels, scores, kept, rarer)]
    if flagged is not None:
        statistics += decided(labels.astype(float), flagged.astype(float), kept, counts)
    probabilities = cross_fitted(labels, scores, whose, np.ones((1, len(labels))))
    if probabilities is not None:
        statistics.append(_calibrated(labels, scores, whose, kept, probabilities[0], rarer))
    numbers, first = np.unique(whose, return_index=True)
    if aggregation is not None and len(numbers) < len(whose):
        abnormal, highest = patients.aggregate(labels, scores, whose, aggregation)
        if len(np.unique(abnormal)) == 2:
            statistics.append(of_patients(abnormal, highest, kept[first], rarer))
    return statistics


def ranked(labels: np.ndarray, scores: np.ndarray, kept: np.ndarray, cases: int) -> Statistic:
    """Numbers of a ranking of images."""

    def values(rows: Floats) -> Mapping[str, Floats]:
        return replicate_values(RANKING_METRICS, curve_of(labels, scores, rows[:, kept]))

    return Statistic(values, cases, values_of(RANKING_METRICS, curve_of(labels, scores)))


def decided(y: Floats, f: Floats, kept: np.ndarray, counts: list[int]) -> list[Statistic]:
    """Numbers of decisions at a threshold that was fixed beforehand."""

    def overall(rows: Floats) -> Mapping[str, Floats]:
        w = rows[:, kept]
        tp, fp, positives, cases = w @ (y * f), w @ ((1 - y) * f), w @ y, w.sum(axis=1)
        return {
            "accuracy": (tp + cases - positives - fp) / cases,
            "f1": 2 * tp / (tp + fp + positives),
            "flagged_rate": (tp + fp) / cases,
        }

    def share(name: str, kind: Floats, rows: Floats) -> Mapping[str, Floats]:
        return {name: rows[:, kept] @ (kind * f) / (rows[:, kept] @ kind)}

    return [
        Statistic(partial(share, "sensitivity", y), counts[-1]),
        Statistic(partial(share, "false_alarm_rate", 1 - y), counts[0]),
        Statistic(overall, min(counts)),
    ]


def _calibrated(
    labels: np.ndarray, scores: np.ndarray, whose: np.ndarray, kept: np.ndarray, probabilities: Floats, cases: int
) -> Statistic:
    """Numbers of probabilities: each replicate fits them anew, since other patients would have given another curve."""
    bins = np.minimum((probabilities * ECE_BINS).astype(int), ECE_BINS - 1)
    member = np.zeros((len(bins), ECE_BINS))
    member[np.arange(len(bins)), bins] = 1
    gaps = (probabilities - labels) @ member / len(bins)

    def values(rows: Floats) -> Mapping[str, Floats]:
        w = rows[:, kept]
        fitted = cross_fitted(labels, scores, whose, w)
        assert fitted is not None  # as for the images at hand
        share, off = w / w.sum(axis=1, keepdims=True), fitted - labels
        noise = np.abs((share * off) @ member - gaps).sum(axis=1)
        return {ECE: noise, BRIER: (share * off**2).sum(axis=1)}

    brier = float(np.mean((probabilities - labels) ** 2))  # scikit-learn's `brier_score_loss`; Brier 1950
    return Statistic(values, cases, {ECE: expected_calibration_error(labels, probabilities), BRIER: brier})


def of_patients(labels: np.ndarray, scores: np.ndarray, kept: np.ndarray, cases: int) -> Statistic:
    """Numbers of a ranking of patients, as they are and at nine normal ones to one abnormal."""
    ptp_weights = patients.prevalence_weights(labels)
    ptp_metrics = {name: RANKING_METRICS[name] for name in PTP_METRICS}

    def values(rows: Floats) -> Mapping[str, Floats]:
        plain = replicate_values(RANKING_METRICS, curve_of(labels, scores, rows[:, kept]))
        ptp = replicate_values(ptp_metrics, curve_of(labels, scores, rows[:, kept] * ptp_weights))
        return _prefixed(plain, ptp)

    plain, ptp = (curve_of(labels, scores, w) for w in (None, ptp_weights))
    return Statistic(values, cases, _prefixed(values_of(RANKING_METRICS, plain), values_of(ptp_metrics, ptp)))


def _prefixed(plain: Mapping[str, T], ptp: Mapping[str, T]) -> dict[str, T]:
    return {f"patient_{name}": v for name, v in plain.items()} | {f"ptp_{name}": v for name, v in ptp.items()}
