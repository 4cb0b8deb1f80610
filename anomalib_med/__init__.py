"""Unsupervised anomaly detection for medical images: train on the healthy, find what is not.

>>> from anomalib_med import TwoView, fit, load
>>> model = fit(TwoView(), "normals/")            # doctest: +SKIP
>>> scores = model.score("new_images/")           # doctest: +SKIP
>>> model.save("model/"); load("model/")          # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING

from anomalib_med.version import __version__

if TYPE_CHECKING:
    from anomalib_med.datasets.sample import Image, Sample
    from anomalib_med.errors import AnomedError
    from anomalib_med.fitted import FittedModel, load
    from anomalib_med.fitting import fit
    from anomalib_med.merging import add_normals, merge_models
    from anomalib_med.models.base import Detector, DetectorConfig, FeatureConfig
    from anomalib_med.models.memory_bank.patchcore import PatchCore
    from anomalib_med.models.memory_bank.two_view import TwoView
    from anomalib_med.models.registry import detectors
    from anomalib_med.outputs.result import Result
    from anomalib_med.outputs.scores import Scores
    from anomalib_med.preprocessing import Preprocessing
    from anomalib_med.scoring import Summary, score_to_folder

__all__ = [
    "AnomedError",
    "Detector",
    "DetectorConfig",
    "FeatureConfig",
    "FittedModel",
    "Image",
    "PatchCore",
    "Preprocessing",
    "Result",
    "Sample",
    "Scores",
    "Summary",
    "TwoView",
    "__version__",
    "add_normals",
    "detectors",
    "fit",
    "load",
    "merge_models",
    "score_to_folder",
]

# Imported when they are used: torch takes seconds, and `anomed --help` needs none of it.
_HOMES = {
    "AnomedError": "anomalib_med.errors",
    "Detector": "anomalib_med.models.base",
    "DetectorConfig": "anomalib_med.models.base",
    "FeatureConfig": "anomalib_med.models.base",
    "FittedModel": "anomalib_med.fitted",
    "Image": "anomalib_med.datasets.sample",
    "PatchCore": "anomalib_med.models.memory_bank.patchcore",
    "Preprocessing": "anomalib_med.preprocessing",
    "Result": "anomalib_med.outputs.result",
    "Sample": "anomalib_med.datasets.sample",
    "Scores": "anomalib_med.outputs.scores",
    "Summary": "anomalib_med.scoring",
    "TwoView": "anomalib_med.models.memory_bank.two_view",
    "add_normals": "anomalib_med.merging",
    "detectors": "anomalib_med.models.registry",
    "fit": "anomalib_med.fitting",
    "load": "anomalib_med.fitted",
    "merge_models": "anomalib_med.merging",
    "score_to_folder": "anomalib_med.scoring",
}

if not TYPE_CHECKING:  # so that a type checker still sees a name that is not there

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_HOMES[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
