from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from anomalib_med import FittedModel, PatchCore, Preprocessing, fit
from anomalib_med.datasets import discover, samples_from_array
from anomalib_med.errors import FitError
from anomalib_med.evaluation import image_auroc, pixel_auroc
from anomalib_med.preprocessing import Frames
from tests.conftest import normal_picture, small_patchcore

PICTURES = np.stack([normal_picture(i, (64, 64)) for i in range(12)])


def frames(pictures: np.ndarray = PICTURES, **settings: object) -> Frames:
    preprocessing = Preprocessing(**({"size": 64, "windows": ((0.0, 255.0),)} | settings))
    return Frames(samples_from_array(pictures), preprocessing)


def test_the_bank_has_the_size_asked_for_as_number_or_share() -> None:
    for size, expected in ((100, 100), (0.125, 96), (10_000, 12 * 64)):
        detector = small_patchcore(bank_size=size)
        detector.fit(frames())
        assert detector.bank.shape == (expected, 128)
        assert detector.bank.dtype == torch.float16


def test_the_pool_stays_within_its_budget() -> None:
    detector = small_patchcore(max_bank_mb=0.1, bank_size=10_000)
    detector.fit(frames())
    assert len(detector.bank) * 128 * 2 <= 0.1 * 2**20
    assert len(detector.bank) % 12 == 0  # every image has its share


def test_every_patch_of_a_full_bank_is_at_distance_zero() -> None:
    detector = small_patchcore(bank_size=12 * 64)
    inputs = frames()
    detector.fit(inputs)
    batch = next(inputs.batches(12))
    assert float(detector.anomaly_map(batch.x).max()) < 1e-5


def test_padding_never_enters_the_bank() -> None:
    tall = np.stack([normal_picture(i, (128, 64)) for i in range(4)])
    padded = small_patchcore(bank_size=10_000)
    padded.fit(frames(tall, aspect="pad"))
    assert len(padded.bank) == 4 * 8 * 4  # half of the 8 x 8 grid


def test_random_sampling_and_coreset_differ_and_both_come_from_the_seed() -> None:
    banks = {}
    for sampling in ("coreset", "random"):
        for seed in (0, 0, 1):
            detector = small_patchcore(sampling=sampling, bank_size=50, seed=seed)
            detector.fit(frames())
            banks.setdefault((sampling, seed), []).append(detector.bank)
    for sampling in ("coreset", "random"):
        assert torch.equal(*banks[sampling, 0])
        assert not torch.equal(banks[sampling, 0][0], banks[sampling, 1][0])
    assert not torch.equal(banks["coreset", 0][0], banks["random", 0][0])


def test_scoring_before_fitting_is_an_error() -> None:
    with pytest.raises(FitError, match="not fitted"):
        small_patchcore().anomaly_map(torch.zeros(1, 1, 64, 64))


@pytest.fixture(scope="module")
def children(real_data: Path) -> FittedModel:
    """Fitted on 300 normal chest X-rays of children."""
    normals = discover(real_data / "zhanglab_cxr/train/normal")[::4]
    return fit(PatchCore(), normals, device="cpu")


@pytest.mark.real
def test_pneumonia_of_children_is_found(children: FittedModel, real_data: Path) -> None:
    test = real_data / "zhanglab_cxr/test"
    samples = [s for kind in ("normal", "bacteria", "virus") for s in discover(test / kind)[::3]]
    labels = [int("IM-" not in s.id) for s in samples]
    scores = children.score(samples)
    assert image_auroc(labels, scores.scores) > 0.86
    assert scores.flagged[np.array(labels) == 0].mean() < 0.2
    mean = np.mean([cv2.imread(str(s.path), 0) for s in discover(real_data / "zhanglab_cxr/train/normal")[::8]], axis=0)
    difference = [np.abs(cv2.imread(str(s.path), 0) - mean).mean() for s in samples]
    assert image_auroc(labels, scores.scores) > image_auroc(labels, difference) + 0.1


def test_lesions_in_phantoms_are_located(tmp_path: Path) -> None:
    from anomalib_med.datasets.synthetic.write import write_chest_dataset

    write_chest_dataset(tmp_path / "data", train=60, normal=12, abnormal=12)
    model = fit(PatchCore(), tmp_path / "data/train/normal", preprocessing=Preprocessing(), device="cpu")
    abnormal = model.score(tmp_path / "data/test/abnormal")
    masks = [cv2.imread(str(tmp_path / "data/test/masks" / r.id), 0) > 0 for r in abnormal]
    normals = np.stack([cv2.imread(str(p), -1) for p in sorted((tmp_path / "data/train/normal").iterdir())])
    images = [cv2.imread(r.path, -1) for r in abnormal]
    difference = [np.abs(image - normals.mean(0)) for image in images]
    assert pixel_auroc(masks, list(abnormal.maps)) > max(0.9, pixel_auroc(masks, difference) + 0.2)
