"""Settings: validated, and described once, where a field is first written."""

import pytest
from pydantic import Field

from anomalib_med.config import Settings, parse_config
from anomalib_med.errors import ConfigError


class Parent(Settings):
    """Settings of a parent."""

    size: int = Field(3, ge=1)
    """Size of it in pixels."""

    names: tuple[str, ...] = ()
    """Names of its parts."""


class Child(Parent):
    """Settings of a child."""

    size: int = Field(5, ge=1)
    names: tuple[str, ...] = ("a",)
    """Names of its own parts."""


class Grandchild(Child):
    """Settings of a grandchild."""

    size: int = 7


def test_a_child_keeps_the_description_of_a_field_that_it_only_defaults_anew() -> None:
    assert Child().size == 5 and Child.model_fields["size"].description == "Size of it in pixels."
    assert Grandchild().size == 7 and Grandchild.model_fields["size"].description == "Size of it in pixels."
    assert Grandchild.model_fields["names"].description == "Names of its own parts."


def test_text_is_taken_and_a_wrong_name_is_answered_with_the_nearest() -> None:
    assert parse_config(Parent, {"size": "4", "names": "a, b"}, "it") == Parent(size=4, names=("a", "b"))
    with pytest.raises(ConfigError, match='it has no option "sise": did you mean "size"'):
        parse_config(Parent, {"sise": 4}, "it")
    with pytest.raises(ConfigError, match=r'it, option "size": .*greater than or equal to 1'):
        parse_config(Parent, {"size": 0}, "it")
