"""Intervals, tests of differences and tables of many, against slow references."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from anomalib_med.bench.comparisons import holm, over_seeds
from anomalib_med.evaluation import curves
from anomalib_med.evaluation.curves import curve_of
from anomalib_med.evaluation.delong import delong_covariance, delong_interval, delong_test
from anomalib_med.evaluation.image_metrics import image_auroc
from anomalib_med.evaluation.intervals import (
    bootstrap,
    difference_of,
    draws,
    noise_interval,
    paired_bootstrap,
    score_interval,
    t_quantile,
    t_tail,
    wilson,
)
from anomalib_med.evaluation.probabilities import cross_fitted


def two_methods(n: int = 60, seed: int = 0, gap: float = 0.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], n // 2)
    shared = rng.normal(size=n)
    first = labels * (1 + gap) + shared + rng.normal(size=n) * 0.7
    return labels, np.round(first, 1), np.round(labels + shared + rng.normal(size=n) * 0.7, 1)


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
    _, p = delong_test(labels, ranks[0], ranks[1])
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
    interval, p = delong_test(labels, first, 3 * first + 1)
    assert (interval.value, p) == (0, 1)


def test_delong_interval_stays_between_zero_and_one() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    interval = delong_interval(labels, np.array([1, 2, 3, 5, 4, 6, 7, 8]))
    assert 0 < interval.low < interval.value < interval.high < 1
    perfect = delong_interval(labels, np.arange(8))
    assert (perfect.low, perfect.high) == (1, 1)
    with pytest.raises(ValueError, match="two patients of each kind"):
        delong_interval(np.array([0, 0, 1]), np.array([1, 2, 3]))


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


def test_bootstrap_is_the_slow_one() -> None:
    labels, scores, _ = two_methods(40)
    interval = bootstrap(labels, scores, {"auroc": curves.auroc}, replicates=200, seed=5)["auroc"]
    rows = np.concatenate(list(draws(labels, None, replicates=200, seed=5)))
    slow = [roc_auc_score(labels, scores, sample_weight=row) for row in rows]
    assert interval.value == image_auroc(labels, scores)
    by_hand = score_interval(interval.value, np.array(slow), 20)
    assert (interval.low, interval.high) == pytest.approx((by_hand.low, by_hand.high))


def test_bootstrap_and_delong_agree_on_the_width() -> None:
    labels, scores, _ = two_methods(400)
    a = bootstrap(labels, scores, {"auroc": curves.auroc})["auroc"]
    b = delong_interval(labels, scores)
    assert a.high - a.low == pytest.approx(b.high - b.low, rel=0.1)


def test_images_of_one_patient_widen_the_interval() -> None:
    labels, scores, _ = two_methods(60)
    twice = np.repeat(np.arange(60), 4)
    apart = bootstrap(labels[twice], scores[twice], {"auroc": curves.auroc})["auroc"]
    together = bootstrap(labels[twice], scores[twice], {"auroc": curves.auroc}, patients=twice)["auroc"]
    assert together.high - together.low > 1.7 * (apart.high - apart.low)


def test_paired_bootstrap_sees_a_difference_and_none() -> None:
    labels, first, second = two_methods(300, gap=1.0)
    interval, p = paired_bootstrap(labels, first, second, curves.auroc, replicates=500)
    assert interval.low > 0
    assert p == pytest.approx(delong_test(labels, first, second)[1], abs=0.002)
    assert p < 0.01
    same, p = paired_bootstrap(labels, first, first, curves.auroc, replicates=100)
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
    assert score_interval(1.0, every, 20).low == pytest.approx(wilson(1.0, 20, t_quantile(0.975, 19))[0])
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
    found = bootstrap(labels, np.arange(40), {"ap": curves.average_precision, "auroc": curves.auroc})
    assert found["ap"].value == found["auroc"].value == 1
    assert found["ap"].low < 0.95
    rare = bootstrap(labels, np.arange(40), {"ap": curves.average_precision}, weights=np.where(labels, 1 / 9, 1))["ap"]
    assert rare.low < found["ap"].low - 0.05
    assert rare.high == 1


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


def test_students_t_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    for freedom in (1, 2, 3, 7, 40, 5000):
        for share in (0.8, 0.975, 0.995):
            assert t_quantile(share, freedom) == pytest.approx(stats.t.ppf(share, freedom), rel=1e-4)
        assert t_tail(-2.5, freedom) == pytest.approx(2 * stats.t.sf(2.5, freedom), rel=1e-3)


def test_a_difference_can_be_far_beyond_what_replicates_can_count() -> None:
    interval, p = difference_of(0.1, 0.1 + 0.01 * np.random.default_rng(0).normal(size=500), 200)
    assert 0 < p < 1e-15
    assert 0.07 < interval.low < interval.high < 0.13
    assert difference_of(0.0, np.zeros(10), 20)[1] == 1
    assert np.isnan(difference_of(0.1, np.ones(10), 1)[1])


def test_holm_is_the_textbook_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]).size == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_the_step_down_rule_rejects(p_values: list[float]) -> None:
    order = np.argsort(p_values, kind="stable")
    rejected = set()
    for i, k in enumerate(order):
        if p_values[k] * (len(p_values) - i) > 0.05:
            break
        rejected.add(int(k))
    assert set(np.flatnonzero(holm(p_values) <= 0.05)) == rejected


def test_seeds_have_a_mean_and_a_sample_deviation() -> None:
    spread = over_seeds([0.8, 0.9, 1.0])
    assert (spread.mean, spread.sd) == pytest.approx((0.9, 0.1))
    assert np.isnan(over_seeds([0.8]).sd)
    with pytest.raises(ValueError, match="one seed at least"):
        over_seeds([])
