import os
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread for each of the processes that share the processor
    os.environ["OMP_NUM_THREADS"] = "1"

import cv2
import numpy as np
import pytest

from anomalib_med import FittedModel, PatchCore, Preprocessing, fit


def _folder(variable: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set")
    return Path(value)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real images."""
    return _folder("ANOMED_TEST_DATA")


@pytest.fixture(scope="session")
def real_weights() -> Path:
    """Folder of real pretrained weights."""
    return _folder("ANOMED_TEST_WEIGHTS")


def normal_picture(seed: int, shape: tuple[int, int] = (96, 80)) -> np.ndarray:
    """A smooth grey picture with a little structure, different for each seed; uint8."""
    rng = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(rng.normal(0, 1, shape).astype(np.float32), (0, 0), 6)
    ramp = np.linspace(60, 160, shape[1], dtype=np.float32)[None].repeat(shape[0], 0)
    return np.clip(ramp + 250 * noise + rng.normal(0, 3, shape), 0, 255).astype(np.uint8)


def abnormal_picture(seed: int, shape: tuple[int, int] = (96, 80)) -> tuple[np.ndarray, np.ndarray]:
    """A normal picture with a bright disc in it, and its mask."""
    rng = np.random.default_rng(seed + 10_000)
    mask = np.zeros(shape, np.uint8)
    cv2.circle(mask, (int(rng.integers(20, shape[1] - 20)), int(rng.integers(20, shape[0] - 20))), 8, 1, -1)
    return np.where(mask > 0, 235, normal_picture(seed, shape)).astype(np.uint8), mask.astype(bool)


@pytest.fixture(scope="session")
def normals_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty normal PNG files, two of each patient."""
    folder = tmp_path_factory.mktemp("normals")
    for i in range(30):
        cv2.imwrite(str(folder / f"patient{i // 2:02d}_{i % 2}.png"), normal_picture(i))
    return folder


@pytest.fixture(scope="session")
def images_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six normal and six abnormal PNG files."""
    folder = tmp_path_factory.mktemp("images")
    for i in range(6):
        cv2.imwrite(str(folder / f"normal_{i}.png"), normal_picture(500 + i))
        cv2.imwrite(str(folder / f"abnormal_{i}.png"), abnormal_picture(600 + i)[0])
    return folder


SMALL = Preprocessing(size=64)


def small_patchcore(**settings: object) -> PatchCore:
    """PatchCore that fits in a second."""
    return PatchCore(**({"weights": "random", "bank_size": 200} | settings))


@pytest.fixture(scope="session")
def small_model(normals_folder: Path) -> FittedModel:
    """A PatchCore fitted on the thirty normals."""
    return fit(small_patchcore(), normals_folder, preprocessing=SMALL, patient_pattern=r"(patient\d+)", device="cpu")


@pytest.fixture
def model_folder(small_model: FittedModel, tmp_path: Path) -> Path:
    """The small model, saved."""
    return small_model.save(tmp_path / "model")
