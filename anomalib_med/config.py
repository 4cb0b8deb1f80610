"""Settings: one frozen, validated class each, whose fields are described where they are written, and nowhere else."""

import difflib
from collections.abc import Mapping
from typing import TypeVar, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from anomalib_med.errors import ConfigError

C = TypeVar("C", bound=BaseModel)


class Settings(BaseModel):
    """Base of all settings. The docstring below a field is its description; an unknown field is an error.

    A subclass that only changes a default inherits the description.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **_: object) -> None:
        for name, field in cls.model_fields.items():
            above = (base.model_fields.get(name) for base in cls.__mro__[1:] if issubclass(base, Settings))
            field.description = field.description or next((f.description for f in above if f and f.description), None)


def parse_config(config: type[C], settings: Mapping[str, object], owner: str) -> C:
    """Validate settings; text is accepted for numbers and, with commas, for lists, as on the command line.

    Raises
    ------
    ConfigError
        Naming the first field at fault, and the nearest known one.
    """
    for key in settings:
        if key not in config.model_fields:
            close = difflib.get_close_matches(key, config.model_fields, 1)
            hint = f'did you mean "{close[0]}"?' if close else f"it has {', '.join(config.model_fields)}"
            raise ConfigError(f'{owner} has no option "{key}": {hint}')
    try:
        return config(**{key: _listed(config, key, value) for key, value in settings.items()})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f'{owner}, option "{where}": {first["msg"]} (got {first["input"]!r})') from None


def _listed(config: type[BaseModel], key: str, value: object) -> object:
    is_list = get_origin(config.model_fields[key].annotation) is tuple
    return [part.strip() for part in value.split(",") if part.strip()] if is_list and isinstance(value, str) else value
