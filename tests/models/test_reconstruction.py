"""Feature autoencoder and autoencoder: what is particular to them. The promises of every detector: test_contract.py."""

import numpy as np
import pytest
import torch

from anomalib_med import FittedModel, fit
from anomalib_med.errors import ConfigError
from anomalib_med.evaluation import pixel_auroc
from anomalib_med.features import FeatureExtractor
from anomalib_med.models.reconstruction.autoencoder import Autoencoder
from anomalib_med.models.reconstruction.fae import FeatureAutoencoder
from anomalib_med.models.training import StepBatch, TrainedDetector
from anomalib_med.preprocessing import Preprocessing
from tests.conftest import abnormal_picture, normal_picture

NORMALS = np.stack([normal_picture(i) for i in range(24)])
ABNORMAL = [abnormal_picture(900 + i) for i in range(8)]
SIZE = Preprocessing(size=64)


def fitted(detector: TrainedDetector) -> FittedModel:
    return fit(detector, NORMALS, calibration=0, preprocessing=SIZE, device="cpu")


def quick_fae(**settings: object) -> FeatureAutoencoder:
    return FeatureAutoencoder(**({"steps": 25, "batch_size": 8, "grid": 16, "learning_rate": 2e-3} | settings))


def auroc(model: FittedModel) -> float:
    maps = model.score(np.stack([picture for picture, _ in ABNORMAL])).maps
    return pixel_auroc([mask for _, mask in ABNORMAL], list(maps))


# FAE


@pytest.mark.parametrize("loss", ["ssim", "mse"])
def test_fae_finds_what_it_cannot_reconstruct(loss: str) -> None:
    assert auroc(fitted(quick_fae(loss=loss))) > 0.9


def test_fae_extracts_the_features_of_an_image_once(monkeypatch: pytest.MonkeyPatch) -> None:
    images = 0
    original = FeatureExtractor.layers  # patched, because what counts here is how often it is called

    def counted(self: FeatureExtractor, x: torch.Tensor) -> list[torch.Tensor]:
        nonlocal images
        images += len(x)
        return original(self, x)

    monkeypatch.setattr(FeatureExtractor, "layers", counted)
    detector = quick_fae(steps=30)
    fit(detector, NORMALS, calibration=0.25, preprocessing=SIZE, device="cpu")
    assert images == len(NORMALS)  # those to learn from and those held out
    images = 0
    fit(quick_fae(steps=3, augment=True), NORMALS, calibration=0.25, preprocessing=SIZE, device="cpu")
    assert images == 6 + 1 + 3 * 8  # held out; one for its shape; at each step


def test_fae_maps_are_on_its_grid_whatever_the_backbone_gives() -> None:
    model = fitted(quick_fae(steps=2))
    for side in (64, 96):
        assert model.detector.anomaly_map(torch.rand(2, 1, side, side)).shape == (2, 16, 16)
    with pytest.raises(ConfigError, match="grid"):
        FeatureAutoencoder(grid=20)


def test_fae_with_resnet_features_needs_no_other_setting() -> None:
    model = fitted(quick_fae(steps=2, backbone="resnet18", weights="random", layers="act1,layer1,layer2"))
    assert isinstance(model.detector, FeatureAutoencoder)
    assert model.detector.shape == (256, 16, 16)


# Autoencoder


@pytest.mark.parametrize("loss", ["l2", "l1", "ssim", "perceptual"])
def test_the_autoencoder_finds_what_it_cannot_reconstruct(loss: str) -> None:
    assert auroc(fitted(Autoencoder(loss=loss, epochs=15, batch_size=8))) > 0.9


def test_loss_and_score_are_chosen_apart() -> None:
    models = {score: fitted(Autoencoder(loss="l2", score=score, epochs=2)) for score in ("loss", "l2", "l1", "ssim")}
    x = torch.rand(2, 1, 64, 64)
    maps = {score: model.detector.anomaly_map(x) for score, model in models.items()}
    assert torch.equal(maps["loss"], maps["l2"])
    assert torch.allclose(maps["l1"].square(), maps["l2"], atol=1e-6)  # one grey channel: the same reconstruction
    assert not torch.allclose(maps["ssim"], maps["l2"])


def test_only_the_perceptual_error_has_a_backbone() -> None:
    assert not Autoencoder(loss="ssim").uses_features
    assert Autoencoder(loss="l2", score="perceptual").uses_features
    model = fitted(Autoencoder(loss="l2", epochs=1))
    assert model.describe()["backbone"] == {}


def test_perceptual_features_of_the_normals_are_standardised_and_pass_gradients() -> None:
    detector = Autoencoder(epochs=1)
    model = fitted(detector)
    x = torch.from_numpy(np.stack([f.pixels for f in _frames(model)]))
    features = detector.standard(detector.extractor.layers(x)[0])
    assert features.mean((0, 2, 3)).abs().max() < 0.02
    assert (features.std((0, 2, 3)) - 1).abs().max() < 0.05
    loss = detector.training_step(StepBatch(x, torch.ones(len(x), 64, 64, dtype=torch.bool)))["perceptual"]
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in detector.autoencoder.decoder.parameters())
    assert all(p.grad is None for p in detector.extractor.backbone.network.parameters())  # type: ignore[union-attr]


def _frames(model: FittedModel) -> list:
    from anomalib_med.datasets.folder import discover
    from anomalib_med.preprocessing import Frames

    return list(Frames(discover(NORMALS), model.preprocessing))
