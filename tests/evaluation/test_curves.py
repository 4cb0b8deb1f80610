"""Ranking metrics against scikit-learn, on scores with ties, with and without weights."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from anomalib_med.evaluation import curves
from anomalib_med.evaluation.curves import area_below, curve_of


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels of both kinds, scores with ties, whole weights with at least one of each kind above 0."""
    labels = np.array([0, 1, *draw(st.lists(st.integers(0, 1), max_size=25))])
    n = len(labels)
    scores = np.array(draw(st.lists(st.integers(-4, 4), min_size=n, max_size=n)), float)
    weights = np.array(draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)), float)
    weights[:2] = 1
    return labels, scores, weights


@given(cases())
def test_auroc_and_average_precision_are_scikit_learns(case: tuple[np.ndarray, ...]) -> None:
    labels, scores, weights = case
    plain, weighted = curve_of(labels, scores), curve_of(labels, scores, weights)
    assert curves.auroc(plain) == pytest.approx(roc_auc_score(labels, scores))
    assert curves.auroc(weighted) == pytest.approx(roc_auc_score(labels, scores, sample_weight=weights))
    assert curves.average_precision(plain) == pytest.approx(average_precision_score(labels, scores))
    assert curves.average_precision(weighted) == pytest.approx(
        average_precision_score(labels, scores, sample_weight=weights)
    )


@given(cases(), st.sampled_from([0.05, 0.1, 0.37, 0.8]))
def test_partial_auroc_is_scikit_learns(case: tuple[np.ndarray, ...], limit: float) -> None:
    labels, scores, _ = case
    expected = roc_auc_score(labels, scores, max_fpr=limit)
    assert curves.partial_auroc(curve_of(labels, scores), limit) == pytest.approx(expected)


@given(cases())
def test_oracles_are_the_best_over_all_thresholds(case: tuple[np.ndarray, ...]) -> None:
    labels, scores, _ = case
    cuts = [*np.unique(scores), np.inf]
    curve = curve_of(labels, scores)
    assert curves.f1_max(curve) == pytest.approx(max(f1_score(labels, scores >= t, zero_division=0) for t in cuts))
    assert curves.accuracy_max(curve) == pytest.approx(max(np.mean((scores >= t) == labels) for t in cuts))
    precision, recall, _ = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    assert curves.f1_max(curve) == pytest.approx(f1.max())


@given(cases(), st.sampled_from([0.5, 0.9, 0.95]))
def test_operating_points_are_points_of_the_roc_curve(case: tuple[np.ndarray, ...], level: float) -> None:
    labels, scores, _ = case
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    curve = curve_of(labels, scores)
    assert curves.sensitivity_at_specificity(curve, level) == pytest.approx(tpr[1 - fpr >= level - 1e-12].max())
    assert curves.specificity_at_sensitivity(curve, level) == pytest.approx((1 - fpr[tpr >= level - 1e-12]).max())


@given(cases())
def test_replicates_are_computed_side_by_side(case: tuple[np.ndarray, ...]) -> None:
    labels, scores, weights = case
    both = curve_of(labels, scores, np.stack([np.ones_like(weights), weights]))
    for metric in (curves.auroc, curves.average_precision, curves.f1_max, curves.accuracy_max, curves.partial_auroc):
        apart = [float(metric(curve_of(labels, scores, w))) for w in (np.ones_like(weights), weights)]
        assert metric(both) == pytest.approx(apart)


@given(cases())
def test_a_weight_of_two_is_a_case_counted_twice(case: tuple[np.ndarray, ...]) -> None:
    labels, scores, weights = case
    counts = weights.astype(int)
    twice = curve_of(np.repeat(labels, counts), np.repeat(scores, counts))
    for metric in (curves.auroc, curves.average_precision, curves.f1_max, curves.accuracy_max):
        assert metric(curve_of(labels, scores, weights)) == pytest.approx(float(metric(twice)))


def test_the_area_is_cut_by_a_straight_line() -> None:
    x, y = np.array([0.2, 0.4, 1.0]), np.array([0.5, 0.9, 1.0])
    assert area_below(x, y, 0.3) == pytest.approx(0.5 * 0.2 * 0.5 + 0.1 * (0.5 + 0.7) / 2)
    assert area_below(x, y, 0.4) == pytest.approx(0.05 + 0.2 * 0.7)


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 1], [1.0], "two lists of one length"),
        ([0, 2], [1.0, 2.0], "labels must be 0"),
        ([0, 1], [1.0, float("inf")], "a score is infinite"),
    ],
)
def test_what_cannot_be_judged_is_refused(labels: list[int], scores: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        curve_of(np.array(labels), np.array(scores))
