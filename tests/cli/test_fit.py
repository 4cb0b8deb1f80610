"""`anomed fit`: what it writes and says, and how options and recipes meet."""

import json
import os
import platform
import stat
from pathlib import Path
from typing import Any

import pytest

from anomalib_med.cli.memory import keep_freed_memory
from tests.cli.command import SMALL_FIT, anomed, assert_refused, contents
from tests.made_up_files import write_pictures


def description(model: Path) -> Any:
    return json.loads((model / "model.json").read_text())


def test_fit_says_what_was_fitted_and_held_out(normals_folder: Path, tmp_path: Path) -> None:
    pattern = ("--patient-pattern", r"(patient\d+)")
    outcome = anomed("fit", normals_folder, "-o", tmp_path / "model", *SMALL_FIT, *pattern)
    assert outcome.code == 0
    assert "fitted twoview on 24 images of 12 patients; 6 images of 3 patients held out for calibration" in outcome.out
    assert (
        "note: only 3 patients were held out: nothing can be flagged below a false-alarm rate of 0.250" in outcome.out
    )
    assert "note: the backbone has random weights" in outcome.out
    assert f"model: {tmp_path / 'model'}" in outcome.out
    assert "reading normals: 24 / 24" in outcome.err


def test_fit_takes_a_glob_and_a_table(normals_folder: Path, tmp_path: Path) -> None:
    table = normals_folder.parent / "list.csv"
    table.write_text("path\n" + "\n".join(f"{normals_folder.name}/{p.name}" for p in normals_folder.glob("*_0.png")))
    for number, source in enumerate((f"{normals_folder}/*_0.png", table)):
        outcome = anomed("fit", source, "-o", tmp_path / str(number), *SMALL_FIT)
        assert outcome.code == 0
        assert "fitted twoview on 12 images of 12 patients; 3 images of 3 patients held out" in outcome.out


def test_a_model_in_the_way_needs_overwrite_and_is_found_before_the_work(tmp_path: Path) -> None:
    images = write_pictures(tmp_path / "images", 6)
    assert anomed("fit", images, "-o", tmp_path / "model", *SMALL_FIT).code == 0
    before = contents(tmp_path / "model")
    outcome = anomed("fit", images, "-o", tmp_path / "model", *SMALL_FIT, "--seed", "1")
    assert_refused(outcome, r"model already holds a model: choose another folder or pass --overwrite")
    assert "reading normals" not in outcome.err
    assert contents(tmp_path / "model") == before
    assert anomed("fit", images, "-o", tmp_path / "model", *SMALL_FIT, "--seed", "1", "--overwrite").code == 0
    assert description(tmp_path / "model")["training"]["seed"] == 1


def test_an_empty_folder_is_a_place_for_a_model(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert anomed("fit", write_pictures(tmp_path / "images", 6), "-o", tmp_path / "model", *SMALL_FIT).code == 0


def test_settings_reach_the_model(tmp_path: Path) -> None:
    images = write_pictures(tmp_path / "images", 6)
    options = (
        "-m",
        "patchcore",
        "-s",
        "pooling=max",
        "-s",
        "bank_size=0.05",
        "--window",
        "10,200",
        "--window",
        "percentile",
    )
    more = (
        "--window",
        "voi",
        "--aspect",
        "pad",
        "--layers",
        "stride8, stride16",
        "--seed",
        "3",
        "--calibration",
        "0.5",
    )
    assert anomed("fit", images, "-o", tmp_path / "model", *SMALL_FIT, *options, *more).code == 0
    fitted = description(tmp_path / "model")
    assert fitted["detector"]["settings"]["pooling"] == "max"
    assert fitted["detector"]["settings"]["bank_size"] == 0.05
    assert fitted["detector"]["settings"]["seed"] == fitted["training"]["seed"] == 3
    assert fitted["backbone"]["layers"] == ["stride8", "stride16"]
    assert fitted["preprocessing"]["windows"] == [[10, 200], "percentile", "voi"]
    assert fitted["preprocessing"]["aspect"] == "pad"
    assert fitted["training"]["held_out_images"] == 3


def test_an_option_wins_over_the_recipe_and_the_recipe_over_the_default(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        '[detector]\nname = "patchcore"\nweights = "random"\nbank_size = 50\npooling = "max"\n'
        '[preprocessing]\nsize = 64\nwindows = [[0, 200]]\naspect = "stretch"\n[fit]\ncalibration = 0.5\n'
    )
    images = write_pictures(tmp_path / "images", 6)
    options = ("-s", "pooling=mean", "--aspect", "pad", "--device", "cpu")
    assert anomed("fit", images, "-o", tmp_path / "model", "--recipe", recipe, *options).code == 0
    fitted = description(tmp_path / "model")
    settings, preprocessing = fitted["detector"]["settings"], fitted["preprocessing"]
    assert (settings["bank_size"], settings["pooling"]) == (50, "mean")
    assert (preprocessing["size"], preprocessing["windows"], preprocessing["aspect"]) == (64, [[0, 200]], "pad")
    assert fitted["training"]["held_out_images"] == 3


def test_the_same_command_gives_the_same_model(tmp_path: Path) -> None:
    images = write_pictures(tmp_path / "images", 6)
    for name in ("first", "second"):
        assert anomed("fit", images, "-o", tmp_path / name, *SMALL_FIT).code == 0
    assert contents(tmp_path / "first") == contents(tmp_path / "second")


@pytest.mark.skipif(os.name == "nt", reason="permissions are other on Windows")
def test_a_model_can_be_read_by_whom_the_user_lets_read_files(model_folder: Path) -> None:
    (model_folder.parent / "ordinary").write_text("")
    mode = stat.S_IMODE((model_folder.parent / "ordinary").stat().st_mode)
    assert [stat.S_IMODE(file.stat().st_mode) for file in model_folder.iterdir()] == [mode] * 3
    assert stat.S_IMODE(model_folder.stat().st_mode) & mode == mode


def test_freed_memory_is_kept_where_the_c_library_can() -> None:
    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")
