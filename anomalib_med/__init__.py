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
    from anomalib_med.errors import AnomedError
    from anomalib_med.fitted import FittedModel, load
    from anomalib_med.fitting import fit
    from anomalib_med.merging import add_normals, merge_models
    from anomalib_med.models.base import Detector, DetectorConfig, FeatureConfig
    from anomalib_med.models.inpainting.anoddpm import AnoDDPM
    from anomalib_med.models.inpainting.autopaint import AutoPaint
    from anomalib_med.models.inpainting.mae import MaskedAutoencoder
    from anomalib_med.models.inpainting.pddpm import PatchedDiffusion
    from anomalib_med.models.inpainting.riad import Riad
    from anomalib_med.models.inpainting.squid import Squid
    from anomalib_med.models.memory_bank.anomaly_dino import AnomalyDINO
    from anomalib_med.models.memory_bank.global_knn import GlobalKNN
    from anomalib_med.models.memory_bank.mahalanobis import Mahalanobis
    from anomalib_med.models.memory_bank.padim import PaDiM
    from anomalib_med.models.memory_bank.patchcore import PatchCore
    from anomalib_med.models.memory_bank.spade import Spade
    from anomalib_med.models.memory_bank.two_view import TwoView
    from anomalib_med.models.reconstruction.aeu import UncertaintyAutoencoder
    from anomalib_med.models.reconstruction.autoencoder import Autoencoder
    from anomalib_med.models.reconstruction.cevae import ContextEncodingVAE
    from anomalib_med.models.reconstruction.cvad import Cvad
    from anomalib_med.models.reconstruction.dae import DenoisingAutoencoder
    from anomalib_med.models.reconstruction.fae import FeatureAutoencoder
    from anomalib_med.models.reconstruction.fanogan import FAnoGan
    from anomalib_med.models.reconstruction.ganomaly import Ganomaly
    from anomalib_med.models.reconstruction.memae import MemoryAutoencoder
    from anomalib_med.models.reconstruction.vae import VariationalAutoencoder
    from anomalib_med.models.registry import detectors
    from anomalib_med.models.student_teacher.dinomaly import Dinomaly
    from anomalib_med.models.student_teacher.efficientad import EfficientAD
    from anomalib_med.models.student_teacher.mkd import MKD
    from anomalib_med.models.student_teacher.rd4ad import RD4AD
    from anomalib_med.models.student_teacher.rdpp import RDPlusPlus
    from anomalib_med.models.student_teacher.stfpm import STFPM
    from anomalib_med.outputs.scores import Scores
    from anomalib_med.preprocessing import Preprocessing
    from anomalib_med.records import Image, Result, Sample
    from anomalib_med.scoring import Summary, score_to_folder

__all__ = [
    "MKD",
    "RD4AD",
    "STFPM",
    "AnoDDPM",
    "AnomalyDINO",
    "AnomedError",
    "AutoPaint",
    "Autoencoder",
    "ContextEncodingVAE",
    "Cvad",
    "DenoisingAutoencoder",
    "Detector",
    "DetectorConfig",
    "Dinomaly",
    "EfficientAD",
    "FAnoGan",
    "FeatureAutoencoder",
    "FeatureConfig",
    "FittedModel",
    "Ganomaly",
    "GlobalKNN",
    "Image",
    "Mahalanobis",
    "MaskedAutoencoder",
    "MemoryAutoencoder",
    "PaDiM",
    "PatchCore",
    "PatchedDiffusion",
    "Preprocessing",
    "RDPlusPlus",
    "Result",
    "Riad",
    "Sample",
    "Scores",
    "Spade",
    "Squid",
    "Summary",
    "TwoView",
    "UncertaintyAutoencoder",
    "VariationalAutoencoder",
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
    "AnoDDPM": "anomalib_med.models.inpainting.anoddpm",
    "AnomalyDINO": "anomalib_med.models.memory_bank.anomaly_dino",
    "AnomedError": "anomalib_med.errors",
    "AutoPaint": "anomalib_med.models.inpainting.autopaint",
    "Autoencoder": "anomalib_med.models.reconstruction.autoencoder",
    "ContextEncodingVAE": "anomalib_med.models.reconstruction.cevae",
    "Cvad": "anomalib_med.models.reconstruction.cvad",
    "DenoisingAutoencoder": "anomalib_med.models.reconstruction.dae",
    "Detector": "anomalib_med.models.base",
    "DetectorConfig": "anomalib_med.models.base",
    "Dinomaly": "anomalib_med.models.student_teacher.dinomaly",
    "EfficientAD": "anomalib_med.models.student_teacher.efficientad",
    "FAnoGan": "anomalib_med.models.reconstruction.fanogan",
    "FeatureAutoencoder": "anomalib_med.models.reconstruction.fae",
    "FeatureConfig": "anomalib_med.models.base",
    "FittedModel": "anomalib_med.fitted",
    "Ganomaly": "anomalib_med.models.reconstruction.ganomaly",
    "GlobalKNN": "anomalib_med.models.memory_bank.global_knn",
    "Image": "anomalib_med.records",
    "MKD": "anomalib_med.models.student_teacher.mkd",
    "Mahalanobis": "anomalib_med.models.memory_bank.mahalanobis",
    "MaskedAutoencoder": "anomalib_med.models.inpainting.mae",
    "MemoryAutoencoder": "anomalib_med.models.reconstruction.memae",
    "PaDiM": "anomalib_med.models.memory_bank.padim",
    "PatchCore": "anomalib_med.models.memory_bank.patchcore",
    "PatchedDiffusion": "anomalib_med.models.inpainting.pddpm",
    "Preprocessing": "anomalib_med.preprocessing",
    "RD4AD": "anomalib_med.models.student_teacher.rd4ad",
    "RDPlusPlus": "anomalib_med.models.student_teacher.rdpp",
    "Result": "anomalib_med.records",
    "Riad": "anomalib_med.models.inpainting.riad",
    "STFPM": "anomalib_med.models.student_teacher.stfpm",
    "Sample": "anomalib_med.records",
    "Scores": "anomalib_med.outputs.scores",
    "Spade": "anomalib_med.models.memory_bank.spade",
    "Squid": "anomalib_med.models.inpainting.squid",
    "Summary": "anomalib_med.scoring",
    "TwoView": "anomalib_med.models.memory_bank.two_view",
    "UncertaintyAutoencoder": "anomalib_med.models.reconstruction.aeu",
    "VariationalAutoencoder": "anomalib_med.models.reconstruction.vae",
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
