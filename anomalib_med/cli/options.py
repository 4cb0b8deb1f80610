"""Options that several verbs share, and settings given as text."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from pydantic import JsonValue

from anomalib_med.errors import ConfigError

F = TypeVar("F", bound=Callable[..., Any])  # click's own decorators are typed like this

EXISTING_OR_GLOB = click.Path(path_type=str)
FOLDER = click.Path(path_type=Path, file_okay=True, dir_okay=True)

device_option: Callable[[F], F] = click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="Device that computes: auto, cpu, cuda or cuda:<n>.",
)
patient_option: Callable[[F], F] = click.option(
    "--patient-pattern",
    metavar="REGEX",
    help="Regular expression with one group that finds the patient in a path, e.g. '(patient\\d+)'. "
    "Without it the patient is DICOM's, the CSV's, or the file.",
)


def new_model_options(command: F) -> F:
    """Give a verb that makes a model of models the options output, cache, overwrite, patient_pattern and device."""
    for option in (
        device_option,
        patient_option,
        click.option("--overwrite", is_flag=True, help="Replace a model that is already there."),
        click.option("--cache", type=FOLDER, help="Folder that keeps backbone features."),
        click.option("-o", "--output", required=True, type=FOLDER, help="Folder for the new model."),
    ):
        command = option(command)
    return command


def parse_settings(pairs: tuple[str, ...]) -> dict[str, JsonValue]:
    """``("bank_size=4000", "pooling=max")`` to a dictionary of text; the detector turns it into numbers.

    Raises
    ------
    ConfigError
        For a pair without "=".
    """
    settings: dict[str, JsonValue] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"-s {pair}: write it as key=value, for example -s pooling=max")
        settings[key.strip()] = value.strip()
    return settings


def data_root(given: Path | None) -> Path:
    """The folder with the data sets: ``--root``, else what ANOMED_TEST_DATA names.

    Raises
    ------
    ConfigError
        Without either.
    """
    named = os.environ.get("ANOMED_TEST_DATA")
    if given is None and not named:
        raise ConfigError("--root: name the folder with the data sets, or set ANOMED_TEST_DATA")
    return given or Path(str(named))
