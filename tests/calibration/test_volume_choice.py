"""The score of a volume is chosen on normals alone."""

import numpy as np
import pytest

from anomalib_med.calibration import Calibration, SliceScores, choose_rule, volume_score
from anomalib_med.calibration.rule_choice import FEWEST, RULES


def volumes(kind: str, count: int, seed: int = 0) -> list[SliceScores]:
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
        made.append(SliceScores(scores.tolist(), range(60), 5.0))
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


def test_choosing_on_the_volumes_that_p_values_come_from_raises_no_more_false_alarms() -> None:
    alarms = []
    for seed in range(24):
        normal = volumes("spikes", 39, seed=2 * seed)
        rule, _ = choose_rule(normal)
        scores = [volume_score(v.scores, v.slots, v.thickness, rule) for v in normal]
        calibration = Calibration.of(scores, [str(i) for i in range(39)])
        new = volumes("spikes", 100, seed=2 * seed + 1)
        alarms += [calibration.flags(volume_score(v.scores, v.slots, v.thickness, rule), 0.1) for v in new]
    assert np.mean(alarms) < 0.12
