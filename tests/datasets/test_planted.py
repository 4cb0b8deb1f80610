"""What lesions planted into given normals promise: known kind, size and contrast, and a twin without."""

import csv
import importlib.util
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from anomalib_med.cards import cards_folder
from anomalib_med.datasets import discover, read
from anomalib_med.datasets.benchmarks import check_benchmark, open_benchmark
from anomalib_med.datasets.masks import read_mask
from anomalib_med.errors import ConfigError, OutputError
from anomalib_med.phantoms import ct_slice_phantom, lungs_of_ct, write_chest_dataset
from anomalib_med.records import Sample

SCRIPT = cards_folder("datasets") / "planted/make.py"
_SPEC = importlib.util.spec_from_file_location("planted_make", SCRIPT)
assert _SPEC is not None and _SPEC.loader is not None
script = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(script)
write_planted = script.write_planted


@pytest.fixture(scope="module")
def normals(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Sample], list[Sample]]:
    """Phantoms stand for real radiographs."""
    root = tmp_path_factory.mktemp("normals")
    write_chest_dataset(root / "set", train=2, normal=2, abnormal=0, size=96)
    return discover(root / "set/train"), discover(root / "set/test/normal")


def test_it_is_a_named_data_set_with_kind_size_and_contrast(
    normals: tuple[list[Sample], list[Sample]], tmp_path: Path
) -> None:
    train, heldout = normals
    left_out = write_planted(
        tmp_path / "planted", train, heldout, kinds=("nodule", "opacity"), sizes=(1, 2), per_image=2
    )
    assert left_out == []
    benchmark = open_benchmark("planted", tmp_path)
    assert check_benchmark("planted", tmp_path).ok
    normal, abnormal = ([s for s in benchmark.test if s.label == label] for label in (0, 1))
    assert (len(benchmark.train), len(normal), len(abnormal)) == (2, 2, 4)
    assert {(s.meta["kind"], s.meta["size"], s.meta["contrast"]) for s in abnormal} <= {
        (kind, size, contrast)
        for kind in ("nodule", "opacity")
        for size in ("1", "2")
        for contrast in ("0.25", "0.5", "1.0")
    }
    twins = {s.meta["twin"]: read(s).pixels for s in normal}
    for sample in abnormal:
        change = np.abs(read(sample).pixels - twins[sample.meta["twin"]])
        mask = read_mask(sample)
        assert mask is not None
        assert mask.any()
        assert change[mask].min() > 0
        assert change[~mask].mean() < change[mask].mean() / 5
        assert sample.patient in {s.patient for s in normal}


def test_the_same_arguments_write_the_same_and_other_ones_are_refused(
    normals: tuple[list[Sample], list[Sample]], tmp_path: Path
) -> None:
    train, heldout = normals
    options = {"kinds": ("nodule",), "sizes": (2.0,), "contrasts": (1.0,), "per_image": 1}
    for name in ("a", "b"):
        write_planted(tmp_path / name, train, heldout, **options)
    for path in (tmp_path / "a").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
    assert write_planted(tmp_path / "a", train, heldout, **options) == []
    with pytest.raises(OutputError, match="made with other arguments"):
        write_planted(tmp_path / "a", train, heldout, seed=1, **options)


def test_ct_slices_are_planted_in_hounsfield_units(tmp_path: Path) -> None:
    samples = []
    for seed in range(2):
        stored = np.clip((ct_slice_phantom(seed, 96).pixels + 1350) / 1500 * 255, 0, 255)
        path = tmp_path / f"patient{seed}.png"
        cv2.imwrite(str(path), np.round(stored).astype(np.uint8))
        samples.append(Sample(path.name, path))
    options = {"kinds": ("nodule",), "sizes": (2.0,), "contrasts": (1.0,), "per_image": 1}
    hounsfield = (1500 / 255, -1350.0)
    assert (
        write_planted(tmp_path / "planted", samples[:1], samples[1:], modality="ct", hounsfield=hounsfield, **options)
        == []
    )
    normal, abnormal = (s for s in sorted(open_benchmark("planted", tmp_path).test, key=lambda s: s.label or 0))
    before, after = (read(s).pixels / 16 - 1024 for s in (normal, abnormal))
    mask = read_mask(abnormal)
    assert before.min() >= -1024
    assert lungs_of_ct(before)[mask].mean() > 0.5
    assert (after - before)[mask].mean() > 200


def test_an_image_without_lung_is_left_out_and_said(tmp_path: Path) -> None:
    for name in ("a", "b"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((64, 64), 200, np.uint8))
    a, b = (Sample(name, tmp_path / f"{name}.png") for name in ("a", "b"))
    (said,) = write_planted(tmp_path / "planted", [a], [b], modality="ct")
    assert said.startswith("b: lungs: the mask covers 0.0%")
    with (tmp_path / "planted/manifest.csv").open() as file:
        assert [row["path"] for row in csv.DictReader(file)] == ["train/normal/00000.png"]


def test_wrong_arguments_are_refused(normals: tuple[list[Sample], list[Sample]], tmp_path: Path) -> None:
    train, heldout = normals
    with pytest.raises(ConfigError, match="1 patients are among the images to fit on and the held out"):
        write_planted(tmp_path / "planted", train, train[:1])
    with pytest.raises(ConfigError, match="0 images to fit on"):
        write_planted(tmp_path / "planted", [], heldout)
    with pytest.raises(ConfigError, match="choose from nodule, ground_glass"):
        write_planted(tmp_path / "planted", train, heldout, modality="ct", kinds=("effusion",))
    with pytest.raises(ConfigError, match="kinds: fracture; choose from nodule"):
        write_planted(tmp_path / "planted", train, heldout, kinds=("fracture",))
    with pytest.raises(ConfigError, match="per_image 0"):
        write_planted(tmp_path / "planted", train, heldout, per_image=0)


def test_the_script_runs_alone(tmp_path: Path) -> None:
    write_chest_dataset(tmp_path / "set", train=5, normal=0, abnormal=0, size=96)
    arguments = [tmp_path / "set/train", tmp_path / "planted", "--kind", "nodule", "--per-image", "1"]
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    benchmark = open_benchmark("planted", tmp_path)
    assert (len(benchmark.train), [s.label for s in benchmark.test]) == (4, [1, 0])
    done = subprocess.run([*command, "--seed", "1"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "made with other arguments" in done.stderr
    assert "Traceback" not in done.stderr
