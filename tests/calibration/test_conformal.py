import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomalib_med.calibration import Calibration, is_flagged, patients_needed

scores = st.lists(st.integers(0, 20), min_size=1, max_size=60)


def one_each(values: list[float]) -> Calibration:
    return Calibration.of(values, [str(i) for i in range(len(values))])


@given(scores, st.integers(-1, 21))
def test_p_value_is_the_textbook_formula(values: list[int], score: int) -> None:
    expected = (1 + sum(v >= score for v in values)) / (len(values) + 1)
    assert one_each(values).p_value(score) == pytest.approx(expected)


@given(scores, st.lists(st.integers(0, 9), min_size=60, max_size=60), st.floats(0.01, 0.6), st.integers(-1, 21))
def test_flagged_means_above_the_threshold(values: list[int], patients: list[int], rate: float, score: int) -> None:
    calibration = Calibration.of(values, [str(p) for p in patients[: len(values)]])
    assert is_flagged(calibration.p_value(score), rate) == (score > calibration.threshold(rate))


def test_a_patient_with_many_images_counts_once() -> None:
    calibration = Calibration.of([5.0] * 100 + [1.0], ["many"] * 100 + ["one"])
    assert calibration.p_value(5.0) == pytest.approx((1 + 1) / 3)
    assert calibration.p_value(1.0) == pytest.approx(1.0)
    assert calibration.patient_count == 2


def test_smallest_p_value_and_the_patients_a_rate_needs() -> None:
    assert [patients_needed(rate) for rate in (0.05, 0.01, 0.1, 0.5)] == [19, 99, 9, 1]
    assert one_each(list(range(19))).p_value(100) == pytest.approx(0.05)
    assert is_flagged(one_each(list(range(19))).p_value(100), 0.05)
    assert not is_flagged(one_each(list(range(18))).p_value(100), 0.05)
    assert one_each(list(range(18))).threshold(0.05) == np.inf


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_order_and_names_of_patients_do_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, patients = rng.normal(size=50), [str(p) for p in rng.integers(0, 12, 50)]
    shuffled = rng.permutation(50)
    a = Calibration.of(values.tolist(), patients)
    b = Calibration.of(values[shuffled].tolist(), ["x" + patients[i] for i in shuffled])
    assert a.p_value(0.7) == pytest.approx(b.p_value(0.7))


def test_false_alarm_rate_holds_for_exchangeable_normals() -> None:
    rng = np.random.default_rng(0)
    flagged = []
    for _ in range(3000):
        sample = rng.gamma(2, size=60)
        flagged.append(np.mean([is_flagged(one_each(sample[:59].tolist()).p_value(sample[59]), 0.05)]))
    # Exactly 3/60; the bound is four standard errors.
    assert abs(np.mean(flagged) - 0.05) < 4 * (0.05 * 0.95 / 3000) ** 0.5
