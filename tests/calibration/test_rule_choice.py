"""The score of a volume is chosen on normals alone."""

from dataclasses import replace

import numpy as np
import pytest

from anomalib_med.calibration.rule import volume_scores
from anomalib_med.calibration.rule_choice import FEWEST, RULES, NormalVolume, calibrated_rule, choose_rule


def volumes(kind: str, count: int, seed: int = 0) -> list[NormalVolume]:
    """Scores of normal slices that scatter in one way."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        scores = rng.normal(0, 1, 60)
        if kind == "spikes":
            scores[rng.integers(0, 60, 4)] += rng.exponential(4, 4)
        if kind == "quiet":
            scores *= 0.2
            scores[20:40] += 3  # the same slices are high in every volume
        made.append(NormalVolume(scores.tolist(), range(60), 5.0))
    return made


def test_single_high_slices_speak_against_the_maximum() -> None:
    rule, compared = choose_rule(volumes("spikes", 30))
    assert set(compared) == set(RULES)
    assert compared["max"] < compared["run10mm"]
    assert rule != "max"


@pytest.mark.parametrize("kind", ["noise", "spikes", "quiet"])
def test_the_chosen_rule_finds_added_findings_best_in_new_volumes(kind: str) -> None:
    rule, compared = choose_rule(volumes(kind, 40))
    _, again = choose_rule(volumes(kind, 100, seed=1))
    assert again[rule] > max(again.values()) - 0.03
    assert compared[rule] >= max(compared.values()) - 0.01


def test_of_few_volumes_nothing_is_chosen() -> None:
    assert choose_rule(volumes("spikes", FEWEST - 1)) == ("run10mm", {})
    assert choose_rule([]) == ("run10mm", {})


def test_those_who_choose_do_not_calibrate() -> None:
    normal = [replace(v, patient=str(i)) for i, v in enumerate(volumes("spikes", 40))]
    rule = calibrated_rule(normal, "auto", 0)
    assert set(rule.compared) == set(RULES)
    assert rule.scores is not None and rule.peaks is not None
    assert rule.scores.patient_count == rule.peaks.patient_count == 27
    scores = {v.score(rule.how) for v in normal}
    assert set(rule.scores.scores.tolist()) < scores
    again, other = calibrated_rule(normal, "auto", 0), calibrated_rule(normal, "auto", 1)
    assert again.scores is not None and other.scores is not None
    assert np.array_equal(again.scores.scores, rule.scores.scores)
    assert not np.array_equal(other.scores.scores, rule.scores.scores)


@pytest.mark.parametrize(("count", "each"), [(27, 1), (20, 3)])
def test_where_too_few_would_be_left_the_default_is_calibrated_on_all(count: int, each: int) -> None:
    """Of 27 patients nine would choose; of 20 thirteen would calibrate."""
    normal = [replace(v, patient=str(i // each)) for i, v in enumerate(volumes("spikes", count * each))]
    rule = calibrated_rule(normal, "auto", 0)
    assert (rule.how, dict(rule.compared)) == ("run10mm", {})
    assert rule.scores is not None and len(rule.scores.scores) == count * each


def test_a_rule_that_is_given_is_calibrated_on_all() -> None:
    rule = calibrated_rule([replace(v, patient=str(i)) for i, v in enumerate(volumes("noise", 40))], "max", 0)
    assert (rule.how, dict(rule.compared)) == ("max", {})
    assert rule.scores is not None and rule.scores.patient_count == 40


def test_false_alarm_rates_hold_with_a_chosen_rule() -> None:
    """59 held-out normal volumes: 20 choose, and 39 calibrate, so that both rates can be met exactly."""
    rates, slots, new = (0.05, 0.1), range(20), 200
    rng = np.random.default_rng(5)
    alarms = []
    for repetition in range(400):
        scores = rng.normal(0, 1, (59 + new, len(slots)))
        scores[:, rng.integers(0, 20, 2)] += rng.exponential(2, (59 + new, 2))
        normal = [NormalVolume(row, slots, 5.0, str(i)) for i, row in enumerate(scores[:59])]
        rule = calibrated_rule(normal, "auto", repetition)
        judged = volume_scores(scores[59:], slots, 5.0, rule.how)
        assert rule.scores is not None and rule.scores.patient_count == 39
        alarms.append([(judged > rule.scores.threshold(rate)).mean() for rate in rates])
    realised, error = np.mean(alarms, axis=0), np.std(alarms, axis=0) / len(alarms) ** 0.5
    assert (np.abs(realised - rates) < 3 * error).all(), (realised, error)
    assert (error < 0.003).all()
