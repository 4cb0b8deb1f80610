"""From images to patients, and metrics at nine normals to one abnormal."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from anomalib_med.errors import ConfigError
from anomalib_med.evaluation.curves import RANKING_METRICS, curve_of, values_of
from anomalib_med.evaluation.patients import aggregate, prevalence_weights

LABELS = [0, 0, 0, 1, 0, 1]
SCORES = [0.1, 0.2, 0.6, 0.4, 0.3, 0.5]
PATIENTS = ["b", "b", "b", "a", "a", "c"]


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("max", [0.4, 0.6, 0.5]),
        ("mean", [0.35, 0.3, 0.5]),
        ("top50%", [0.4, 0.4, 0.5]),
        ("noisy-or", [1 - 0.6 * 0.7, 1 - 0.9 * 0.8 * 0.4, 0.5]),
    ],
)
def test_a_patient_has_one_score(how: str, expected: list[float]) -> None:
    labels, scores = aggregate(LABELS, SCORES, PATIENTS, how)
    assert labels.tolist() == [1, 0, 1]
    assert scores == pytest.approx(expected)


def test_an_unknown_aggregation_is_refused() -> None:
    for how in ("median", "top0%", "top%", "top5"):
        with pytest.raises(ConfigError, match="choose max, mean, top<q>%"):
            aggregate(LABELS, SCORES, PATIENTS, how)


def test_noisy_or_needs_probabilities() -> None:
    with pytest.raises(ConfigError, match="noisy-or needs scores that are probabilities"):
        aggregate([0, 1], [0.5, 2.0], list("ab"), "noisy-or")


def test_nine_normals_to_one_abnormal() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [30, 60])
    scores = labels + rng.normal(size=90)
    weights = prevalence_weights(labels)
    assert weights[labels == 0].sum() == pytest.approx(9 * weights[labels == 1].sum())
    metrics = {name: RANKING_METRICS[name] for name in ("auroc", "ap")}
    plain, ptp = (values_of(metrics, curve_of(labels, scores, w)) for w in (None, weights))
    assert ptp["ap"] == pytest.approx(average_precision_score(labels, scores, sample_weight=weights))
    assert ptp["ap"] < plain["ap"]
    assert ptp["auroc"] == pytest.approx(plain["auroc"])  # does not depend on the prevalence
