"""What the scripts of data sets promise: run alone, they write a table that gives the samples of the benchmark."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from anomalib_med.cards import cards_folder
from anomalib_med.datasets import discover, read
from anomalib_med.datasets.benchmarks import benchmark_card, benchmark_names, open_benchmark
from anomalib_med.datasets.masks import read_mask
from tests.datasets import layouts, layouts_ct

SETS: dict[str, tuple[Callable[[Path], None], str]] = {
    "luna16": (layouts.luna16, "LUNA16"),
    "luna16_candidates": (layouts.luna16, "LUNA16"),
    "lidc_idri": (layouts_ct.lidc_idri, "LIDC-IDRI"),
    "dlcs": (layouts_ct.dlcs, "DLCS24"),
}


def script_of(name: str) -> tuple[Path, str]:
    """The script of a data set, and the function that the card names."""
    folder = "luna16" if name.startswith("luna16") else name
    file, _, function = benchmark_card(name).manifest.partition("#")
    return cards_folder("datasets") / folder / file, function


def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    script, function = script_of(name)
    command = [sys.executable, str(script), *map(str, arguments), "-p", function]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_script_is_tested() -> None:
    assert sorted(SETS) == [name for name in benchmark_names() if benchmark_card(name).manifest]


@pytest.mark.parametrize("name", SETS)
def test_a_script_alone_writes_a_table_that_gives_the_same_samples(name: str, tmp_path: Path) -> None:
    build, folder = SETS[name]
    build(tmp_path)
    table = tmp_path / "table.csv"
    done = run(name, tmp_path / folder, "-o", table)
    assert done.returncode == 0, done.stderr
    benchmark = open_benchmark(name, tmp_path)
    expected = {f"{folder}/{s.id}": s for s in (*benchmark.train, *benchmark.test)}
    listed = {s.id: s for s in discover(table)}
    assert set(listed) == set(expected)
    for id, sample in listed.items():
        known = expected[id]
        for field in ("frame", "patient", "label", "boxes", "crop"):
            assert getattr(sample, field) == getattr(known, field), field
        image = read(known)
        np.testing.assert_array_equal(read(sample).pixels, image.pixels)
        if known.lesion:
            np.testing.assert_array_equal(read_mask(sample, image.shape), read_mask(known, image.shape))


def test_a_script_alone_says_what_is_missing(tmp_path: Path) -> None:
    layouts.luna16(tmp_path)
    (tmp_path / "LUNA16/annotations.csv").unlink()
    done = run("luna16", tmp_path / "LUNA16", "-o", tmp_path / "table.csv")
    assert done.returncode == 1
    assert "no table" in done.stderr
    assert "annotations.csv" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "table.csv").exists()
