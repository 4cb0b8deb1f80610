"""Unsupervised anomaly detection for medical images: train on the healthy, find what is not.

>>> from anomalib_med import TwoView, fit, load
>>> model = fit(TwoView(), "normals/")            # doctest: +SKIP
>>> scores = model.score("new_images/")           # doctest: +SKIP
>>> model.save("model/"); load("model/")          # doctest: +SKIP
"""

import re
from functools import cache
from importlib import import_module
from pathlib import Path

from anomalib_med.version import __version__ as __version__

_HERE = Path(__file__).parent
_IMPORT = re.compile(r"^from (\S+) import (\w+) as", re.MULTILINE)
_DETECTOR = re.compile(r'^class (\w+)\(.*\):\n(?: .*\n|\n)*?    name = "', re.MULTILINE)


@cache
def _homes() -> dict[str, str]:
    """The module of every public name: those of the stub, and the detectors, which are found without importing them.

    torch takes seconds, and `anomed --help` needs none of it.
    """
    stub = (_HERE / "__init__.pyi").read_text(encoding="utf-8")
    homes = {name: module for module, name in _IMPORT.findall(stub)}
    for path in (_HERE / "models").rglob("*.py"):
        module = ".".join(["anomalib_med", *path.relative_to(_HERE).with_suffix("").parts])
        homes |= dict.fromkeys(_DETECTOR.findall(path.read_text(encoding="utf-8")), module)
    return homes


def __getattr__(name: str) -> object:
    if name == "__all__":
        return sorted(_homes())
    if name not in _homes():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_homes()[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_homes()})
