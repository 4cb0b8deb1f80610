from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from anomalib_med import FittedModel, PatchCore, Preprocessing, fit
from anomalib_med.datasets import discover, samples_from_array
from anomalib_med.errors import FitError
from anomalib_med.evaluation import image_auroc, pixel_auroc
from anomalib_med.models.memory_bank.kmeans import kmeans
from anomalib_med.models.memory_bank.patch_pool import PatchPool
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


@pytest.mark.parametrize("sampling", ["random", "kmeans", "full"])
def test_the_pool_stays_within_its_budget(sampling: str) -> None:
    detector = small_patchcore(max_bank_mb=0.1, bank_size=10_000, sampling=sampling)
    detector.fit(frames())
    assert len(detector.bank) * 128 * 2 <= 0.1 * 2**20
    assert len(detector.bank) % 12 == 0  # every image has its share
    assert detector.seen == 12 * 64


def test_a_coreset_of_shards_covers_nearly_as_well_as_one_of_all() -> None:
    pictures = np.stack([normal_picture(i, (64, 64)) for i in range(60)])
    banks = {}
    for budget in (256, 0.1):  # all 3,840 patches, or 409 at a time
        detector = small_patchcore(max_bank_mb=budget, bank_size=50)
        detector.fit(frames(pictures))
        assert detector.bank.shape == (50, 128)
        banks[budget] = detector.bank.float()
    every = small_patchcore(sampling="full")
    every.fit(frames(pictures))
    drawn = small_patchcore(sampling="random", bank_size=50)
    drawn.fit(frames(pictures))
    patches = every.bank.float()
    whole, shards, chance = (
        float(torch.cdist(patches, bank).amin(1).max()) for bank in (*banks.values(), drawn.bank.float())
    )
    assert whole <= shards < 1.3 * whole < chance


def test_a_pool_reduces_shards_then_their_coresets_and_loses_nothing_it_need_not() -> None:
    calls: list[int] = []

    def every_fourth(patches: torch.Tensor) -> torch.Tensor:
        calls.append(len(patches))
        return patches[::4]

    pool = PatchPool(16, 1, every_fourth)
    numbers = torch.arange(1000.0)[:, None]
    for part in torch.split(numbers[:16], 5):
        pool.add(part)
    assert not calls and pool.patches[:, 0].tolist() == list(range(16))
    for part in torch.split(numbers[16:], 7):
        pool.add(part)
        assert len(pool.patches) <= 16
    assert calls[:4] == [16, 12, 9, 10]  # three shards, then their coresets
    assert pool.patches[-1, 0] == 999


def test_bank_of_cluster_centres_lies_nearer_to_the_patches_than_a_random_one() -> None:
    every, drawn, centres = (
        small_patchcore(sampling=sampling, bank_size=40) for sampling in ("full", "random", "kmeans")
    )
    for detector in (every, drawn, centres):
        detector.fit(frames())
    patches = every.bank.float()
    assert len(patches) == 12 * 64
    near, far = (torch.cdist(patches, d.bank.float()).amin(1).square().mean() for d in (centres, drawn))
    assert near < 0.9 * far


def test_kmeans_weighs_points() -> None:
    points = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    centres = kmeans(points, 2, torch.tensor([3.0, 1.0, 1.0, 1.0]), seed=1)
    assert sorted(centres[:, 0].tolist()) == pytest.approx([0.25, 10.5])
    assert kmeans(points, 9, None).shape == (4, 1)


# Position


def test_distances_with_position_are_those_of_features_and_places_together() -> None:
    detector = small_patchcore(sampling="full", position=1.5)
    detector.fit(frames())
    assert detector.bank.shape == (12 * 64, 130)
    places = detector.bank[:64, -2:].float().reshape(8, 8, 2)
    assert places[0, 0].tolist() == [0.0625, 0.0625] and places[7, 0].tolist() == [0.9375, 0.0625]
    x = next(frames(PICTURES[::-1].copy() // 2).batches(1)).x
    spread = float(detector.bank[:, :-2].float().var(0, correction=0).sum().sqrt())
    features = detector.features(x)[0].flatten(1).T.float()
    bank = detector.bank.float()
    apart = torch.cdist(places.reshape(-1, 2), bank[:, -2:]) * 1.5 * spread
    expected = (torch.cdist(features, bank[:, :-2]) ** 2 + apart**2).sqrt().amin(1)
    torch.testing.assert_close(detector.anomaly_map(x).flatten(), expected, rtol=5e-3, atol=5e-3)


# The paper's score


def test_the_reweighted_score_is_that_of_the_paper() -> None:
    detector = small_patchcore(reweighted=5)
    detector.fit(frames())
    x = next(frames(PICTURES[:3] // 2).batches(3)).x
    maps = detector.anomaly_map(x)
    valid = torch.ones(3, 64, 64, dtype=torch.bool)
    valid[:, 32:] = False
    found = detector.image_score(x, maps, valid)
    bank = detector.bank.double()
    for score, grid, map in zip(found, detector.features(x), maps, strict=True):
        patch = grid.flatten(1).T.double()[int(map[:4].argmax())]  # the lower half of the grid does not count
        distances = (patch - bank).norm(dim=1)
        nearest = int(distances.argmin())
        around = (bank[nearest] - bank).norm(dim=1).argsort()[:5]
        weight = 1 - torch.exp(distances[nearest]) / torch.exp(distances[around]).sum()
        assert float(score) == pytest.approx(float(weight * distances[nearest]), rel=1e-4)
    alone = torch.cat([detector.image_score(x[[i]], maps[[i]], valid[[i]]) for i in range(3)])
    assert torch.equal(found, alone)


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
    from anomalib_med.phantoms.write import write_chest_dataset

    write_chest_dataset(tmp_path / "data", train=60, normal=12, abnormal=12)
    model = fit(PatchCore(), tmp_path / "data/train/normal", preprocessing=Preprocessing(), device="cpu")
    abnormal = model.score(tmp_path / "data/test/abnormal")
    masks = [cv2.imread(str(tmp_path / "data/test/masks" / r.id), 0) > 0 for r in abnormal]
    normals = np.stack([cv2.imread(str(p), -1) for p in sorted((tmp_path / "data/train/normal").iterdir())])
    images = [cv2.imread(r.path, -1) for r in abnormal]
    difference = [np.abs(image - normals.mean(0)) for image in images]
    assert pixel_auroc(masks, list(abnormal.maps)) > max(0.9, pixel_auroc(masks, difference) + 0.2)
