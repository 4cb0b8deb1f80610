"""Settings: one frozen, validated class each, whose fields are described where they are written, and nowhere else."""

import difflib
from collections.abc import Collection, Iterable, Mapping
from types import UnionType
from typing import Annotated, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from anomalib_med.errors import ConfigError

C = TypeVar("C", bound=BaseModel)

_WORDS = {bool: "true or false", int: "whole number", float: "number", str: "text"}
_LIMITS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


class Settings(BaseModel):
    """Base of all settings. The docstring below a field is its description; an unknown field is an error.

    A class that gives a field of its parent another default and no docstring keeps the parent's description.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **_: object) -> None:
        """Take the descriptions that the fields have in the parents."""
        for parent in cls.__mro__[1:]:
            for name, field in parent.model_fields.items() if issubclass(parent, Settings) else ():
                cls.model_fields[name].description = cls.model_fields[name].description or field.description


class Setting(NamedTuple):
    """A field of a settings class: its default, the values that it takes in words, and its description."""

    name: str
    default: object
    takes: str
    text: str


def settings_of(config: type[BaseModel]) -> list[Setting]:
    """The fields of a settings class, its own first."""
    fields = sorted(config.model_fields.items(), key=lambda item: item[0] not in config.__annotations__)
    return [
        Setting(name, f.default, _takes(f.annotation, f.metadata), " ".join((f.description or "").split()))
        for name, f in fields
    ]


def _takes(annotation: object, limits: Iterable[object] = ()) -> str:
    kind, parts = get_origin(annotation), get_args(annotation)
    if kind is Literal:
        return " | ".join(str(part) for part in parts)
    if kind is Annotated:
        return _takes(parts[0], [limit for part in parts[1:] for limit in getattr(part, "metadata", [part])])
    if kind is tuple:
        return f"list of: {_takes(parts[0])}" if parts[-1] is ... else " and ".join(map(_takes, parts))
    if kind in (Union, UnionType):
        return " | ".join(map(_takes, parts))
    bounds = [(word, getattr(limit, key, None)) for limit in limits for key, word in _LIMITS.items()]
    words = [f"{word} {bound:g}" for word, bound in bounds if bound is not None]
    return ", ".join([_WORDS.get(annotation, "text"), *words])  # type: ignore[call-overload]


def parse_config(config: type[C], settings: Mapping[str, object], owner: str) -> C:
    """Validate settings; text is accepted for numbers and, with commas, for lists, as on the command line.

    Raises
    ------
    ConfigError
        Naming the first field at fault, and the nearest known one.
    """
    for key in settings:
        if key not in config.model_fields:
            raise ConfigError(f'{owner} has no option "{key}": {nearest(key, config.model_fields, "it has")}')
    try:
        return config(**{key: _listed(config.model_fields[key], value) for key, value in settings.items()})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f'{owner}, option "{where}": {first["msg"]} (got {first["input"]!r})') from None


def _listed(field: FieldInfo, value: object) -> object:
    if isinstance(value, str) and get_origin(field.annotation) is tuple:
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def nearest(name: str, known: Collection[str], otherwise: str = "there are") -> str:
    """A hint for a name that is not known: the nearest known one, or all of them."""
    close = difflib.get_close_matches(name, known, 1)
    return f'did you mean "{close[0]}"?' if close else f"{otherwise} {', '.join(known)}"
