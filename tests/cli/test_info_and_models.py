"""`anomed info` and `anomed models`."""

import json
from pathlib import Path

from anomalib_med import PatchCore, detectors
from tests.cli.command import anomed, assert_refused


def test_models_lists_every_detector_with_its_paper() -> None:
    outcome = anomed("models")
    assert outcome.code == 0
    for name, detector in detectors().items():
        assert any(line.split() == [name, *detector.title.split()] for line in outcome.out.splitlines())
    assert {"memory bank:", "reconstruction:", "student teacher:", "inpainting:"} <= set(outcome.out.splitlines())


def test_models_shows_settings_and_card_of_one() -> None:
    outcome = anomed("models", "patchcore")
    assert outcome.code == 0
    for setting in PatchCore.Config.model_fields:
        assert f"  {setting} = " in outcome.out
    assert "2106.08265" in outcome.out


def test_models_names_the_nearest_detector() -> None:
    assert_refused(anomed("models", "pathcore"), r'detector "pathcore" is not known: did you mean "patchcore"\?')


def test_info_shows_what_a_reader_of_scores_must_know(saved_model: Path) -> None:
    outcome = anomed("info", saved_model)
    assert outcome.code == 0
    table = dict(line.split(maxsplit=1) for line in outcome.out.splitlines() if len(line.split()) > 1)
    assert table["detector.name"] == "patchcore"
    assert table["preprocessing.size"] == "64"
    assert table["training.patients"] == "12"
    assert table["training.held_out_patients"] == "3"
    assert table["backbone.source"] == "random"
    assert "random weights" in table["notes"]


def test_info_as_json_is_the_file(saved_model: Path) -> None:
    outcome = anomed("info", saved_model, "--json")
    assert json.loads(outcome.out) == json.loads((saved_model / "model.json").read_text())
