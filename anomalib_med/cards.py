"""Cards and recipes: the folders ``models/`` and ``datasets/`` beside the package, which travel inside the wheel."""

import tomllib
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from anomalib_med.errors import ConfigError

_PACKAGE = Path(__file__).parent


def cards_folder(kind: Literal["models", "datasets"]) -> Path:
    """Folder of the cards: inside an installed package, beside it in a checkout."""
    installed = _PACKAGE / "cards" / kind
    return installed if installed.is_dir() else _PACKAGE.parent / kind


def card(kind: Literal["models", "datasets"], name: str) -> str:
    """Text of a card in Markdown; raises ConfigError where there is no such card."""
    path = cards_folder(kind) / name / "README.md"
    if not path.is_file():
        known = ", ".join(sorted(p.parent.name for p in cards_folder(kind).glob("*/README.md")))
        raise ConfigError(f'there is no card "{name}" among {kind}: there are {known}')
    return path.read_text(encoding="utf-8")


def read_toml(path: Path, what: str) -> dict[str, JsonValue]:
    """The content of a TOML file; raises ConfigError where it cannot be read, or is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{what} {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{what} {path} is not TOML: {error}") from error


def read_recipe(path: Path) -> dict[str, dict[str, JsonValue]]:
    """A recipe: tables ``[detector]``, ``[preprocessing]`` and ``[fit]`` of a TOML file.

    Raises ConfigError where it cannot be read, or has other tables.
    """
    recipe: dict[str, dict[str, JsonValue]] = {}
    for key, value in read_toml(path, "recipe").items():
        if key not in ("detector", "preprocessing", "fit") or not isinstance(value, dict):
            tables = "[detector], [preprocessing] and [fit]"
            raise ConfigError(f'recipe {path}: "{key}" is not known; its tables are {tables}')
        recipe[key] = value
    return recipe
