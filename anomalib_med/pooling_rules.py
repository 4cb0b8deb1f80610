"""How many values become one: the grammar of pooling that maps, volumes and patients share."""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from anomalib_med.errors import ConfigError

Kind = Literal["max", "mean", "share", "count", "power", "run", "noisy-or"]

# How each kind is written: a pattern whose group is its number, and what an error shows.
_FORMS: dict[Kind, tuple[str, str]] = {
    "max": ("max", "max"),
    "mean": ("mean", "mean"),
    "share": (r"top(\d+(?:\.\d+)?)%", "top<q>% (top10%)"),
    "count": (r"top([1-9]\d*)", "top<k> (top5)"),
    "power": (r"power(\d+(?:\.\d+)?)", "power<p> (power8)"),
    "run": (r"run(\d+(?:\.\d+)?)mm", "run<mm>mm (run10mm)"),
    "noisy-or": ("noisy-or", "noisy-or"),
}


class Rule(NamedTuple):
    """A way of pooling.

    Parameters
    ----------
    kind
        "max"; "mean"; "share" or "count", the mean of the highest values; "power", the generalised mean; "run", the
        highest mean over neighbouring slices; "noisy-or", ``1 - prod(1 - p)``.
    number
        The share, above 0 and at most 1; the count, a whole number of at least 1; the exponent, at least 1; the length
        of the run in millimetres, above 0. 0 for a kind without a number.
    """

    kind: Kind
    number: float = 0.0


def parse_rule(text: str, allowed: Sequence[Kind], what: str = "pooling") -> Rule:
    """The rule that a text such as "max", "top10%", "top5", "power8", "run10mm" or "noisy-or" stands for.

    Raises ConfigError for any other text, or a number out of range. It says `what` the text is, and lists the kinds
    that are `allowed` here in their order.
    """
    for kind in allowed:
        match = re.fullmatch(_FORMS[kind][0], text)
        if match:
            number = float(match[1]) if match.lastindex else 0.0
            number = number / 100 if kind == "share" else number
            if _in_range(kind, number):
                return Rule(kind, number)
    *first, last = (_FORMS[kind][1] for kind in allowed)
    raise ConfigError(f'{what} "{text}" is not known: choose {", ".join(first)} or {last}')


def _in_range(kind: Kind, number: float) -> bool:
    if kind == "share":
        return 0 < number <= 1
    return number >= 1 if kind == "power" else number > 0 or kind != "run"
