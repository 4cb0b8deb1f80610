"""What the commands say of input that cannot be used: one line, a remedy, an exit code, and the rest is done."""

import errno
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
from pydicom.pixels.decoders.base import JPEG2000LosslessDecoder
from pydicom.uid import JPEG2000Lossless

from anomalib_med.datasets.folder import discover
from anomalib_med.datasets.splits import split_by_patient
from anomalib_med.preprocessing import Frames
from tests.cli.command import SMALL_FIT, Outcome, anomed, assert_refused, rows
from tests.conftest import normal_picture
from tests.made_up_files import write_dicom, write_dicom_without_pixels, write_nifti, write_pictures, write_table

PICTURE = normal_picture(900)


def cut(path: Path, share: float = 0.6) -> None:
    """Keep the first part of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])


def cut_jpeg(path: Path) -> None:
    path.write_bytes(cv2.imencode(".jpg", PICTURE)[1].tobytes())
    cut(path)


def cut_dicom(path: Path) -> None:
    cut(write_dicom(path, PICTURE.astype(np.uint16)))


class Bad(NamedTuple):
    """How a bad file is made, and what is said of it."""

    write: Callable[[Path], object]
    reason: str


BAD = {
    "text.png": Bad(lambda path: path.write_text("Dear colleague"), r"not an image, or damaged"),
    "nothing.png": Bad(lambda path: path.write_bytes(b""), r"the file is empty: copy or export it again"),
    "cut.jpg": Bad(cut_jpeg, r"is cut short: copy or export it again"),
    "cut.dcm": Bad(cut_dicom, r"the pixel data .* is cut short or damaged .*: export it again"),
    "report.dcm": Bad(write_dicom_without_pixels, r"a DICOM object without pixel data.*: leave it out"),
    "compressed.dcm": Bad(
        lambda path: write_dicom(path, b"\xff\x4f\xff\x51" + bytes(60), syntax=JPEG2000Lossless),
        r'compressed as JPEG 2000.*1\.2\.840\.10008\.1\.2\.4\.90.*pip install "anomalib-med\[dicom\]"',
    ),
    "no_rows.npy": Bad(
        lambda path: np.save(path, np.zeros((0, 5), np.float32)),
        r"the image is empty \(0 x 5 pixels\): export it again",
    ),
    "constant.png": Bad(
        lambda path: cv2.imwrite(str(path), np.full((96, 80), 7, np.uint8)),
        r"every pixel has the value 7.*leave it out",
    ),
    "nan.nii": Bad(
        lambda path: write_nifti(path, np.full((40, 36, 1), np.nan, np.float32)), r"not one pixel is a finite number"
    ),
    "cut.nii.gz": Bad(
        lambda path: cut(write_nifti(path, np.random.default_rng(0).normal(0, 1, (40, 36, 1)))),
        r"cut short or damaged .*: copy or convert it again",
    ),
}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve good pictures and one bad file of each kind."""
    folder = write_pictures(tmp_path_factory.mktemp("mixed"), 12)
    for name, bad in BAD.items():
        bad.write(folder / name)
    return folder


@pytest.fixture(scope="module", autouse=True)
def without_decoder() -> Iterator[None]:
    """The extra for compressed DICOM is not installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JPEG2000LosslessDecoder, "_available", {})
        yield


@pytest.fixture(scope="module")
def scored(mixed: Path, saved_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    """``anomed score`` on the mixed folder, and where its results lie."""
    out = tmp_path_factory.mktemp("scored") / "out"
    return anomed("score", saved_model, mixed, "-o", out, "--device", "cpu"), out


@pytest.fixture(scope="module")
def fitted(mixed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    """``anomed fit`` on the mixed folder, and where its model lies."""
    out = tmp_path_factory.mktemp("fitted") / "model"
    return anomed("fit", mixed, "-o", out, *SMALL_FIT), out


# Bad files among good ones


@pytest.mark.parametrize("name", BAD)
def test_score_lists_a_bad_file_with_the_reason_and_the_remedy(scored: tuple[Outcome, Path], name: str) -> None:
    _, out = scored
    (row,) = [row for row in rows(out / "failures.csv") if row["id"] == name]
    assert name in row["reason"]
    assert "\n" not in row["reason"]
    assert re.search(BAD[name].reason, row["reason"])


@pytest.mark.parametrize("name", BAD)
def test_fit_leaves_a_bad_file_out_and_says_why(fitted: tuple[Outcome, Path], name: str) -> None:
    outcome, _ = fitted
    (line,) = [line for line in outcome.err.splitlines() if f"{name}: " in line]
    assert line.startswith("anomed: left out: ")
    assert re.search(BAD[name].reason, line)


def test_score_scores_the_rest_and_ends_with_3(scored: tuple[Outcome, Path]) -> None:
    outcome, out = scored
    assert outcome.code == 3
    assert "scored 12 images" in outcome.out
    assert f"anomed: {len(BAD)} images could not be scored, see {out / 'failures.csv'}" in outcome.err
    assert "Traceback" not in outcome.err
    assert [row["id"] for row in rows(out / "scores.csv")] == [f"image_{i:02d}.png" for i in range(12)]
    assert len(rows(out / "failures.csv")) == len(BAD)


def test_fit_fits_on_the_rest_and_ends_with_3(fitted: tuple[Outcome, Path]) -> None:
    outcome, model = fitted
    assert outcome.code == 3
    assert "Traceback" not in outcome.err
    training = json.loads((model / "model.json").read_text())["training"]
    assert training["images"] + training["held_out_images"] == 12
    assert training["patients"] + training["held_out_patients"] == 12
    assert training["unreadable"] == len(BAD)


def test_an_empty_image_does_not_change_the_window_of_the_others(fitted: tuple[Outcome, Path]) -> None:
    _, model = fitted
    assert json.loads((model / "model.json").read_text())["preprocessing"]["windows"] == [[0.0, 255.0]]


def test_score_of_bad_files_alone_lists_them_and_makes_a_report(saved_model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("Dear colleague")
    outcome = anomed("score", saved_model, tmp_path / "text.png", "-o", tmp_path / "out", "--report")
    assert outcome.code == 3
    assert rows(tmp_path / "out/scores.csv") == []
    assert "not an image" in (tmp_path / "out/report.html").read_text(encoding="utf-8")


def test_fit_on_bad_files_alone_is_refused_with_the_first_reason(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"text{i}.png").write_text("Dear colleague")
    outcome = anomed("fit", tmp_path, "-o", tmp_path / "model", *SMALL_FIT)
    assert_refused(outcome, r"none of the \d normals could be read, first: .*text\d\.png: not an image")
    assert not (tmp_path / "model").exists()


def test_fit_whose_held_out_normals_are_all_bad_is_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path, 4)
    (tmp_path / "text.png").write_text("Dear colleague")
    rows = [f"image_{i:02d}.png,good" for i in range(4)] + ["text.png,bad"]
    table = write_table(tmp_path / "list.csv", "path,patient", *rows)
    seed = next(s for s in range(50) if split_by_patient(discover(table), 0.2, s)[1][0].patient == "bad")
    outcome = anomed("fit", table, "-o", tmp_path / "model", *SMALL_FIT, "--seed", seed)
    assert_refused(outcome, r"none of the 1 held-out normals could be read, first: .*text\.png: not an image")


def test_a_volume_with_some_nan_is_scored_and_its_slices_without_a_number_are_listed(
    saved_model: Path, tmp_path: Path
) -> None:
    volume = np.stack([normal_picture(i, (40, 36)) for i in range(3)], axis=2).astype(np.float32)
    volume[:12, :, 0] = np.nan
    volume[:, :, 1] = np.nan
    write_nifti(tmp_path / "scan.nii.gz", volume)
    outcome = anomed("score", saved_model, tmp_path / "scan.nii.gz", "-o", tmp_path / "out", "--maps", "nifti")
    assert outcome.code == 3
    assert [row["frame"] for row in rows(tmp_path / "out/scores.csv")] == ["0", "2"]
    assert all(np.isfinite(float(row["score"])) for row in rows(tmp_path / "out/scores.csv"))
    (failure,) = rows(tmp_path / "out/failures.csv")
    assert (failure["id"], failure["frame"]) == ("scan.nii.gz#001", "1")


# Nothing to work on

NOTHING: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "empty folder": (lambda root: (root / "in").mkdir(), "in", r"in: the folder is empty"),
    "no images": (
        lambda root: (root / "notes.txt").write_text("none"),
        ".",
        r"no image in this folder or below it \(PNG, JPEG, TIFF, BMP, DICOM, NIfTI, MetaImage, \.npy are read\)",
    ),
    "not an image": (
        lambda root: (root / "notes.txt").write_text("none"),
        "notes.txt",
        r"notes\.txt: not an image .*nor a folder or a CSV",
    ),
    "no such path": (lambda root: None, "nowhere", r"nowhere: no such file or folder: check the path"),
    "no match": (lambda root: None, "*.dcm", r"\*\.dcm: the pattern matches nothing: quote it"),
    "no path column": (
        lambda root: write_table(root / "list.csv", "file,label", "a.png,0"),
        "list.csv",
        r"list\.csv: no column named path; the columns are: file, label",
    ),
    "missing file": (
        lambda root: write_table(root / "list.csv", "path", "a.png"),
        "list.csv",
        r"list\.csv: no such file: .*a\.png \(1 of 1 are missing\)",
    ),
    "no row": (
        lambda root: write_table(root / "list.csv", "path"),
        "list.csv",
        r"list\.csv: .*list at least one image",
    ),
}


@pytest.mark.parametrize("verb", ["fit", "score"])
@pytest.mark.parametrize("case", NOTHING)
def test_nothing_to_work_on_is_refused_and_nothing_is_written(
    saved_model: Path, tmp_path: Path, case: str, verb: str
) -> None:
    prepare, source, message = NOTHING[case]
    prepare(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    images = f"{tmp_path}/{source}"
    arguments = (images, *SMALL_FIT) if verb == "fit" else (saved_model, images)
    assert_refused(anomed(verb, *arguments, "-o", tmp_path / "out"), message)
    assert sorted(tmp_path.rglob("*")) == before


# Too little to fit on


def test_one_normal_image_cannot_be_divided(tmp_path: Path) -> None:
    write_pictures(tmp_path, 1)
    outcome = anomed("fit", tmp_path, "-o", tmp_path / "model", *SMALL_FIT)
    assert_refused(
        outcome, r"all 1 images belong to one patient .*give images of more patients, or set calibration to 0"
    )


def test_one_normal_image_is_enough_without_calibration(tmp_path: Path) -> None:
    write_pictures(tmp_path, 1)
    outcome = anomed("fit", tmp_path, "-o", tmp_path / "model", "--calibration", "0", *SMALL_FIT)
    assert outcome.code == 0
    assert "note: no normals were held out: scores have no p-values and nothing is flagged" in outcome.out


def test_abnormal_images_are_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path, 3)
    rows = (f"image_{i:02d}.png,{int(i == 2)}" for i in range(3))
    table = write_table(tmp_path / "list.csv", "path,label", *rows)
    outcome = anomed("fit", table, "-o", tmp_path / "model", *SMALL_FIT)
    assert_refused(outcome, r"1 of the images to fit on are labelled abnormal, first image_02\.png: leave them out")


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-s", "bank_sise=10"), r'detector twoview has no option "bank_sise": did you mean "bank_size"\?'),
        (("-s", "bank_size"), r"-s bank_size: write it as key=value"),
        (("-s", "bank_size=many"), r'detector twoview, option "bank_size": .*integer.*many'),
        (("-s", "bank_size=-1"), r'option "bank_size": .*greater than or equal to 1'),
        (("-m", "patchcor"), r'detector "patchcor" is not known: did you mean "patchcore"\?'),
        (("--size", "8"), r'preprocessing, option "size": .*32'),
        (("--window", "lungs"), r'preprocessing, option "windows'),
        (("--window", "5,1"), r"the first value must be below the second"),
        (("--calibration", "1.5"), r"calibration 1\.5 must be a share from 0 to below 1"),
        (("--calibration", "nan"), r"calibration nan must be a share"),
        (("--device", "gpu"), r'device "gpu" is not known: use auto, cpu, cuda or cuda:0'),
        (("--device", "cuda:99"), r'device "cuda:99" is not there: \d+ CUDA devices are seen; use --device cpu'),
        (("--patient-pattern", "("), r"patient_pattern .*not a regular expression"),
        (("--patient-pattern", "x"), r"patient_pattern .*needs one group"),
        (("--layers", "layer9"), r"layer9"),
        (("--backbone", "resnet19"), r"resnet19"),
        (("--weights", "nowhere.safetensors"), r"nowhere\.safetensors"),
        (("--recipe", "nowhere.toml"), r"recipe nowhere\.toml: No such file"),
        (("--epochs", "3"), r"No such option '?--epochs'?.*See anomed fit --help"),
    ],
)
def test_an_option_that_makes_no_sense_is_named(
    normals_folder: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    assert_refused(anomed("fit", normals_folder, "-o", tmp_path / "model", *SMALL_FIT, *options), message)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("[detector", r"recipe .*recipe\.toml is not TOML"),
        ("[train]\nepochs = 3", r'"train" is not known; its tables are \[detector\], \[preprocessing\] and \[fit\]'),
        ("[fit]\ncalibraton = 0.3", r'recipe, \[fit\] has no option "calibraton": did you mean "calibration"\?'),
        ('[fit]\ncalibration = "much"', r"recipe, \[fit\], option \"calibration\": .*number.*'much'"),
        ("[preprocessing]\nsise = 64", r'preprocessing has no option "sise": did you mean "size"\?'),
        ('[detector]\nname = "patchwork"', r'detector "patchwork" is not known'),
    ],
)
def test_a_recipe_that_makes_no_sense_is_named(normals_folder: Path, tmp_path: Path, recipe: str, message: str) -> None:
    (tmp_path / "recipe.toml").write_text(recipe)
    arguments = ("--recipe", tmp_path / "recipe.toml", "--weights", "random", "--device", "cpu")
    assert_refused(anomed("fit", normals_folder, "-o", tmp_path / "model", *arguments), message)


@pytest.mark.parametrize("rate", ["0", "1", "5", "-0.1", "nan"])
def test_a_false_alarm_rate_that_is_none_leaves_the_output_folder_alone(
    saved_model: Path, images_folder: Path, tmp_path: Path, rate: str
) -> None:
    outcome = anomed("score", saved_model, images_folder, "-o", tmp_path / "out", "--false-alarm-rate", rate)
    assert_refused(outcome, r"false-alarm rate .* must lie between 0 and 1, for example 0\.05")
    assert not (tmp_path / "out").exists()


# Places that cannot be written to


def test_fit_never_writes_into_a_folder_of_other_files(normals_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("ten years")
    for options in ((), ("--overwrite",)):
        outcome = anomed("fit", normals_folder, "-o", tmp_path, *SMALL_FIT, *options)
        assert_refused(outcome, r"holds other files: give a new or empty folder for the model")
    assert (tmp_path / "thesis.txt").read_text() == "ten years"


def test_score_never_writes_into_a_folder_of_other_files(
    saved_model: Path, images_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("ten years")
    for options in ((), ("--overwrite",)):
        outcome = anomed("score", saved_model, images_folder, "-o", tmp_path, *options)
        assert_refused(
            outcome, r"holds files that are no results \(such as thesis\.txt\): choose an empty or new folder"
        )
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("verb", ["fit", "score"])
def test_a_file_in_the_place_of_the_output_folder_is_refused(
    saved_model: Path, normals_folder: Path, tmp_path: Path, verb: str
) -> None:
    (tmp_path / "out").write_text("mine")
    arguments = (normals_folder, *SMALL_FIT) if verb == "fit" else (saved_model, normals_folder)
    assert_refused(anomed(verb, *arguments, "-o", tmp_path / "out"), r"out")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("verb", ["fit", "score"])
def test_an_output_folder_that_may_not_be_made_is_refused_before_the_work(
    saved_model: Path, normals_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", forbidden)
    monkeypatch.setattr(Frames, "outcomes", forbidden)  # no image may be read before
    arguments = (normals_folder, *SMALL_FIT) if verb == "fit" else (saved_model, normals_folder)
    outcome = anomed(verb, *arguments, "-o", tmp_path / "sub" / "out")
    assert_refused(outcome, r"sub/out: .*(Permission denied).*choose a")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("verb", ["fit", "score"])
def test_a_read_only_place_is_refused(saved_model: Path, normals_folder: Path, tmp_path: Path, verb: str) -> None:
    tmp_path.chmod(0o555)
    arguments = (normals_folder, *SMALL_FIT) if verb == "fit" else (saved_model, normals_folder)
    assert_refused(anomed(verb, *arguments, "-o", tmp_path / "out"), r"out: .*Permission denied.*choose a")


# Models


def test_score_without_a_model_says_where_one_comes_from(images_folder: Path, tmp_path: Path) -> None:
    outcome = anomed("score", tmp_path / "nowhere", images_folder, "-o", tmp_path / "out")
    assert_refused(outcome, r"nowhere: no such folder; give the folder that anomed fit wrote")
    outcome = anomed("score", images_folder, images_folder, "-o", tmp_path / "out")
    assert_refused(outcome, r"is not a model: it has no model\.json; give the folder that anomed fit wrote")


@pytest.mark.parametrize("verb", ["score", "info"])
def test_a_damaged_model_is_refused_by_every_command(
    model_folder: Path, images_folder: Path, tmp_path: Path, verb: str
) -> None:
    (model_folder / "calibration.json").unlink()
    arguments = (model_folder,) if verb == "info" else (model_folder, images_folder, "-o", tmp_path / "out")
    assert_refused(anomed(verb, *arguments), r"model: calibration\.json is missing; copy the whole model folder")
