"""Intervals and tests of differences, against slow references."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from anomalib_med.evaluation import curves, image_auroc
from anomalib_med.evaluation.curves import Metric, curve_of
from anomalib_med.evaluation.delong import delong_contrast, delong_covariance
from anomalib_med.evaluation.intervals import (
    Interval,
    Statistic,
    difference_of,
    draws,
    noise_interval,
    patient_counts,
    replicated,
    score_interval,
    wilson,
)

DIFFERENCE = np.array([1.0, -1.0])


def two_methods(n: int = 60, seed: int = 0, gap: float = 0.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], n // 2)
    shared = rng.normal(size=n)
    first = labels * (1 + gap) + shared + rng.normal(size=n) * 0.7
    return labels, np.round(first, 1), np.round(labels + shared + rng.normal(size=n) * 0.7, 1)


def measured(
    labels: np.ndarray,
    scores: np.ndarray,
    metrics: dict[str, Metric],
    patients: np.ndarray | None = None,
    weights: np.ndarray | float = 1.0,
    replicates: int = 2000,
) -> dict[str, Interval]:
    """Metrics of a ranking with their intervals."""
    whose = np.arange(len(labels)) if patients is None else patients
    whole = curve_of(labels, scores, weights * np.ones(len(labels)))
    statistic = Statistic(
        lambda rows: curves.replicate_values(metrics, curve_of(labels, scores, rows * weights)),
        min(patient_counts(labels, whose)),
        curves.values_of(metrics, whole),
    )
    return {name: m.interval for name, m in replicated(labels, whose, [statistic], replicates).items()}


def slow_delong(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The paper's formulas, pair by pair."""
    v10, v01 = [], []
    for s in scores:
        x, y = s[labels == 1], s[labels == 0]
        psi = (x[:, None] > y) + 0.5 * (x[:, None] == y)
        v10.append(psi.mean(axis=1))
        v01.append(psi.mean(axis=0))
    return np.cov(v10) / len(v10[0]) + np.cov(v01) / len(v01[0])


def test_delong_is_the_papers_formula() -> None:
    labels, first, second = two_methods()
    areas, covariance = delong_covariance(labels, np.stack([first, second]))
    assert areas == pytest.approx([image_auroc(labels, first), image_auroc(labels, second)])
    assert covariance == pytest.approx(slow_delong(labels, np.stack([first, second])))


def test_delong_agrees_with_a_permutation_test() -> None:
    # Under no difference the two scores of an image, brought to ranks, can be exchanged.
    labels, first, second = two_methods(120, seed=3, gap=0.45)
    ranks = [np.argsort(np.argsort(s)).astype(float) for s in (first, second)]
    observed = image_auroc(labels, ranks[0]) - image_auroc(labels, ranks[1])
    rng = np.random.default_rng(1)
    beyond = 0
    for _ in range(1000):
        swap = rng.random(len(labels)) < 0.5
        a, b = np.where(swap, ranks[1], ranks[0]), np.where(swap, ranks[0], ranks[1])
        areas = [float(curves.auroc(curve_of(labels, s))) for s in (a, b)]
        beyond += abs(areas[0] - areas[1]) >= abs(observed) - 1e-12
    _, p = delong_contrast(labels, np.stack(ranks), DIFFERENCE)
    assert p == pytest.approx(beyond / 1000, abs=0.03)
    assert 0.001 < p < 0.5


def test_an_image_repeated_adds_nothing_where_its_patient_is_known() -> None:
    labels, first, second = two_methods()
    once, twice = np.arange(60), np.repeat(np.arange(60), 2)
    scores = np.stack([first, second])
    single = delong_covariance(labels, scores, once)[1]
    assert single == pytest.approx(delong_covariance(labels, scores)[1])
    assert delong_covariance(labels[twice], scores[:, twice], twice)[1] == pytest.approx(single)
    assert delong_covariance(labels[twice], scores[:, twice])[1][0, 0] < 0.6 * single[0, 0]


def test_a_method_does_not_differ_from_itself() -> None:
    labels, first, _ = two_methods()
    interval, p = delong_contrast(labels, np.stack([first, 3 * first + 1]), DIFFERENCE)
    assert (interval.value, p) == (0, 1)


def test_delongs_variance_needs_two_patients_of_each_kind() -> None:
    with pytest.raises(ValueError, match="two patients of each kind"):
        delong_covariance(np.array([0, 0, 1]), np.array([1, 2, 3]))


def test_a_replicate_draws_whole_patients_of_both_kinds() -> None:
    patients = np.array(list("aabbccddee"))
    labels = np.array([0, 0, 0, 0, 0, 0, 1, 0, 1, 1])
    rows = np.concatenate(list(draws(labels, patients, replicates=300, seed=0)))
    assert rows.shape == (300, 10)
    assert (rows[:, ::2] == rows[:, 1::2]).all()
    assert rows[:, [0, 2, 4]].sum(axis=1) == pytest.approx(3)
    assert rows[:, [6, 8]].sum(axis=1) == pytest.approx(2)
    assert (rows > 0).all()
    assert (rows == np.concatenate(list(draws(labels, patients, replicates=300, seed=0)))).all()


def test_the_bootstrap_is_the_slow_one() -> None:
    labels, scores, _ = two_methods(40)
    interval = measured(labels, scores, {"auroc": curves.auroc}, replicates=200)["auroc"]
    rows = np.concatenate(list(draws(labels, None, replicates=200, seed=0)))
    slow = [roc_auc_score(labels, scores, sample_weight=row) for row in rows]
    assert interval.value == image_auroc(labels, scores)
    by_hand = score_interval(interval.value, np.array(slow), 20)
    assert (interval.low, interval.high) == pytest.approx((by_hand.low, by_hand.high))


def test_bootstrap_and_delong_agree_on_the_width() -> None:
    labels, scores, _ = two_methods(400)
    a = measured(labels, scores, {"auroc": curves.auroc})["auroc"]
    b, _ = delong_contrast(labels, scores, np.ones(1))
    assert a.high - a.low == pytest.approx(b.high - b.low, rel=0.1)


def test_images_of_one_patient_widen_the_interval() -> None:
    labels, scores, _ = two_methods(60)
    often = np.repeat(np.arange(60), 4)
    apart = measured(labels[often], scores[often], {"auroc": curves.auroc})["auroc"]
    together = measured(labels[often], scores[often], {"auroc": curves.auroc}, often)["auroc"]
    assert together.high - together.low > 1.7 * (apart.high - apart.low)


def test_the_paired_bootstrap_sees_a_difference_and_none() -> None:
    labels, first, second = two_methods(300, gap=1.0)
    rows = np.concatenate(list(draws(labels, None, replicates=500, seed=0)))
    a, b = (curves.auroc(curve_of(labels, scores, rows)) for scores in (first, second))
    interval, p = difference_of(image_auroc(labels, first) - image_auroc(labels, second), a - b, 150)
    assert interval.low > 0
    assert p == pytest.approx(delong_contrast(labels, np.stack([first, second]), DIFFERENCE)[1], abs=0.002)
    assert p < 0.01
    same, p = difference_of(0.0, a - a, 150)
    assert (same.value, same.low, same.high, p) == (0, 0, 0, 1)


def test_wilson_is_the_textbook_one() -> None:
    # Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I.
    for (successes, cases), ends in {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }.items():
        assert wilson(successes / cases, cases, 1.959964) == pytest.approx(ends, abs=5e-5)


def test_the_interval_of_a_share_is_wilsons() -> None:
    values = np.repeat([1.0, 0.0], [30, 170])
    rows = np.concatenate(list(draws(np.zeros(200), None, replicates=4000, seed=0)))
    interval = score_interval(0.15, rows @ values / 200, 200)
    assert (interval.low, interval.high) == pytest.approx(wilson(0.15, 200, 1.96), abs=0.004)


@given(st.floats(0, 1), st.integers(2, 40), st.floats(0, 0.3), st.booleans())
def test_an_interval_lies_in_its_range_and_holds_its_value(v: float, cases: int, sd: float, optimistic: bool) -> None:
    replicates = np.clip(v + sd * np.linspace(-1, 1, 21), 0, 1)
    interval = score_interval(v, replicates, cases, optimistic=optimistic)
    assert 0 <= interval.low <= interval.high <= 1
    assert interval.low <= v <= interval.high


def test_a_share_of_all_or_none_has_width_and_few_patients_make_it_wide() -> None:
    every = np.ones(100)
    assert score_interval(1.0, every, 20).low == pytest.approx(wilson(1.0, 20, stats.t.ppf(0.975, 19))[0])
    assert score_interval(1.0, every, 3).low < 0.3
    lone = score_interval(0.7, every, 1)
    assert np.isnan([lone.low, lone.high]).all()
    assert str(lone) == "0.700 [no interval]"


def test_an_optimistic_number_is_moved_down_and_has_a_wider_interval() -> None:
    replicates = 0.84 + 0.02 * np.random.default_rng(0).normal(size=2000)
    plain, moved = (score_interval(0.8, replicates, 100, optimistic=o) for o in (False, True))
    assert moved.low == pytest.approx(plain.low - 0.08, abs=0.06)
    assert moved.high < plain.high
    known = score_interval(0.8, replicates, 100, expected=0.84, optimistic=True)
    assert (known.low, known.high) == pytest.approx((plain.low, plain.high), abs=2e-3)


def test_a_weight_is_that_of_the_bayesian_bootstrap() -> None:
    rows = np.concatenate(list(draws(np.repeat([0, 1], [12, 5]), None, replicates=20_000, seed=0)))
    for stratum, n in ((rows[:, :12], 12), (rows[:, 12:], 5)):
        assert stratum.mean(axis=0) == pytest.approx(1, abs=0.03)
        assert stratum.var(axis=0) == pytest.approx((n - 1) / (n + 1), abs=0.06)  # n times a Dirichlet share


def test_normal_cases_are_spread_over_the_ranks_above_them() -> None:
    labels, scores = np.array([1, 1, 0, 1, 0, 0, 1]), np.arange(7)[::-1]
    weights = np.array([[1.0] * 7, [1, 2, 3, 4, 5, 6, 7]])
    curve = curves.curve_of(labels, scores, weights)
    smooth = curves.smoothed(curve)
    np.testing.assert_array_equal(smooth.tp, curve.tp)
    np.testing.assert_allclose(smooth.fp[0], [1 / 3, 2 / 3, 1, 1.5, 2, 3, 3])
    np.testing.assert_allclose(smooth.fp[1], [1, 2, 3, 5.5, 8, 14, 14])
    tied = curves.curve_of(labels, np.zeros(7))
    np.testing.assert_array_equal(curves.smoothed(tied).fp, tied.fp)


def test_few_normals_leave_the_precision_at_the_top_in_doubt() -> None:
    labels = np.repeat([0, 1], 20)
    found = measured(labels, np.arange(40), {"ap": curves.average_precision, "auroc": curves.auroc})
    assert found["ap"].value == found["auroc"].value == 1
    assert found["ap"].low < 0.95
    rare = measured(labels, np.arange(40), {"ap": curves.average_precision}, weights=np.where(labels, 1 / 9, 1))["ap"]
    assert rare.low < found["ap"].low - 0.05
    assert rare.high == 1


def test_an_interval_of_absolute_gaps_reaches_down_to_none_where_they_are_noise() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        gaps = rng.normal(size=15) * 0.01
        noise = np.abs(rng.normal(size=(400, 15)) * 0.01).sum(axis=1)
        held += noise_interval(float(np.abs(gaps).sum()), noise, 1000).low == 0
    assert 0.92 < held / 300 < 0.98
    real = noise_interval(0.6, np.abs(rng.normal(size=(400, 15)) * 0.01).sum(axis=1), 1000)
    assert 0.3 < real.low < 0.6 < real.high < 0.9
    assert np.isnan(noise_interval(0.6, np.ones(3), 1).low)


def test_a_difference_can_be_far_beyond_what_replicates_can_count() -> None:
    interval, p = difference_of(0.1, 0.1 + 0.01 * np.random.default_rng(0).normal(size=500), 200)
    assert 0 < p < 1e-15
    assert 0.07 < interval.low < interval.high < 0.13
    assert interval.high - interval.low == pytest.approx(2 * stats.t.ppf(0.975, 199) * 0.01, rel=0.1)
    assert difference_of(0.0, np.zeros(10), 20)[1] == 1
    assert np.isnan(difference_of(0.1, np.ones(10), 1)[1])
