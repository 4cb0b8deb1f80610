"""Statistics of image-level scores: ranking, decisions, probabilities, patients."""

from collections.abc import Mapping

import numpy as np

from anomalib_med.evaluation import patients
from anomalib_med.evaluation.curves import Floats, curve_of
from anomalib_med.evaluation.image_metrics import ECE_BINS, RANKING_METRICS
from anomalib_med.evaluation.intervals import patient_counts
from anomalib_med.evaluation.probabilities import cross_fitted
from anomalib_med.evaluation.replicates import Statistic


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
        Of each image that was scored ``(n,)``; `flagged` is None without calibration.
    kept
        Their places among all images, which the weights are of.
    aggregation
        From images to patients, see :func:`.patients.aggregate`.
    """
    counts = patient_counts(labels, whose)
    rarer = min(counts)

    def ranked(rows: Floats) -> Mapping[str, Floats]:
        curve = curve_of(labels, scores, rows[:, kept])
        return {name: metric(curve) for name, metric in RANKING_METRICS.items()}

    statistics = [Statistic(ranked, rarer)]
    if flagged is not None:
        statistics += _decided(labels.astype(float), flagged.astype(float), kept, counts)
    probabilities = cross_fitted(labels, scores, whose)
    if probabilities is not None:
        gaps = probabilities - labels
        statistics.append(Statistic(lambda rows: _calibrated(gaps, probabilities, rows[:, kept]), rarer))
    numbers, first = np.unique(whose, return_index=True)
    if len(numbers) < len(whose):
        joined = patients.aggregate(labels, scores, [f"{n:09}" for n in whose], aggregation)
        if len(np.unique(joined.labels)) == 2:
            statistics.append(Statistic(lambda rows: _of_patients(joined, rows[:, kept[first]]), rarer))
    return statistics


def _decided(y: Floats, f: Floats, kept: np.ndarray, counts: list[int]) -> list[Statistic]:
    """Of decisions at a threshold that was fixed beforehand."""

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


def _calibrated(gaps: Floats, probabilities: Floats, rows: Floats) -> Mapping[str, Floats]:
    bins = np.minimum((probabilities * ECE_BINS).astype(int), ECE_BINS - 1)
    by_bin = np.zeros((len(gaps), ECE_BINS))
    by_bin[np.arange(len(gaps)), bins] = gaps
    cases = rows.sum(axis=1)
    return {
        "ece (cross-fitted)": np.abs(rows @ by_bin).sum(axis=1) / cases,
        "brier (cross-fitted)": rows @ gaps**2 / cases,
    }


def _of_patients(joined: patients.PatientScores, rows: Floats) -> Mapping[str, Floats]:
    plain = curve_of(joined.labels, joined.scores, rows)
    ptp = curve_of(joined.labels, joined.scores, rows * patients.prevalence_weights(joined.labels))
    values = {f"patient_{name}": metric(plain) for name, metric in RANKING_METRICS.items()}
    return values | {f"ptp_{name}": RANKING_METRICS[name](ptp) for name in ("ap", "f1_max (oracle)")}
