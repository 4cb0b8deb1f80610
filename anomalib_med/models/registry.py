"""Every detector by name. A detector enters by being defined in a module of this package, or imported by its user."""

import difflib
import importlib
import pkgutil
from typing import TYPE_CHECKING

from anomalib_med.errors import ConfigError

if TYPE_CHECKING:
    from anomalib_med.models.base import Detector

_detectors: dict[str, type["Detector"]] = {}


def register(detector: type["Detector"]) -> None:
    """Enter a detector class under its `name`; called when the class is defined."""
    if "name" in vars(detector):
        _detectors[detector.name] = detector


def detectors() -> dict[str, type["Detector"]]:
    """All detectors by name, those of this package and those defined by the caller."""
    package = importlib.import_module("anomalib_med.models")
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
    return dict(sorted(_detectors.items()))


def detector_class(name: str) -> type["Detector"]:
    """The detector of that name.

    Raises
    ------
    ConfigError
        Where there is none, with the nearest name.
    """
    known = detectors()
    if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        hint = f'did you mean "{close[0]}"?' if close else f"there are {', '.join(known)}"
        raise ConfigError(f'detector "{name}" is not known: {hint}')
    return known[name]
