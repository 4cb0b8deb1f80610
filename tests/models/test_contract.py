"""What every registered detector promises. A new detector is tested by being registered."""

from pathlib import Path

import numpy as np
import pytest
import torch

from anomalib_med import Detector, FittedModel, Preprocessing, detectors, fit, load
from anomalib_med.errors import ConfigError
from anomalib_med.evaluation import image_auroc, pixel_auroc
from anomalib_med.models.training import TrainedDetector
from anomalib_med.phantoms import add_lesion, chest_phantom
from tests.conftest import abnormal_picture, normal_picture

NORMALS = np.stack([normal_picture(i) for i in range(24)])
ABNORMALS = np.stack([abnormal_picture(2000 + i)[0] for i in range(16)])

# Settings that make a detector small enough for a test; a detector that is quick by default needs none. Those that
# score by the mean of their map, which suits disease of a whole lung, take a pooling that follows a small object.
NARROW = {"steps": 300, "batch_size": 8, "hidden": 64, "widths": (8, 16, 32, 32), "learning_rate": 3e-3}
SMALL: dict[str, dict[str, object]] = {
    "aeu": NARROW | {"learning_rate": 2e-3},
    "anoddpm": {"steps": 200, "batch_size": 8, "widths": (8, 16, 16), "learning_rate": 3e-3, "draws": 3}
    | {"denoising_steps": 4, "longest": 250},
    "autoencoder": {"epochs": 30, "batch_size": 8, "loss": "ssim", "pooling": "power8"},
    "autopaint": {"steps": 60, "batch_size": 4, "width": 8, "learning_rate": 3e-3, "cell": 8, "pooling": "mean"},
    "cevae": NARROW
    | {"steps": 400, "hidden": 0, "widths": (16, 32, 64, 64), "latent": 32, "learning_rate": 2e-3, "beta": 1e-3}
    | {"score": "combined", "image": "map", "pooling": "top10%"},
    "cvad": {"steps": 500, "batch_size": 8, "widths": (8, 16, 32, 32), "latent": 16, "fine_latent": 16}
    | {"learning_rate": 3e-3, "augment": True},
    "dae": {"steps": 150, "batch_size": 4, "widths": (8, 16, 32), "learning_rate": 2e-3},
    "dinomaly": {"steps": 60, "batch_size": 8, "blocks": 2},
    "efficientad": {"steps": 150, "batch_size": 2, "network": "T", "learning_rate": 1e-3, "pooling": "power8"},
    "fae": {"steps": 60, "batch_size": 8, "grid": 16, "learning_rate": 2e-3, "pooling": "top10%"},
    "fanogan": {"steps": 1000, "batch_size": 8, "widths": (16, 32, 32), "latent": 32, "critic_steps": 1}
    | {"gan_share": 0.6, "learning_rate": 2e-3, "smoothing": 0},
    "ganomaly": NARROW | {"steps": 150, "learning_rate": 2e-3},
    "mae": {"steps": 60, "batch_size": 8, "width": 48, "depth": 3, "decoder_width": 48, "learning_rate": 3e-3}
    | {"parts": 2, "relative": True, "pooling": "power8"},
    "memae": NARROW | {"pooling": "power8"},
    "mkd": {"steps": 60, "batch_size": 8, "learning_rate": 3e-3, "score": "map"},
    "patchcore": {"bank_size": 300},
    "pddpm": {"steps": 200, "batch_size": 8, "widths": (8, 16, 16), "learning_rate": 3e-3},
    "rd4ad": {"steps": 60, "batch_size": 8, "pooling": "power8"},
    "rdpp": {"steps": 40, "batch_size": 8, "pooling": "power8"},
    "riad": {"steps": 30, "batch_size": 2, "width": 8, "learning_rate": 3e-3, "window": 7}
    | {"cells": (4, 8, 16), "intensity": 4},
    "squid": {"steps": 50, "batch_size": 4, "width": 8, "learning_rate": 3e-3, "augment": False, "critic": 1}
    | {"slots": 50, "score": "residual", "pooling": "max"},
    "stfpm": {"steps": 60, "batch_size": 8, "pooling": "power8"},
    "twoview": {"bank_size": 300},
    "vae": NARROW | {"steps": 500, "widths": (8, 16, 32), "loss": "ssim", "beta": 5e-4, "pooling": "power8"},
}

# Of the input in the test with lesions, where 128 pixels would take minutes.
SIDES = {"anoddpm": 64, "cvad": 64, "fanogan": 32, "pddpm": 64, "vae": 64}

# Healthy phantoms to learn from in that test, where 40 are too few: a generator draws what it has seen.
COUNTS = {"fanogan": 200}

# Detectors of the package; tests and users may register more.
NAMES = [name for name, detector in detectors().items() if detector.__module__.startswith("anomalib_med.")]


GPU = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")])


def fitted(name: str, device: str = "cpu") -> FittedModel:
    kind, settings = detectors()[name], SMALL.get(name, {})
    if issubclass(kind, TrainedDetector):
        settings = settings | {"steps": 10}  # what is promised here does not depend on how well it is trained
    return fit(kind(**settings), NORMALS, preprocessing=Preprocessing(size=64), device=device)


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


def phantoms(seeds: range, kind: str | None = None) -> tuple[np.ndarray, list[np.ndarray]]:
    """Chest phantoms, with a lesion of `kind` in each, and the masks."""
    images, masks = [], []
    for seed in seeds:
        phantom = chest_phantom(seed, 128)
        pixels, mask = phantom.pixels, np.zeros((128, 128), bool)
        if kind is not None:
            pixels, mask = add_lesion(pixels, phantom.lungs, kind, np.random.default_rng(seed))
        images.append(pixels)
        masks.append(mask)
    return np.stack(images), masks


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("name", NAMES)
def test_finds_planted_lesions_better_than_the_difference_to_the_mean_image(name: str, device: str) -> None:
    """With untrained features a detector finds sharp objects only; what it does with trained ones is in its card.

    After a short training, whose weights differ with the number of threads, only the map is judged: 24 images are too
    few for the score of such a detector.
    """
    normals, _ = phantoms(range(COUNTS.get(name, 40)))
    healthy, no_masks = phantoms(range(1000, 1012))
    diseased, masks = phantoms(range(2000, 2012), "foreign")
    detector = detectors()[name](**SMALL.get(name, {}))
    model = fit(detector, normals, preprocessing=Preprocessing(size=SIDES.get(name, 128)), device=device)
    scores = model.score(np.concatenate([healthy, diseased]))
    labels = [0] * len(healthy) + [1] * len(diseased)
    difference = list(np.abs(np.concatenate([healthy, diseased]) - normals.mean(0)))
    found = pixel_auroc(no_masks + masks, list(scores.maps))
    assert found > max(0.75, pixel_auroc(no_masks + masks, difference) + 0.05)
    if not issubclass(detectors()[name], TrainedDetector):
        assert image_auroc(labels, scores.scores) > image_auroc(labels, [d.mean() for d in difference])


def test_unknown_option_is_refused_with_the_nearest_name(model: FittedModel) -> None:
    kind: type[Detector] = type(model.detector)
    with pytest.raises(ConfigError, match=r'no option "smoothin": did you mean "smoothing"'):
        kind(smoothin=1)
    with pytest.raises(ConfigError, match="smoothing"):
        kind(smoothing=-1)


def test_constructing_touches_neither_network_nor_random_state(model: FittedModel) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    type(model.detector)()
    assert torch.equal(torch.rand(1), expected)
