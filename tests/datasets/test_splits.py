"""What patient-disjoint splits promise."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomalib_med.datasets import ids_hash, split_by_patient
from anomalib_med.errors import ConfigError, FitError
from anomalib_med.records import Sample


def samples_of(patients: list[int]) -> list[Sample]:
    return [Sample(id=f"{i}.png", patient=f"p{patient}") for i, patient in enumerate(patients)]


@given(
    patients=st.lists(st.integers(0, 20), min_size=2, max_size=60).filter(lambda p: len(set(p)) > 1),
    share=st.floats(0.001, 0.999),
    seed=st.integers(0, 2**32 - 1),
)
def test_no_patient_is_on_both_sides_and_no_side_is_empty(patients, share, seed):
    samples = samples_of(patients)
    kept, held_out = split_by_patient(samples, share, seed)
    assert kept and held_out
    assert not {s.patient for s in kept} & {s.patient for s in held_out}
    assert sorted(s.id for s in kept + held_out) == sorted(s.id for s in samples)


def test_the_share_counts_patients():
    samples = samples_of([i // 3 for i in range(300)])
    kept, held_out = split_by_patient(samples, 0.2, seed=0)
    assert len({s.patient for s in held_out}) == 20
    assert len(kept) == 240


def test_the_order_of_the_samples_does_not_matter():
    samples = samples_of([i // 2 for i in range(100)])
    shuffled = random.Random(1).sample(samples, len(samples))
    first, second = split_by_patient(samples, 0.3, seed=5), split_by_patient(shuffled, 0.3, seed=5)
    assert {s.id for s in first[1]} == {s.id for s in second[1]}


def test_the_seed_decides():
    samples = samples_of(list(range(100)))
    assert split_by_patient(samples, 0.3, seed=1) == split_by_patient(samples, 0.3, seed=1)
    assert split_by_patient(samples, 0.3, seed=1) != split_by_patient(samples, 0.3, seed=2)


def test_each_side_keeps_the_order_given():
    kept, held_out = split_by_patient(samples_of(list(range(50))), 0.4, seed=0)
    for side in (kept, held_out):
        assert [int(s.id[:-4]) for s in side] == sorted(int(s.id[:-4]) for s in side)


def test_a_share_of_zero_holds_nothing_out():
    samples = samples_of([1, 1])
    assert split_by_patient(samples, 0, seed=0) == (samples, [])


def test_one_patient_cannot_be_split():
    with pytest.raises(
        FitError, match=r"all 3 images belong to one patient \(p7\).*more patients, or set calibration to 0"
    ):
        split_by_patient(samples_of([7, 7, 7]), 0.2, seed=0)
    with pytest.raises(FitError, match="there is no image"):
        split_by_patient([], 0.2, seed=0)


@pytest.mark.parametrize("share", [-0.1, 1, 1.5, float("nan")])
def test_a_share_that_makes_no_sense_is_refused(share):
    with pytest.raises(ConfigError, match="at least 0 and below 1"):
        split_by_patient(samples_of([1, 2]), share, seed=0)


def test_the_hash_depends_on_the_ids_and_not_on_their_order():
    samples = samples_of([1, 2, 3])
    assert ids_hash(samples) == ids_hash(samples[::-1])
    assert ids_hash(samples) != ids_hash(samples[:2])
    assert len(ids_hash([])) == 64
