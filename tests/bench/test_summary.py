"""Tables of many comparisons and of many seeds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomalib_med.bench.summary import holm, over_seeds


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
