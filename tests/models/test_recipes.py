"""Recipes and descriptions of settings, for every detector."""

import tomllib
from pathlib import Path

import pytest

from anomalib_med import Preprocessing, detectors
from anomalib_med.cli.fit import OWN_OPTION, PREPROCESSING, described
from anomalib_med.config import settings_of
from anomalib_med.models.base import DetectorConfig
from anomalib_med.models.recipes import recipe
from anomalib_med.models.training import TrainingConfig

CARDS = Path(__file__).parents[2] / "models"
NAMES = [name for name, kind in detectors().items() if kind.__module__.startswith("anomalib_med.")]


@pytest.mark.parametrize("name", NAMES)
def test_the_recipe_beside_the_card_is_made_from_the_settings(name: str) -> None:
    assert (CARDS / name / "recipe.toml").read_text(encoding="utf-8") == recipe(detectors()[name]), "run make recipes"


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_holds_every_default(name: str) -> None:
    kind, tables = detectors()[name], tomllib.loads(recipe(detectors()[name]))
    settings = tables["detector"]
    assert settings.pop("name") == name
    assert set(settings) == set(kind.Config.model_fields)
    assert kind(**settings).config == kind().config
    assert set(tables["preprocessing"]) == set(Preprocessing.model_fields)
    expected = Preprocessing(size=kind.input_size, aspect="stretch" if kind.square else "keep")
    assert Preprocessing(**tables["preprocessing"]) == expected
    assert tables["fit"] == {"calibration": 0.2}


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_is_described_in_sentences(name: str) -> None:
    for setting in settings_of(detectors()[name].Config):
        assert setting.text[:1].isupper(), setting
        assert setting.text.endswith("."), setting


def test_values_that_a_setting_takes_are_put_in_words() -> None:
    takes = {setting.name: setting.takes for setting in settings_of(detectors()["patchcore"].Config)}
    assert takes["bank_size"] == "number, above 0"
    assert takes["sampling"] == "coreset | random | kmeans | full"
    assert takes["scales"] == "list of: number, above 0, at most 4"
    assert takes["neighbourhood"] == "whole number, at least 1"
    assert takes["layers"] == "list of: text"


def test_help_reads_from_the_source_what_the_fields_say() -> None:
    for key, (home, _, _) in OWN_OPTION.items():
        config = Preprocessing if home == PREPROCESSING else detectors()["patchcore"].Config
        config = TrainingConfig if key == "max_minutes" else DetectorConfig if key == "seed" else config
        said = {setting.name: setting.text for setting in settings_of(config)}
        assert described(home)[key] == said[key] != ""
