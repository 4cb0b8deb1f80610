"""``anomed evaluate`` and ``anomed bench``: what they print, write and refuse."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.cli.command import anomed, assert_refused, rows
from tests.conftest import abnormal_picture, normal_picture
from tests.datasets.layouts import covid_cxr_lesions


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``train/normal``, ``test/normal``, ``test/abnormal`` and ``test/masks``."""
    top = tmp_path_factory.mktemp("labelled")
    for name in ("train/normal", "test/normal", "test/abnormal", "test/masks"):
        (top / name).mkdir(parents=True)
    for i in range(12):
        cv2.imwrite(str(top / f"train/normal/{i}.png"), normal_picture(i))
    for i in range(5):
        picture, mask = abnormal_picture(50 + i)
        cv2.imwrite(str(top / f"test/normal/{i}.png"), normal_picture(70 + i))
        cv2.imwrite(str(top / f"test/abnormal/{i}.png"), picture)
        cv2.imwrite(str(top / f"test/masks/{i}.png"), mask.astype(np.uint8) * 255)
    return top


def test_two_folders_and_masks(saved_model: Path, labelled: Path, tmp_path: Path) -> None:
    test = labelled / "test"
    folders = ("--normal", test / "normal", "--abnormal", test / "abnormal", "--masks", test / "masks")
    done = anomed("evaluate", saved_model, *folders, "-o", tmp_path / "out", "--replicates", 100)
    assert done.code == 0, done.err
    assert "5 normal and 5 abnormal images of 10 patients" in done.out
    assert "aupro@0.3" in done.out
    table = {row["metric"]: row for row in rows(tmp_path / "out" / "metrics.csv")}
    assert float(table["auroc"]["low"]) <= float(table["auroc"]["value"]) <= float(table["auroc"]["high"])
    described = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert described["metrics"]["auroc"]["value"] == float(table["auroc"]["value"])
    assert len(rows(tmp_path / "out" / "scores.csv")) == 10


def test_a_named_data_set(saved_model: Path, labelled: Path) -> None:
    done = anomed("evaluate", saved_model, "-d", "folder", "--root", labelled, "--replicates", 100)
    assert done.code == 0, done.err
    assert "note: protocol folder, split " in done.out


def test_a_table(saved_model: Path, labelled: Path, tmp_path: Path) -> None:
    lines = ["path,label"]
    lines += [f"{p},{int(p.parent.name == 'abnormal')}" for p in sorted(labelled.glob("test/*normal/*.png"))]
    table = tmp_path / "test.csv"
    table.write_text("\n".join(lines))
    done = anomed("evaluate", saved_model, "--table", table, "--replicates", 100)
    assert done.code == 0, done.err
    assert "pixel_auroc" not in done.out
    table.write_text("\n".join([*lines[:-1], lines[-1].rpartition(",")[0] + ","]))
    assert_refused(anomed("evaluate", saved_model, "--table", table), "has no label")


def test_wrong_use_is_refused(saved_model: Path, labelled: Path, tmp_path: Path) -> None:
    normal, abnormal = labelled / "test/normal", labelled / "test/abnormal"
    assert_refused(anomed("evaluate", saved_model), "name the images in one way")
    assert_refused(anomed("evaluate", saved_model, "--normal", normal), "both are needed")
    both = ("--normal", normal, "--abnormal", abnormal)
    assert_refused(anomed("evaluate", saved_model, *both, "--masks", tmp_path), "no mask has the name of an abnormal")
    assert_refused(anomed("evaluate", saved_model, *both, "--aggregation", "median"), "choose max, mean")
    same = ("--normal", normal, "--abnormal", normal)
    assert_refused(anomed("evaluate", saved_model, *same), "among the normal and the abnormal images")
    of_set = ("-d", "folder", "--root", labelled)
    assert_refused(anomed("evaluate", saved_model, *of_set, "--masks", tmp_path), "--masks goes with")
    assert_refused(anomed("evaluate", saved_model, *of_set, "--patient-pattern", "(a)"), "knows its patients")


def test_a_data_set_with_maps_alone_has_no_image_metrics(saved_model: Path, tmp_path: Path) -> None:
    covid_cxr_lesions(tmp_path)
    done = anomed("evaluate", saved_model, "-d", "covid_cxr_lesions", "--root", tmp_path, "--replicates", 100)
    assert done.code == 0, done.err
    assert "pixel_auroc" in done.out
    assert "no interval" in done.out  # one patient
    assert "  auroc" not in done.out


def test_bench_writes_its_tables_and_resumes(labelled: Path, tmp_path: Path) -> None:
    call = ("bench", "--root", labelled, "-d", "folder", "-m", "patchcore bank_size=50", "-o", tmp_path, "--seeds", 1)
    call += ("--weights", "random", "--size", 64, "--device", "cpu")
    done = anomed(*call)
    assert done.code == 0, done.err
    names = {path.name for path in tmp_path.iterdir()}
    assert {"results.csv", "results.parquet", "results.md", "comparisons.csv", "bench.html", "plots", "cells"} <= names
    before = (tmp_path / "results.csv").read_bytes()
    again = anomed(*call)
    assert "seed 0: done before" in again.out.replace("/ seed 0:", "seed 0:")
    assert (tmp_path / "results.csv").read_bytes() == before


def test_bench_says_what_it_lacks(labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANOMED_TEST_DATA", raising=False)
    assert_refused(anomed("bench", "-d", "folder", "-o", tmp_path), "name the folder with the data sets")
    assert_refused(anomed("bench", "--root", labelled, "-o", tmp_path), "name at least one data set")
    assert_refused(anomed("bench", "--root", labelled, "-d", "folder", "-m", "patchcor", "-o", tmp_path), "not known")
    assert_refused(anomed("bench", "--root", labelled, "-d", "foldr", "-o", tmp_path), 'did you mean "folder"')
    assert_refused(anomed("bench", "--root", labelled / "no", "-d", "folder", "-o", tmp_path), "no such folder of data")
    one = ("bench", "--root", labelled, "-d", "folder", "-m", "patchcore", "-o", tmp_path)
    assert_refused(anomed(*one, "--calibration", 2), "share from 0 to below 1")
    assert_refused(anomed(*one, "--false-alarm-rate", 2), "must lie between 0 and 1")
