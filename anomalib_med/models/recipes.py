"""Recipes: every setting of a detector with its default, as a TOML file to copy and to edit."""

import json
import re
import textwrap

from pydantic import Field

from anomalib_med.config import Setting, Settings, settings_of
from anomalib_med.models.base import Detector
from anomalib_med.preprocessing import Preprocessing

_HEAD = """\
# anomed fit NORMALS -o MODEL_DIR --recipe models/{name}/recipe.toml
# These are the defaults; change what you need. Options on the command line win.
"""


class FitTable(Settings):
    """Settings of a recipe's table [fit]."""

    calibration: float = Field(0.2, ge=0, lt=1)
    """Share of the normals, by patient, that is held out for p-values and thresholds; 0 for none."""


def recipe(kind: type[Detector]) -> str:
    """The recipe of a detector: tables [detector], [preprocessing] and [fit], each setting below its description."""
    own: dict[str, object] = {"size": kind.input_size} | ({"aspect": "stretch"} if kind.square else {})
    images = [s._replace(default=own.get(s.name, s.default)) for s in settings_of(Preprocessing)]
    tables = {
        "detector": [Setting("name", kind.name, "text", ""), *settings_of(kind.Config)],
        "preprocessing": images,
        "fit": settings_of(FitTable),
    }
    lines = (f"\n[{table}]\n" + "".join(map(_entry, entries)) for table, entries in tables.items())
    return _HEAD.format(name=kind.name) + "".join(lines)


def _entry(setting: Setting) -> str:
    """A setting below the first sentence of its description and the choices that it has."""
    first = re.match(r".*?[.](?=\s|$)", setting.text)
    text = first[0] if first else ""
    if " | " in setting.takes and not setting.takes.startswith("list"):
        text = f"{text} One of {setting.takes.replace(' | ', ', ')}.".strip()
    comment = textwrap.fill(text, 118, initial_indent="# ", subsequent_indent="# ") + "\n" if text else ""
    return f"{comment}{setting.name} = {json.dumps(setting.default)}\n"
