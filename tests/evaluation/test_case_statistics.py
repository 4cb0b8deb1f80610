"""Decisions and probabilities, against scikit-learn, torchmetrics and the slow way."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, brier_score_loss, f1_score, recall_score

from anomalib_med.evaluation.case_statistics import Cases, image_statistics
from anomalib_med.evaluation.curves import RANKING_METRICS
from anomalib_med.evaluation.intervals import draws, replicated
from anomalib_med.evaluation.probabilities import cross_fitted, expected_calibration_error

PAIRS = st.lists(st.tuples(st.integers(0, 1), st.floats(0, 1)), min_size=1, max_size=40)


def values(labels: np.ndarray, scores: np.ndarray, flagged: np.ndarray) -> dict[str, float]:
    """Every number of images that are patients of their own."""
    whose = np.arange(len(labels))
    statistics = image_statistics(Cases(labels, scores, flagged, whose, whose), "max")
    return {name: m.interval.value for name, m in replicated(labels, whose, statistics, replicates=2).items()}


@given(PAIRS, st.floats(0, 1))
def test_decisions_are_scikit_learns(pairs: list[tuple[int, float]], threshold: float) -> None:
    labels, scores = np.array([(0, 0.1), (1, 0.9), *pairs]).T
    flagged = scores > threshold
    found = values(labels, scores, flagged)
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, flagged))
    assert found["flagged_rate"] == pytest.approx(flagged.mean())
    assert found["sensitivity"] == pytest.approx(recall_score(labels, flagged))
    assert found["f1"] == pytest.approx(f1_score(labels, flagged, zero_division=0))
    assert found["false_alarm_rate"] == pytest.approx(1 - recall_score(labels, flagged, pos_label=0))


def test_brier_is_scikit_learns_of_probabilities_from_other_patients() -> None:
    labels = np.arange(60) % 2
    scores = np.random.default_rng(0).normal(size=60) + labels
    probabilities = cross_fitted(labels, scores, np.arange(60), np.ones((1, 60)))
    assert probabilities is not None
    found = values(labels, scores, scores > 1)
    assert found["brier (cross-fitted)"] == pytest.approx(brier_score_loss(labels, probabilities[0]))
    assert found["ece (cross-fitted)"] == expected_calibration_error(labels, probabilities[0])


def test_probabilities_are_fitted_to_each_row_of_weights() -> None:
    labels, scores, patients = np.arange(40) % 2, np.random.default_rng(0).normal(size=40), np.arange(40) // 2
    labels = patients % 2
    scores = scores + labels
    rows = np.concatenate([np.ones((1, 40)), *draws(labels, patients, replicates=3, seed=0)])
    found = cross_fitted(labels, scores, patients, rows)
    assert found is not None
    assert found.shape == (4, 40)
    np.testing.assert_allclose(cross_fitted(labels, scores, patients, rows[2:3]), found[2:3])
    # The first fold holds the first and the sixth patient of each kind.
    out = np.isin(patients, [0, 10, 1, 11])
    y, w = labels[~out], rows[2, ~out]
    positives, negatives = w @ y, w @ (1 - y)
    soft = np.where(y == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    model = LogisticRegression(C=1e9, tol=1e-10, max_iter=1000)
    twice, either = np.tile(scores[~out], 2)[:, None], np.repeat([1, 0], len(y))
    model.fit(twice, either, sample_weight=np.concatenate([w * soft, w * (1 - soft)]))
    np.testing.assert_allclose(model.predict_proba(scores[out][:, None])[:, 1], found[2, out], atol=1e-4)
    assert cross_fitted(labels[:2], scores[:2], patients[:2], rows[:, :2]) is None


@given(PAIRS)
def test_calibration_error_is_the_weighted_gap_of_bins(pairs: list[tuple[int, float]]) -> None:
    labels, probabilities = np.array(pairs).T
    bins = np.minimum((probabilities * 15).astype(int), 14)
    gaps = [
        (bins == b).mean() * abs(labels[bins == b].mean() - probabilities[bins == b].mean())
        for b in range(15)
        if (bins == b).any()
    ]
    assert expected_calibration_error(labels, probabilities) == pytest.approx(sum(gaps))


def test_calibration_error_of_torchmetrics() -> None:
    # torchmetrics 1.9.0: binary_calibration_error(p, y, n_bins=15, norm="l1") of these arrays.
    rng = np.random.default_rng(7)
    probabilities = rng.random(500)
    labels = (rng.random(500) < probabilities**2).astype(int)
    assert expected_calibration_error(labels, probabilities) == pytest.approx(0.182363399751096, abs=1e-9)


def test_scores_that_are_no_probabilities_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        expected_calibration_error(np.array([0, 1]), np.array([0.5, 1.5]))


def test_oracles_say_so_in_their_name() -> None:
    assert {name for name in RANKING_METRICS if "max" in name} == {"f1_max (oracle)", "accuracy_max (oracle)"}
