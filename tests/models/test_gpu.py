"""What every registered detector promises on a GPU, where sums in another order round differently."""

from pathlib import Path

import numpy as np
import pytest
import torch

from anomalib_med import FittedModel, Preprocessing, load
from anomalib_med.datasets import discover
from anomalib_med.models.training import Normals
from anomalib_med.preprocessing import Frames
from tests.conftest import normal_picture
from tests.models.test_contract import ABNORMALS, NAMES, NORMALS, fitted

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]

IMAGES = np.concatenate([np.stack([normal_picture(900 + i) for i in range(4)]), ABNORMALS])  # none was learnt from


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest) -> FittedModel:
    return fitted(request.param, "auto")


def spread(scores: np.ndarray) -> float:
    return float(np.ptp(scores))


def test_the_gpu_is_taken_by_itself(model: FittedModel) -> None:
    assert model.detector.device.type == "cuda"
    assert model.training["device"] == "cuda"


def test_a_model_of_the_gpu_scores_alike_on_the_cpu(model: FittedModel, tmp_path: Path) -> None:
    gpu = model.score(IMAGES)
    cpu = load(model.save(tmp_path / "model"), device="cpu").score(IMAGES)
    np.testing.assert_allclose(gpu.scores, cpu.scores, atol=0.01 * spread(cpu.scores), rtol=0)
    for ours, theirs in zip(gpu.maps, cpu.maps, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=0.02 * float(np.ptp(theirs)), rtol=0)


def test_scores_do_not_depend_on_the_batch(model: FittedModel) -> None:
    together = model.score(ABNORMALS).scores
    alone = np.array([model.score(image[None]).scores[0] for image in ABNORMALS])
    np.testing.assert_allclose(alone, together, atol=0.01 * spread(together), rtol=0)


def test_same_seed_same_scores(model: FittedModel) -> None:
    again = fitted(model.detector.name, "cuda")
    expected = model.score(IMAGES).scores
    np.testing.assert_allclose(again.score(IMAGES).scores, expected, atol=0.02 * spread(expected), rtol=0)


def test_a_step_has_the_same_images_as_on_the_cpu() -> None:
    frames = Frames(discover(NORMALS[:6]), Preprocessing(size=64))
    normals = Normals(frames, lambda x: x, 4, augment=False, memory_mb=1)
    rows = np.array([4, 0, 5])
    gpu, cpu = (normals.batch(rows, torch.device(device)) for device in ("cuda", "cpu"))
    assert gpu.x.device.type == gpu.valid.device.type == "cuda"
    assert torch.equal(gpu.x.cpu(), cpu.x)
    assert torch.equal(gpu.valid.cpu(), cpu.valid)
