import numpy as np
import pytest

from anomalib_med.calibration import Calibration, VolumeRule
from anomalib_med.calibration.rule import volume_score
from anomalib_med.errors import ConfigError

SCORES, SLOTS = [1.0, 5.0, 2.0, 3.0, 4.0], [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("how", "expected"),
    [("max", 5), ("mean", 3), ("top2", 4.5), ("top9", 3), ("run1mm", 5), ("run2mm", 3.5), ("run3mm", 10 / 3)],
)
def test_slices_make_a_volume(how: str, expected: float) -> None:
    assert volume_score(SCORES, SLOTS, 1.0, how) == pytest.approx(expected)


def test_a_run_is_as_thick_whatever_the_slices() -> None:
    assert volume_score([0, 1, 1, 0], [0, 1, 2, 3], 5.0, "run10mm") == 1
    assert volume_score([0, 1, 1, 0], [0, 1, 2, 3], 2.5, "run10mm") == 0.5
    assert volume_score([0, 1, 1, 1, 0], [0, 1, 2, 3, 4], None, "run10mm") == 1


def test_a_missing_slice_is_left_out_of_its_run_and_does_not_join_its_neighbours() -> None:
    assert volume_score([1, 4], [0, 2], 1.0, "run3mm") == 2.5
    assert volume_score([1, 4, 4], [0, 1, 9], 1.0, "run2mm") == 4


def test_one_slice_and_no_slice() -> None:
    assert volume_score([2.0], [7], 1.0, "run10mm") == 2
    assert np.isnan(volume_score([], [], 1.0, "max"))


@pytest.mark.parametrize("how", ["top0", "run", "run0mm", "median", "top2mm", ""])
def test_another_rule_is_refused(how: str) -> None:
    with pytest.raises(ConfigError, match="run10mm"):
        VolumeRule(how)


def test_a_patient_is_judged_by_the_highest_volume_of_each() -> None:
    rule = VolumeRule("max", 0.0, None, *(Calibration.of([1, 9, 2, 3], ["a", "a", "b", "c"]) for _ in range(2)))
    assert rule.p_value(5.0) == pytest.approx((1 + 0.5) / 4)
    assert rule.patient_p_value(5.0) == pytest.approx((1 + 1) / 4)
    assert rule.peak_p_value(2.5) == pytest.approx((1 + 2) / 4)
    assert VolumeRule().p_value(5.0) is None
    assert rule.p_value(float("nan")) is None
