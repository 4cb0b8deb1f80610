"""What every registered detector promises. A new detector is tested by being registered."""

from pathlib import Path

import numpy as np
import pytest
import torch

from anomalib_med import Detector, FittedModel, Preprocessing, detectors, fit, load
from anomalib_med.errors import ConfigError
from anomalib_med.evaluation import image_auroc, pixel_auroc
from tests.conftest import abnormal_picture, normal_picture

NORMALS = np.stack([normal_picture(i) for i in range(24)])
TEST_NORMALS = np.stack([normal_picture(1000 + i) for i in range(16)])
PLANTED = [abnormal_picture(2000 + i) for i in range(16)]
ABNORMALS = np.stack([image for image, _ in PLANTED])
MASKS = [np.zeros(mask.shape, bool) for _, mask in PLANTED] + [mask for _, mask in PLANTED]

# Settings that make a detector small enough for a test; a detector that is quick by default needs none.
SMALL = {"patchcore": {"weights": "random", "bank_size": 300}}

# Detectors of the package; tests and users may register more.
NAMES = [name for name, detector in detectors().items() if detector.__module__.startswith("anomalib_med.")]


def fitted(name: str) -> FittedModel:
    detector = detectors()[name](**SMALL.get(name, {}))
    return fit(detector, NORMALS, preprocessing=Preprocessing(size=64), device="cpu")


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest) -> FittedModel:
    return fitted(request.param)


def test_names_and_titles_are_unique_and_there_is_a_card() -> None:
    from anomalib_med.cards import card

    known = detectors()
    assert len({detector.title for detector in known.values()}) == len(known)
    for name in NAMES:
        assert known[name].__doc__
        assert len(card("models", name)) > 500


def test_same_seed_same_model(model: FittedModel) -> None:
    again = fitted(model.detector.name)
    assert again.fingerprint() == model.fingerprint()


def test_saved_and_loaded_scores_are_bit_equal(model: FittedModel, tmp_path: Path) -> None:
    before = model.score(ABNORMALS)
    after = load(model.save(tmp_path / "model")).score(ABNORMALS)
    assert np.array_equal(before.scores, after.scores)
    assert np.array_equal(before.p_values, after.p_values)
    assert all(np.array_equal(a, b) for a, b in zip(before.maps, after.maps, strict=True))


def test_scores_do_not_depend_on_batch_or_order(model: FittedModel) -> None:
    together = model.score(ABNORMALS).scores
    alone = [model.score(image[None]).scores[0] for image in ABNORMALS]
    assert together.tolist() == alone
    order = np.random.default_rng(0).permutation(len(ABNORMALS))
    assert model.score(ABNORMALS[order]).scores.tolist() == together[order].tolist()


def test_batches_of_1_and_16_give_equal_maps(model: FittedModel) -> None:
    x = torch.rand(16, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    together = model.detector.anomaly_map(x)
    alone = torch.cat([model.detector.anomaly_map(image[None]) for image in x])
    assert torch.equal(together, alone)


def test_maps_have_the_shape_of_the_original(model: FittedModel) -> None:
    for shape in ((96, 80), (61, 133), (300, 200)):
        scores = model.score(normal_picture(1, shape)[None])
        assert scores.maps[0].shape == shape
        assert scores.maps[0].dtype == np.float32
        assert np.isfinite(scores.maps[0]).all()


def test_grey_16_bit_and_colour_are_taken(model: FittedModel) -> None:
    picture = normal_picture(1)
    colour = np.repeat(picture[None, :, :, None], 3, axis=3)
    assert np.isfinite(model.score(colour).scores).all()
    assert np.isfinite(model.score(picture[None].astype(np.uint16) * 16).scores).all()


def test_finds_planted_lesions_better_than_the_difference_to_the_mean_image(model: FittedModel) -> None:
    scores = model.score(np.concatenate([TEST_NORMALS, ABNORMALS]))
    labels = [0] * len(TEST_NORMALS) + [1] * len(ABNORMALS)
    difference = np.abs(np.concatenate([TEST_NORMALS, ABNORMALS]).astype(np.float32) - NORMALS.mean(0))
    baseline_image = image_auroc(labels, difference.mean((1, 2)))
    baseline_pixel = pixel_auroc(MASKS, list(difference))
    assert image_auroc(labels, scores.scores) > max(0.7, baseline_image)
    assert pixel_auroc(MASKS, list(scores.maps)) > max(0.8, baseline_pixel)


def test_map_peaks_at_a_large_lesion(model: FittedModel) -> None:
    hits = 0
    for (image, mask), map in zip(PLANTED, model.score(ABNORMALS).maps, strict=True):
        row, column = np.unravel_index(map.argmax(), map.shape)
        near = mask[max(0, row - 8) : row + 9, max(0, column - 8) : column + 9]
        hits += bool(near.any())
        assert image.shape == map.shape
    assert hits >= 0.6 * len(PLANTED)


def test_unknown_option_is_refused_with_the_nearest_name(model: FittedModel) -> None:
    kind: type[Detector] = type(model.detector)
    with pytest.raises(ConfigError, match=r'no option "poolin": did you mean "pooling"'):
        kind(poolin="max")
    with pytest.raises(ConfigError, match="smoothing"):
        kind(smoothing=-1)


def test_constructing_touches_neither_network_nor_random_state(model: FittedModel) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    type(model.detector)()
    assert torch.equal(torch.rand(1), expected)
