"""Unsupervised anomaly detection for medical images: train on the healthy, find what is not.

>>> from anomalib_med import PatchCore, fit, load
>>> model = fit(PatchCore(), "normals/")          # doctest: +SKIP
>>> scores = model.score("new_images/")           # doctest: +SKIP
>>> model.save("model/"); load("model/")          # doctest: +SKIP
"""

from anomalib_med.datasets.sample import Image, Sample
from anomalib_med.errors import AnomedError
from anomalib_med.fitted import FittedModel, load
from anomalib_med.fitting import fit
from anomalib_med.models.base import Detector, DetectorConfig, FeatureConfig
from anomalib_med.models.memory_bank.patchcore import PatchCore
from anomalib_med.models.registry import detectors
from anomalib_med.outputs.result import Result
from anomalib_med.outputs.scores import Scores
from anomalib_med.preprocessing import Preprocessing
from anomalib_med.scoring import Summary, score_to_folder
from anomalib_med.version import __version__

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
    "__version__",
    "detectors",
    "fit",
    "load",
    "score_to_folder",
]
