"""What a user may import, and what importing does not do."""

import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import anomalib_med
from anomalib_med import FittedModel
from tests.conftest import abnormal_picture

PUBLIC = [
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
    "MKD",
    "Mahalanobis",
    "MaskedAutoencoder",
    "MemoryAutoencoder",
    "PaDiM",
    "PatchCore",
    "PatchedDiffusion",
    "Preprocessing",
    "RD4AD",
    "RDPlusPlus",
    "Result",
    "Riad",
    "STFPM",
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

WITHOUT_NETWORK_AND_FAISS = """
import socket, sys

def refuse(*_, **__):
    raise AssertionError("a connection was tried")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
sys.modules["faiss"] = None  # as if it were not installed
import numpy, torch, anomalib_med
from anomalib_med.models.memory_bank.neighbours import NearestNeighbours
anomalib_med.PatchCore()
anomalib_med.detectors()
model = anomalib_med.load(sys.argv[1], device="cpu")
scores = model.score(numpy.load(sys.argv[2])).scores
assert NearestNeighbours(torch.zeros(20_000, 2)).engine == "torch"
print(" ".join(map(repr, scores.tolist())))
"""


def test_the_public_names_are_these() -> None:
    assert sorted(anomalib_med.__all__) == sorted(PUBLIC)
    assert all(hasattr(anomalib_med, name) for name in PUBLIC)


@pytest.mark.parametrize("name", [name for name in PUBLIC if name != "__version__"])
def test_every_public_object_and_method_has_a_docstring(name: str) -> None:
    thing = getattr(anomalib_med, name)
    assert inspect.getdoc(thing)
    if inspect.isclass(thing):
        for method, value in vars(thing).items():
            if not method.startswith("_") and (inspect.isroutine(value) or isinstance(value, property)):
                assert inspect.getdoc(getattr(thing, method)), f"{name}.{method}"


@pytest.mark.parametrize("name", ["fit", "load", "add_normals", "merge_models", "score_to_folder"])
def test_public_functions_are_typed_and_name_their_errors(name: str) -> None:
    function = getattr(anomalib_med, name)
    signature = inspect.signature(function)
    assert all(p.annotation is not inspect.Parameter.empty for p in signature.parameters.values())
    assert signature.return_annotation is not inspect.Signature.empty
    assert "Raises" in (inspect.getdoc(function) or "")


def test_parameters_of_fit_and_score_are_described() -> None:
    for function in (anomalib_med.fit, anomalib_med.score_to_folder, FittedModel.score):
        text = (inspect.getdoc(function) or "").partition("Parameters")[2]
        for parameter in inspect.signature(function).parameters:
            assert parameter == "self" or parameter in text, f"{function.__qualname__}: {parameter}"


def test_errors_are_of_one_family() -> None:
    from anomalib_med import errors

    children = [value for value in vars(errors).values() if inspect.isclass(value)]
    assert all(issubclass(child, anomalib_med.AnomedError) and inspect.getdoc(child) for child in children)


def test_the_version_is_that_of_the_installed_package() -> None:
    from importlib.metadata import version

    assert anomalib_med.__version__ == version("anomalib-med")


def test_without_network_and_faiss_a_model_scores_as_with_them(
    small_model: FittedModel, model_folder: Path, tmp_path: Path
) -> None:
    pictures = np.stack([abnormal_picture(i)[0] for i in range(3)])
    np.save(tmp_path / "pictures.npy", pictures)
    files = [str(model_folder), str(tmp_path / "pictures.npy")]
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT_NETWORK_AND_FAISS, *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose([float(s) for s in done.stdout.split()], small_model.score(pictures).scores, rtol=1e-6)


def test_importing_changes_no_random_state_and_opens_no_connection() -> None:
    code = (
        "import random, numpy, socket; socket.socket.connect = socket.getaddrinfo = None; "
        "random.seed(1); numpy.random.seed(1); "
        "import anomalib_med; anomalib_med.PatchCore; print(random.random(), numpy.random.random())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    rng = np.random.RandomState(1)
    assert done.stdout.split() == ["0.13436424411240122", repr(float(rng.random_sample()))]
