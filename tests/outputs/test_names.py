import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomalib_med.outputs.names import safe_stem

HOSTILE = [
    "",
    ".",
    "..",
    "../../etc/passwd",
    "/a/b",
    "a\\b",
    "<script>.png",
    'a"b',
    "é.png",
    "患者",
    ".hidden",
    "a\nb",
    "x" * 5000,
    "con.png",
    "a\udcff",
]


@pytest.mark.parametrize("id", HOSTILE)
def test_a_hostile_id_gives_a_plain_file_name(id):
    assert re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,116}", safe_stem(id))


def test_a_plain_id_stays_as_it_is():
    assert safe_stem("00001280_004.png") == "00001280_004.png"


def test_a_changed_id_carries_a_hash():
    assert re.fullmatch(r"a_b\.png-[0-9a-f]{16}", safe_stem("a/b.png"))


def test_ids_that_become_alike_stay_apart_also_without_case():
    ids = ["a/b", "a_b", "a b", "A_b", "A_B", "x" * 200, "x" * 201, safe_stem("a/b"), "", "_"]
    assert len({safe_stem(id).lower() for id in ids}) == len(ids)


def test_no_stem_is_a_device_of_windows():
    assert not safe_stem("con.png").startswith("con")


@given(st.sets(st.text(max_size=12), min_size=2, max_size=6))
def test_distinct_ids_never_share_a_stem(ids):
    assert len({safe_stem(id).lower() for id in ids}) == len(ids)
