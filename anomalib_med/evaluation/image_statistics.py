"""Statistics of image-level scores: ranking, decisions, probabilities, patients."""

from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from anomalib_med.evaluation import patients
from anomalib_med.evaluation.curves import Floats, curve_of, replicate_values
from anomalib_med.evaluation.image_metrics import (
    ECE_BINS,
    RANKING_METRICS,
    brier_score,
    expected_calibration_error,
)
from anomalib_med.evaluation.intervals import patient_counts
from anomalib_med.evaluation.probabilities import cross_fitted
from anomalib_med.evaluation.replicates import BRIER, ECE, Statistic

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
        Of each image that was scored ``(n,)``; `flagged` is None without calibration.
    kept
        Their places among all images, which the weights are of.
    aggregation
        From images to patients, see :func:`.patients.aggregate`; None for no numbers of patients.
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
        joined = patients.aggregate(labels, scores, [f"{n:09}" for n in whose], aggregation)
        if len(np.unique(joined.labels)) == 2:
            statistics.append(of_patients(joined, kept[first], rarer))
    return statistics


def ranked(labels: np.ndarray, scores: np.ndarray, kept: np.ndarray, cases: int) -> Statistic:
    """Numbers of a ranking of images."""

    def values(rows: Floats) -> Mapping[str, Floats]:
        return replicate_values(RANKING_METRICS, curve_of(labels, scores, rows[:, kept]))

    whole = curve_of(labels, scores)
    return Statistic(values, cases, {name: float(metric(whole)) for name, metric in RANKING_METRICS.items()})


def decided(y: Floats, f: Floats, kept: np.ndarray, counts: list[int]) -> list[Statistic]:
    """Numbers of decisions at a threshold that was fixed beforehand."""

    def abnormal(rows: Floats) -> Mapping[str, Floats]:
        return {"sensitivity": rows[:, kept] @ (y * f) / (rows[:, kept] @ y)}

    def normal(rows: Floats) -> Mapping[str, Floats]:
        return {"false_alarm_rate": rows[:, kept] @ ((1 - y) * f) / (rows[:, kept] @ (1 - y))}

    def all_of_them(rows: Floats) -> Mapping[str, Floats]:
        w = rows[:, kept]
        tp, fp, positives, cases = w @ (y * f), w @ ((1 - y) * f), w @ y, w.sum(axis=1)
        return {
            "accuracy": (tp + cases - positives - fp) / cases,
            "f1": 2 * tp / (tp + fp + positives),
            "flagged_rate": (tp + fp) / cases,
        }

    return [Statistic(abnormal, counts[-1]), Statistic(normal, counts[0]), Statistic(all_of_them, min(counts))]


def _calibrated(
    labels: np.ndarray, scores: np.ndarray, whose: np.ndarray, kept: np.ndarray, probabilities: Floats, cases: int
) -> Statistic:
    """Of probabilities; each replicate fits them anew, since other patients would have given another curve."""
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

    exact = {
        ECE: expected_calibration_error(labels, probabilities),
        BRIER: brier_score(labels, probabilities),
    }
    return Statistic(values, cases, exact)


def of_patients(joined: patients.PatientScores, kept: np.ndarray, cases: int) -> Statistic:
    """Numbers of a ranking of patients, as they are and at nine normal ones to one abnormal."""
    ptp_weights = patients.prevalence_weights(joined.labels)
    ptp_metrics = {name: RANKING_METRICS[name] for name in PTP_METRICS}

    def values(rows: Floats) -> Mapping[str, Floats]:
        plain = replicate_values(RANKING_METRICS, curve_of(joined.labels, joined.scores, rows[:, kept]))
        ptp = replicate_values(ptp_metrics, curve_of(joined.labels, joined.scores, rows[:, kept] * ptp_weights))
        return _prefixed(plain, ptp)

    plain, ptp = (curve_of(joined.labels, joined.scores, w) for w in (None, ptp_weights))
    exact = _prefixed(
        {name: float(metric(plain)) for name, metric in RANKING_METRICS.items()},
        {name: float(metric(ptp)) for name, metric in ptp_metrics.items()},
    )
    return Statistic(values, cases, exact)


def _prefixed(plain: Mapping[str, T], ptp: Mapping[str, T]) -> dict[str, T]:
    return {f"patient_{name}": v for name, v in plain.items()} | {f"ptp_{name}": v for name, v in ptp.items()}
