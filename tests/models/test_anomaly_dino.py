from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from anomalib_med import Preprocessing, fit, load
from anomalib_med.errors import ConfigError, FitError
from anomalib_med.evaluation import pixel_auroc
from anomalib_med.models.memory_bank.anomaly_dino import AnomalyDINO, in_view, valid_in_view
from anomalib_med.phantoms import add_lesion, chest_phantom
from anomalib_med.records import silent
from tests.conftest import abnormal_picture, normal_picture

NORMALS = np.stack([normal_picture(i) for i in range(12)])
SMALL = Preprocessing(size=64)
VIT = {"backbone": "vit_tiny_patch16_224", "weights": "random", "layers": "blocks.2"}


class Batch:
    def __init__(self, x: torch.Tensor, valid: torch.Tensor) -> None:
        self.x, self.valid = x, valid


class Normals:
    """Training frames of given inputs, five at a time."""

    progress = staticmethod(silent)

    def __init__(self, x: torch.Tensor, valid: torch.Tensor | None = None) -> None:
        self.x = x
        self.valid = torch.ones(len(x), *x.shape[2:], dtype=torch.bool) if valid is None else valid

    def __len__(self) -> int:
        return len(self.x)

    def batches(self, size: int) -> Iterator[Batch]:
        for x, valid in zip(self.x.split(5), self.valid.split(5), strict=True):
            yield Batch(x, valid)


def inputs(count: int, seed: int = 5, shape: tuple[int, int] = (64, 64)) -> torch.Tensor:
    return torch.rand(count, 1, *shape, generator=torch.Generator().manual_seed(seed))


def fitted(x: torch.Tensor, valid: torch.Tensor | None = None, **settings: object) -> AnomalyDINO:
    detector = AnomalyDINO(**settings)
    detector.fit(Normals(x, valid))
    return detector


def unit(features: torch.Tensor) -> torch.Tensor:
    """Patches of a batch ``(B, cells, D)``, of unit length, where both layers of radlite count alike."""
    layers = [F.normalize(layer, dim=1) for layer in features.double().split(64, dim=1)]
    return F.normalize(torch.cat(layers, 1), dim=1).flatten(2).transpose(1, 2)


def test_maps_are_cosine_distances_to_the_nearest_patch() -> None:
    normals, x = inputs(7), inputs(2, seed=6)
    detector = fitted(normals)
    bank = unit(detector.extractor(normals)).flatten(0, 1)
    expected = (1 - unit(detector.extractor(x)) @ bank.T).amin(2).reshape(2, 8, 8)
    torch.testing.assert_close(detector.anomaly_map(x).double(), expected, rtol=1e-2, atol=1e-4)


def test_the_mean_of_layers_is_taken_where_asked_for() -> None:
    normals, x = inputs(3), inputs(1, seed=6)
    detector = fitted(normals, fusion="mean")
    bank, query = (
        F.normalize(torch.stack(detector.extractor(images).double().split(64, dim=1)).mean(0), dim=1).flatten(2)
        for images in (normals, x)
    )
    expected = (1 - torch.einsum("dq,ndb->qnb", query[0], bank)).amin((1, 2)).reshape(8, 8)
    torch.testing.assert_close(detector.anomaly_map(x)[0].double(), expected, rtol=1e-2, atol=1e-4)
    with pytest.raises(ConfigError, match="layers of one width"):
        fitted(normals, fusion="mean", backbone="resnet18", weights="random")


def test_the_bank_holds_the_shots_asked_for() -> None:
    assert fitted(inputs(12), shots=3).state()[0]["bank"].shape == (3 * 64, 128)
    assert fitted(inputs(12), shots=50).state()[0]["bank"].shape == (12 * 64, 128)
    assert not torch.equal(
        fitted(inputs(12), shots=3, seed=0).state()[0]["bank"], fitted(inputs(12), shots=3, seed=1).state()[0]["bank"]
    )


def test_the_bank_and_the_pool_are_bounded() -> None:
    assert len(fitted(inputs(12), bank_size=100).state()[0]["bank"]) == 100
    budget = 12 * 10 * 128 * 2 / 2**20
    assert len(fitted(inputs(12), max_bank_mb=budget).state()[0]["bank"]) == 120


def test_patches_outside_the_valid_area_stay_out_of_the_bank() -> None:
    valid = torch.ones(4, 64, 64, dtype=torch.bool)
    valid[:, :, 32:] = False
    assert len(fitted(inputs(4), valid).state()[0]["bank"]) == 4 * 32


def test_views_of_the_normals_enter_the_bank() -> None:
    normals = inputs(3)
    detector = fitted(normals, support_views="mirror,rotate5,flip")
    assert len(detector.state()[0]["bank"]) > 3.8 * 3 * 64  # a turn leaves some corners empty
    for view in (normals.flip(3), normals.flip(2)):
        assert detector.anomaly_map(view).max() < 1e-3
        assert fitted(normals).anomaly_map(view).max() > 1e-2


def test_a_query_is_compared_with_normals_in_its_own_view() -> None:
    normals, x = inputs(6), inputs(2, seed=6)
    plain, both = fitted(normals), fitted(normals, query_views=("flip",))
    flipped = fitted(normals.flip(2)).anomaly_map(x.flip(2)).flip(1)
    torch.testing.assert_close(both.anomaly_map(x), (plain.anomaly_map(x) + flipped) / 2)
    assert set(both.state()[0]) == {"bank", "bank1"}


def test_clamp_raises_what_is_darker_than_the_mean_of_the_backbone() -> None:
    x = torch.tensor([0.1, 0.9]).reshape(1, 1, 1, 2)
    found = in_view(x, "clamp", torch.tensor([0.5]))
    torch.testing.assert_close(found, torch.tensor([0.5, 0.9]).reshape(1, 1, 1, 2))


def test_a_right_angle_turns_an_image_as_it_should() -> None:
    x = inputs(1)
    torch.testing.assert_close(in_view(x, "rotate90", torch.zeros(1)), x.rot90(1, (2, 3)), rtol=1e-3, atol=1e-3)
    valid = torch.ones(1, 60, 40, dtype=torch.bool)
    assert valid_in_view(valid, "rotate180").all()
    assert 0.9 < valid_in_view(valid, "rotate5").float().mean() < 1


def test_unknown_views_are_refused() -> None:
    with pytest.raises(ConfigError, match="is not a view: use mirror"):
        AnomalyDINO(support_views="upside")
    with pytest.raises(ConfigError, match="not a view of a query"):
        AnomalyDINO(query_views="rotate5")


def test_a_transformer_is_fitted_saved_and_loaded(tmp_path: Path) -> None:
    model = fit(AnomalyDINO(**VIT, shots=4, query_views="clamp"), NORMALS, preprocessing=SMALL, device="cpu")
    with pytest.warns(UserWarning, match="random weights"):
        again = load(model.save(tmp_path / "model"))
    images = np.stack([abnormal_picture(i)[0] for i in range(3)])
    assert np.array_equal(model.score(images).scores, again.score(images).scores)
    assert model.score(images)[0].grid.shape == (5, 4)


def test_one_bank_serves_several_kinds_of_images() -> None:
    upright = np.stack([chest_phantom(seed, 96).pixels for seed in range(12)])
    lying = upright.transpose(0, 2, 1)
    healthy = [chest_phantom(seed, 96) for seed in range(100, 108)]
    planted = [add_lesion(p.pixels, p.lungs, "foreign", np.random.default_rng(i)) for i, p in enumerate(healthy)]
    ill, masks = np.stack([pixels for pixels, _ in planted]), np.stack([mask for _, mask in planted])
    well = np.stack([p.pixels for p in healthy])
    one, both = (
        fit(AnomalyDINO(neighbourhood=1), normals, preprocessing=Preprocessing(size=96), calibration=0, device="cpu")
        for normals in (upright, np.concatenate([upright, lying]))
    )
    assert both.score(well.transpose(0, 2, 1)).scores.mean() < 0.8 * one.score(well.transpose(0, 2, 1)).scores.mean()
    assert pixel_auroc(list(masks), list(both.score(ill).maps)) > 0.75
    assert pixel_auroc(list(masks.transpose(0, 2, 1)), list(both.score(ill.transpose(0, 2, 1)).maps)) > 0.75


def test_fitting_nothing_and_scoring_before_fitting_are_errors() -> None:
    with pytest.raises(FitError, match="not fitted"):
        AnomalyDINO().anomaly_map(inputs(1))
    with pytest.raises(FitError, match="no normal image"):
        fitted(inputs(0))
