"""What the package computes is what is recorded in golden/golden.json; `make golden` renews the record on purpose."""

import copy
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.golden import record
from tests.golden.compare import differences
from tests.golden.generated import of_model

RECORDED = {
    "scores": [0.25, 1.0, 3.25],
    "p_values": [1.0, 0.5, 0.25],
    "smallest_p": 0.25,
    "flagged": "001",
    "maps": {"sha256": ["aa", "bb"], "mean": [0.5, None]},
}


def check(name: str) -> None:
    lines = record.compared(name, record.compute(name))
    if lines:
        pytest.fail("\n    ".join([f"{name} is not as recorded (compared {record.how(name)}):", *lines]), pytrace=False)


@pytest.mark.parametrize("name", record.GENERATED)
def test_results_on_generated_images_are_as_recorded(name: str) -> None:
    check(name)


@pytest.mark.real
@pytest.mark.parametrize("name", record.REAL)
def test_results_on_real_images_are_as_recorded(name: str, real_data: Path, real_weights: Path) -> None:
    check(name)


def test_every_part_is_recorded_and_every_record_is_computed() -> None:
    assert set(record.load()["parts"]) == set(record.PARTS), "`make golden` records what is new and drops what is gone"


def test_threads_are_as_before_afterwards() -> None:
    before = torch.get_num_threads()
    with record.one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def altered(field: str, value: object) -> dict[str, object]:
    found = copy.deepcopy(RECORDED)
    inner = found
    *path, last = field.split(".")
    for key in path:
        inner = inner[key]
    inner[last] = value
    return found


def test_equal_values_do_not_differ() -> None:
    assert differences(RECORDED, copy.deepcopy(RECORDED)) == []
    assert differences(RECORDED, copy.deepcopy(RECORDED), 1e-3) == []


def test_the_last_bit_of_one_score_is_told() -> None:
    found = altered("scores", [0.25, math.nextafter(1.0, 2.0), 3.25])
    (line,) = differences(RECORDED, found)
    assert line.startswith(
        "scores: 1 of 3 differ, by at most 2.22e-16 = 7.4e-17 of their spread; number 1: 1.0 recorded"
    )
    assert differences(RECORDED, found, 1e-3) == []


def test_elsewhere_a_tolerance_of_the_spread_holds() -> None:
    assert differences(RECORDED, altered("scores", [0.25, 1.0029, 3.25]), 1e-3) == []
    (line,) = differences(RECORDED, altered("scores", [0.25, 1.0031, 3.25]), 1e-3)
    assert "allowed 0.003" in line
    for field, value in {"maps.sha256": ["aa", "cc"], "flagged": "011", "p_values": [1.0, 0.25, 0.25]}.items():
        assert differences(RECORDED, altered(field, value), 1e-3) == []
        assert len(differences(RECORDED, altered(field, value))) == 1
    assert len(differences(RECORDED, altered("p_values", [1.0, 1.0, 0.25]), 1e-3)) == 1


def test_what_is_missing_new_or_no_number_any_more_is_told() -> None:
    for tolerance in (None, 1e-3):
        found = altered("extra", [1.0])
        del found["scores"]
        assert differences(RECORDED, found, tolerance) == [
            "scores: recorded, and not computed now",
            "extra: computed now, and not recorded",
        ]
        for value in ([0.25, 1.0], [0.25, 1.0, None], [0.25, 1.0, "inf"]):
            assert len(differences(RECORDED, altered("scores", value), tolerance)) == 1


def test_the_hash_of_what_was_learnt_knows_values_and_not_names() -> None:
    def hash_of(**tensors: torch.Tensor) -> object:
        detector = SimpleNamespace(state=lambda: (tensors, {}))
        return of_model(SimpleNamespace(detector=detector, calibration=None, map_range=(0.0, 1.0)))["state_sha256"]

    a, b = torch.arange(6.0).reshape(2, 3), torch.ones(2)
    nudged = a.clone()
    nudged[1, 2] = float(np.nextafter(np.float32(5), np.float32(6)))
    assert hash_of(bank=a, mean=b) == hash_of(aaa=b, patches=a)
    assert len({hash_of(x=a), hash_of(x=nudged), hash_of(x=a.reshape(3, 2)), hash_of(x=a, y=b)}) == 4
