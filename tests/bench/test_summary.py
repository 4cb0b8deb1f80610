"""Tables of many comparisons and of many seeds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomalib_med.bench.cells import Cell
from anomalib_med.bench.summary import holm, rows_of
from anomalib_med.evaluation.intervals import Interval, Measured


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
    def cell(seed: int, value: float) -> Cell:
        interval = Interval(value, value - 0.1, value + 0.1)
        measured = {"auroc": Measured(interval, np.linspace(0.7, 1, 9), 20, value)}
        return Cell("set", "method", seed, "", "", {}, measured=measured)

    cells = [cell(seed, value) for seed, value in enumerate((0.8, 0.9, 1.0))]
    (row,) = rows_of(cells)
    number = row.numbers["auroc"]
    assert (number.interval.value, number.sd, number.seeds) == (pytest.approx(0.9), pytest.approx(0.1), 3)
    assert str(number).endswith("] ± 0.100")
    (row,) = rows_of(cells[:1])
    assert np.isnan(row.numbers["auroc"].sd)
    assert str(row.numbers["auroc"]) == "0.800 [0.700, 0.900]"
