"""Statistics of image-level scores: ranking, decisions, probabilities, patients."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

import numpy as np

from anomalib_med.evaluation import patients
from anomalib_med.evaluation.curves import RANKING_METRICS, Curve, Floats, Metric, curve_of, replicate_values, values_of
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
    aggregation: str,
) -> list[Statistic]:
    """What can be said of scores and labels.

    Parameters
    ----------
    labels, scores, flagged, whose
        Arrays ``(n,)`` of the images that were scored; `flagged` is None without calibration.
    kept
        Places of these images among all images, for which the weights are drawn.
    aggregation
        How scores of images become one of a patient, see :func:`.patients.aggregate`.
    """
    counts = patient_counts(labels, whose)
    rarer = min(counts)

    def ranked(rows: Floats) -> Mapping[str, Floats]:
        return replicate_values(RANKING_METRICS, curve_of(labels, scores, rows[:, kept]))

    statistics = [Statistic(ranked, rarer, values_of(RANKING_METRICS, curve_of(labels, scores)))]
    if flagged is not None:
        statistics += _decided(labels.astype(float), flagged.astype(float), kept, counts)
    probabilities = cross_fitted(labels, scores, whose, np.ones((1, len(labels))))
    if probabilities is not None:
        statistics.append(_calibrated(labels, scores, whose, kept, probabilities[0], rarer))
    numbers, first = np.unique(whose, return_index=True)
    if len(numbers) < len(whose):
        joined = patients.aggregate(labels, scores, [f"{n:09}" for n in whose], aggregation)
        if len(np.unique(joined.labels)) == 2:
            statistics.append(_of_patients(joined, kept[first], rarer))
    return statistics


def _decided(y: Floats, f: Floats, kept: np.ndarray, counts: list[int]) -> list[Statistic]:
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


def _of_patients(joined: patients.PatientScores, kept: np.ndarray, cases: int) -> Statistic:
    """Metrics of patients, as they are and at nine normal to one abnormal."""
    ways = {
        "patient_": (RANKING_METRICS, np.ones(len(joined.labels))),
        "ptp_": ({name: RANKING_METRICS[name] for name in PTP_METRICS}, patients.prevalence_weights(joined.labels)),
    }

    def named(values: Callable[[Mapping[str, Metric], Curve], Mapping[str, T]], rows: Floats) -> dict[str, T]:
        return {
            prefix + name: value
            for prefix, (metrics, weights) in ways.items()
            for name, value in values(metrics, curve_of(joined.labels, joined.scores, rows * weights)).items()
        }

    exact = named(values_of, np.ones(len(joined.labels)))
    return Statistic(lambda rows: named(replicate_values, rows[:, kept]), cases, exact)
