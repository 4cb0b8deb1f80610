"""Decisions at a fixed threshold and calibration of probabilities, against scikit-learn and the slow way."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, brier_score_loss, f1_score, precision_score, recall_score

from anomalib_med.evaluation.image_metrics import (
    RANKING_METRICS,
    all_positive,
    brier_score,
    decisions,
    expected_calibration_error,
    ranking_metric,
)

PAIRS = st.lists(st.tuples(st.integers(0, 1), st.floats(0, 1)), min_size=1, max_size=40)


@given(PAIRS, st.floats(0, 1))
def test_decisions_are_scikit_learns(pairs: list[tuple[int, float]], threshold: float) -> None:
    labels, scores = np.array(pairs).T
    flagged = scores > threshold
    d = decisions(labels, flagged)
    assert d.accuracy == pytest.approx(accuracy_score(labels, flagged))
    assert d.flagged_rate == pytest.approx(flagged.mean())
    if labels.any():
        assert d.sensitivity == pytest.approx(recall_score(labels, flagged))
        assert d.f1 == pytest.approx(f1_score(labels, flagged, zero_division=0))
    if not labels.all():
        assert d.specificity == pytest.approx(recall_score(labels, flagged, pos_label=0))
        assert d.false_alarm_rate == pytest.approx(1 - d.specificity)
    if flagged.any():
        assert d.precision == pytest.approx(precision_score(labels, flagged))


def test_a_rate_without_cases_is_not_a_number() -> None:
    d = decisions([0, 0], [False, True])
    assert np.isnan(d.sensitivity)
    assert d.specificity == 0.5


def test_flagging_everything_has_the_f1_of_the_prevalence() -> None:
    d = all_positive([0] * 234 + [1] * 390)  # ZhangLab's test set
    assert (round(d.accuracy, 3), round(d.f1, 3)) == (0.625, 0.769)


@given(PAIRS)
def test_brier_is_scikit_learns(pairs: list[tuple[int, float]]) -> None:
    labels, probabilities = np.array(pairs).T
    expected = np.mean((labels - probabilities) ** 2)
    assert brier_score(labels, probabilities) == pytest.approx(expected)
    if len(set(labels)) == 2:
        assert brier_score(labels, probabilities) == pytest.approx(brier_score_loss(labels, probabilities))


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


@pytest.mark.parametrize("metric", [brier_score, expected_calibration_error])
def test_scores_that_are_no_probabilities_are_refused(metric: object) -> None:
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        metric([0, 1], [0.5, 1.5])  # type: ignore[operator]


def test_oracles_say_so_in_their_name() -> None:
    assert {name for name in RANKING_METRICS if "max" in name} == {"f1_max (oracle)", "accuracy_max (oracle)"}


def test_an_unknown_metric_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match='metric "auc" is not known: there are auroc, ap'):
        ranking_metric("auc", [0, 1], [0.0, 1.0])
