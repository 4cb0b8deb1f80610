"""What a model folder promises: three files without pickle, no name of anybody, whole or refused."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from anomalib_med import FittedModel, fit, load
from anomalib_med.errors import ModelError, OutputError
from anomalib_med.model_file import ModelFiles, check_writable, read_model, write_model
from tests.conftest import SMALL, normal_picture, small_patchcore
from tests.made_up_files import PATIENT_ID, PATIENT_NAME, write_dicom

pytestmark = pytest.mark.filterwarnings("ignore:.*(random weights|held out)")

FILES = ModelFiles({"a": 1}, {"w": torch.arange(6).reshape(2, 3)}, {"scores": [0.5]})


def test_a_model_is_three_files_of_json_and_safetensors(model_folder: Path) -> None:
    assert sorted(file.name for file in model_folder.iterdir()) == [
        "calibration.json",
        "model.json",
        "weights.safetensors",
    ]
    json.loads((model_folder / "model.json").read_text())
    json.loads((model_folder / "calibration.json").read_text())
    assert all(isinstance(tensor, torch.Tensor) for tensor in load_file(model_folder / "weights.safetensors").values())


def test_loading_unpickles_nothing(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was unpickled")

    for name in ("pickle.load", "pickle.loads", "pickle.Unpickler", "torch.load"):
        monkeypatch.setattr(name, refuse)
    load(model_folder, device="cpu")


def test_no_file_says_whose_images_the_model_was_fitted_on(tmp_path: Path) -> None:
    images = tmp_path / "ward7-export"
    images.mkdir()
    for i in range(6):
        pixels = normal_picture(i).astype(np.uint16)
        write_dicom(images / f"miller_jane_{i}.dcm", pixels, PatientID=f"{PATIENT_ID}-{i}")
    (images / "smith_john.png").write_text("none")
    model = fit(small_patchcore(), images, preprocessing=SMALL, device="cpu")
    assert "smith_john.png" in model.failures
    written = b"".join(file.read_bytes() for file in model.save(tmp_path / "model").iterdir()).lower()
    secrets = [PATIENT_NAME, "doe^", PATIENT_ID, "19700101", "miller", "smith", "ward7", "dicom-", ".dcm", "1.2.3.4"]
    assert [secret for secret in secrets if secret.lower().encode() in written] == []


def test_the_description_says_what_a_score_depends_on(model_folder: Path) -> None:
    said = json.loads((model_folder / "model.json").read_text())
    assert said["format"] == 1
    assert said["detector"]["name"] == "patchcore"
    assert said["preprocessing"]["windows"] == [[0, 255]]
    assert said["backbone"]["name"] == "radlite" and len(said["backbone"]["sha256"]) == 64
    assert {"images", "patients", "held_out_images", "held_out_patients", "seed", "ids_sha256", "packages"} <= set(
        said["training"]
    )
    assert len(said["training"]["ids_sha256"]) == 64


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    write_model(tmp_path / "model", FILES)
    back = read_model(tmp_path / "model")
    assert back.description["a"] == 1
    assert torch.equal(back.tensors["w"], FILES.tensors["w"])
    assert back.calibration == FILES.calibration


# Damage


def drop(name: str) -> Callable[[Path], None]:
    return lambda model: (model / name).unlink()


def change(name: str, old: str, new: str) -> Callable[[Path], None]:
    def edit(model: Path) -> None:
        text = (model / name).read_text()
        assert old in text
        (model / name).write_text(text.replace(old, new, 1))

    return edit


def flip_a_bit(model: Path) -> None:
    data = bytearray((model / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (model / "weights.safetensors").write_bytes(data)


def cut_weights(model: Path) -> None:
    os.truncate(model / "weights.safetensors", 1000)


def newer_format(model: Path) -> None:
    said = json.loads((model / "model.json").read_text())
    (model / "model.json").write_text(json.dumps({**said, "format": 2, "new_field": []}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop("model.json"), r"model is not a model: it has no model\.json; give the folder that anomed fit wrote"),
        (drop("weights.safetensors"), r"weights\.safetensors is missing; copy the whole model folder, or fit again"),
        (drop("calibration.json"), r"calibration\.json is missing; copy the whole model folder, or fit again"),
        (flip_a_bit, r"weights\.safetensors was altered or damaged since the model was saved; copy it again"),
        (cut_weights, r"weights\.safetensors was altered or damaged"),
        (change("calibration.json", ": [", ": [1.5, "), r"calibration\.json was altered or damaged"),
        (change("model.json", '"seed": 0', '"seed": 1'), r"model\.json was altered since the model was saved"),
        (change("model.json", "{", ""), r"model\.json cannot be read .*; copy it again, or fit again"),
        (change("model.json", '"format"', '"formed"'), r"model\.json is not a model description; give the folder"),
        (newer_format, r"model format 2 is newer than this version reads \(1\); upgrade anomalib-med"),
        (lambda model: (model / "model.json").write_text("[]"), r"model\.json is not a model description"),
        (lambda model: (model / "model.json").write_bytes(b"\xff\xfe\x00"), r"model\.json cannot be read"),
    ],
)
def test_a_damaged_model_is_refused_with_the_file_and_the_remedy(
    model_folder: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(model_folder)
    with pytest.raises(ModelError, match=message) as error:
        load(model_folder)
    assert "\n" not in str(error.value)
    assert str(model_folder) in str(error.value)


def test_a_weight_file_put_in_with_its_hash_but_of_another_model_is_refused(model_folder: Path) -> None:
    save_file({"detector.other": torch.zeros(3)}, model_folder / "weights.safetensors")
    said = json.loads((model_folder / "model.json").read_text())
    said["files"]["weights.safetensors"] = hashlib.sha256(
        (model_folder / "weights.safetensors").read_bytes()
    ).hexdigest()
    del said["sha256"]
    said["sha256"] = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    (model_folder / "model.json").write_text(json.dumps(said))
    with pytest.raises(ModelError, match=r"the model does not fit this version of anomalib-med .*fit again"):
        load(model_folder)


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere: no such folder; give the folder that anomed fit wrote"):
        load(tmp_path / "nowhere")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ModelError, match=r"file is not a model"):
        load(tmp_path / "file")


# What is in the way


def test_a_model_is_replaced_only_on_request(small_model: FittedModel, model_folder: Path) -> None:
    with pytest.raises(OutputError, match=r"already holds a model: choose another folder or pass --overwrite"):
        small_model.save(model_folder)
    (model_folder / "calibration.json").write_text("damaged")
    small_model.save(model_folder, overwrite=True)
    assert load(model_folder, device="cpu").fingerprint() == small_model.fingerprint()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_other_files_is_never_replaced(tmp_path: Path, overwrite: bool) -> None:
    write_model(tmp_path / "model", FILES)
    (tmp_path / "model" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"model holds other files: give a new or empty folder"):
        write_model(tmp_path / "model", FILES, overwrite=overwrite)
    assert (tmp_path / "model" / "notes.txt").read_text() == "mine"


def test_a_file_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("mine")
    with pytest.raises(OutputError, match=r"model is a file: give a folder for the model"):
        write_model(tmp_path / "model", FILES, overwrite=True)


def test_folders_on_the_way_are_made_and_nothing_else_is_left(tmp_path: Path) -> None:
    write_model(tmp_path / "a" / "b", FILES)
    assert [entry.name for entry in (tmp_path / "a").iterdir()] == ["b"]
    check_writable(tmp_path / "a" / "c")
    assert [entry.name for entry in (tmp_path / "a").iterdir()] == ["b"]


def test_a_path_through_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match=r"cannot be written .*; choose a folder you may write to"):
        check_writable(tmp_path / "file" / "model")
