"""From the results of slices to volumes, candidates and patients."""

import numpy as np
import pytest

from anomalib_med.calibration import Calibration, VolumeJudge, VolumeRule
from anomalib_med.records import Geometry, Result, Sample, Volume, VolumeResult

NORMAL = Calibration.of([1.0, 2.0, 3.0, 4.0], ["a", "b", "c", "d"])
RULE = VolumeRule("max", 5.0, None, NORMAL, NORMAL)


def volume(id: str, count: int, patient: str = "p", note: str = "") -> Volume:
    samples = tuple(Sample(f"{id}#{k}", patient=patient, volume=id) for k in range(count))
    return Volume(id, patient, "", samples, tuple(range(count)), count, None, None, None, None, note)


def result(id: str, score: float, peak: float = 0.0, area: str = "body") -> Result:
    grid = np.zeros((4, 4), np.float32)
    grid[1, 2] = peak
    return Result(id, "", None, "p", score, grid=grid, geometry=Geometry((4, 4), (4, 4), (0, 0, 4, 4)), area=area)


def failed(id: str) -> Result:
    return Result(id, "", None, "p", float("nan"), status="cut short")


def test_a_volume_is_judged_when_its_last_slice_is_there() -> None:
    judge = VolumeJudge(RULE, 0.25, [volume("v", 3, note="tilted")])
    assert judge.add(result("picture.png", 9.0)) is None
    assert judge.add(result("v#0", 3.5)) is None
    assert judge.add(failed("v#1")) is None
    judged = judge.add(result("v#2", 2.0, peak=6.0, area="body: one side only"))
    assert judged is not None
    assert (judged.slices, judged.scored, judged.score) == (3, 2, 3.5)
    assert (judged.p_value, judged.flagged) == (pytest.approx(2 / 5), False)
    assert (judged.area, judged.note) == ("body 2", "tilted; 1 slice could not be scored")
    (candidate,) = judged.candidates
    assert (candidate.volume, candidate.patient, candidate.rank) == ("v", "p", 1)
    assert (candidate.at, candidate.peak, candidate.p_value) == (("v#2", 1, 2), 6.0, pytest.approx(1 / 5))


def test_a_patient_is_judged_by_the_highest_volume_whatever_run_it_comes_from() -> None:
    earlier = VolumeResult("u", "p", "", 1, 1, 9.0, 0.2, True, ())
    judge = VolumeJudge(RULE, 0.25, [volume("v", 1), volume("w", 1, patient="q")], [earlier])
    judge.add(result("v#0", 1.0))
    judge.add(failed("w#0"))
    first, second = judge.patients()
    assert (first.patient, first.volumes, first.score, first.flagged) == ("p", 2, 9.0, True)
    assert (second.patient, second.volumes, second.p_value, second.flagged) == ("q", 1, None, None)
    assert np.isnan(second.score)


def test_scattered_slices_make_the_same_volumes() -> None:
    volumes = [volume("v", 2), volume("w", 2)]
    slices = [result("v#0", 1.0, 7), result("v#1", 2.0, 8), result("w#0", 3.0, 6), result("w#1", 4.0)]
    orders = ([0, 1, 2, 3], [0, 2, 1, 3])
    found = []
    for order in orders:
        judge = VolumeJudge(RULE, 0.25, volumes)
        found.append([judged for k in order if (judged := judge.add(slices[k])) is not None])
    assert found[0] == found[1]


def test_without_a_threshold_no_map_is_looked_at() -> None:
    judge = VolumeJudge(VolumeRule(), 0.25, [volume("v", 1)])
    bare = Result("v#0", "", None, "p", 1.0)
    assert not judge.wants_map(bare)
    judged = judge.add(bare)
    assert judged is not None and (judged.score, judged.candidates, judged.flagged) == (1.0, (), None)
