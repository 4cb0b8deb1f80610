"""Every detector by name. A detector is known once its class is defined, in this package or by its user."""

import importlib
import pkgutil
from collections.abc import Iterator
from functools import cache

from anomalib_med import models
from anomalib_med.config import nearest
from anomalib_med.errors import ConfigError
from anomalib_med.models.base import Detector


def detectors() -> dict[str, type[Detector]]:
    """All detectors by name, those of this package and those defined by the caller; of equal names the last defined."""
    _import_all()
    known = {kind.name: kind for kind in _defined(Detector) if "name" in vars(kind)}
    return {name: known[name] for name in sorted(known)}


@cache
def _import_all() -> None:
    for module in pkgutil.walk_packages(models.__path__, f"{models.__name__}."):
        importlib.import_module(module.name)


def detector_class(name: str) -> type[Detector]:
    """The detector of that name; a ConfigError with the nearest name where there is none."""
    known = detectors()
    if name not in known:
        raise ConfigError(f'detector "{name}" is not known: {nearest(name, known)}')
    return known[name]


def _defined(kind: type) -> Iterator[type[Detector]]:
    child: type[Detector]
    for child in kind.__subclasses__():
        yield child
        yield from _defined(child)
