"""Options that several verbs share, and settings given as text."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
from pydantic import JsonValue

from anomalib_med.errors import ConfigError

Verb = Callable[..., int | None]

EXISTING_OR_GLOB = click.Path(path_type=str)
FOLDER = click.Path(path_type=Path)

_DEVICE = "Device that computes: auto, cpu, cuda or cuda:<n>."
_PATIENT = """Regular expression with one group that finds the patient in a path, e.g. '(patient\\d+)'. Without it the
patient is DICOM's, the CSV's, or the file."""
_SHARED: dict[str, Callable[..., Callable[[Verb], Verb]]] = {
    "output": partial(click.option, "-o", "--output", required=True, type=FOLDER, help="Folder for the model."),
    "overwrite": partial(click.option, "--overwrite", is_flag=True, help="Replace a model that is already there."),
    "calibration": partial(click.option, "--calibration", type=float, default=0.2, metavar="SHARE"),
    "false_alarm_rate": partial(click.option, "--false-alarm-rate", type=float, default=0.05, metavar="RATE"),
    "cache": partial(click.option, "--cache", type=FOLDER, help="Folder that keeps backbone features."),
    "patient_pattern": partial(click.option, "--patient-pattern", metavar="REGEX", help=_PATIENT),
    "device": partial(click.option, "--device", default="auto", metavar="NAME", help=_DEVICE),
}


def shared(*names: str, **helps: str) -> Callable[[Verb], Verb]:
    """Give a verb options that others have too; a keyword names an option and its help in this verb."""

    def decorate(verb: Verb) -> Verb:
        for name in reversed([*helps, *names]):
            verb = _SHARED[name](**({"help": helps[name]} if name in helps else {}))(verb)
        return verb

    return decorate


def parse_settings(pairs: tuple[str, ...]) -> dict[str, JsonValue]:
    """``("bank_size=4000", "pooling=max")`` to a dictionary of text; the detector turns it into numbers.

    Raises
    ------
    ConfigError
        A pair has no "=".
    """
    settings: dict[str, JsonValue] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"-s {pair}: write it as key=value, for example -s pooling=max")
        settings[key.strip()] = value.strip()
    return settings


def taken(options: dict[str, JsonValue], *names: str) -> dict[str, JsonValue]:
    """Take the options of these names out of all; those that were not given are left out."""
    values = {name: options.pop(name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def data_root(given: Path | None) -> Path:
    """The folder with the data sets: ``--root``, else what ANOMED_TEST_DATA names; ConfigError without either."""
    named = os.environ.get("ANOMED_TEST_DATA")
    if given is None and not named:
        raise ConfigError("--root: name the folder with the data sets, or set ANOMED_TEST_DATA")
    return given or Path(str(named))
