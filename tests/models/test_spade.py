from pathlib import Path

import numpy as np
import pytest
import torch

from anomalib_med import Preprocessing, fit
from anomalib_med.datasets import discover
from anomalib_med.errors import FitError
from anomalib_med.evaluation import image_auroc
from anomalib_med.models.memory_bank.spade import Spade
from tests.conftest import normal_picture

NORMALS = np.stack([normal_picture(i) for i in range(16)])
SMALL = Preprocessing(size=64)


def fitted(**settings: object) -> Spade:
    detector = fit(Spade(**settings), NORMALS, preprocessing=SMALL, calibration=0, device="cpu").detector
    assert isinstance(detector, Spade)
    return detector


def inputs(count: int = 3, shape: tuple[int, int] = (64, 64)) -> torch.Tensor:
    return torch.rand(count, 1, *shape, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("standardise", [True, False])
def test_scores_are_mean_distances_to_the_nearest_descriptions(standardise: bool) -> None:
    detector, x = fitted(neighbours=3, standardise=standardise), inputs()
    tensors, _ = detector.state()
    normals = tensors["described"].double()
    scale = normals.std(0) if standardise else torch.ones(normals.shape[1], dtype=torch.float64)
    cells = detector.features(x).double().flatten(2)
    described = torch.cat([cells.mean(2), cells.std(2, correction=0)], 1)
    valid = torch.ones(3, 64, 64, dtype=torch.bool)
    expected = torch.cdist(described / scale, normals / scale).sort(1).values[:, :3].mean(1)
    found = detector.image_score(x, detector.anomaly_map(x), valid)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_only_the_valid_area_counts() -> None:
    detector, x = fitted(), inputs()
    valid = torch.ones(3, 64, 64, dtype=torch.bool)
    half = valid.clone()
    half[:, :, 32:] = False
    maps = detector.anomaly_map(x)
    assert not torch.equal(detector.image_score(x, maps, valid), detector.image_score(x, maps, half))


def test_maps_are_distances_to_patches_within_the_window_of_the_nearest_normals() -> None:
    detector, x = fitted(neighbours=2, window=1), inputs(1, (80, 64))  # the shape of the normals
    grid = detector.features(x)[0].double()
    patches = detector.state()[0]["patches"].double()
    normals = patches.reshape(len(NORMALS), *grid.shape[1:], -1).permute(0, 3, 1, 2)
    grids = [grid, *normals]
    described = torch.stack([torch.cat([g.mean((1, 2)), g.std((1, 2), correction=0)]) for g in grids])
    scale = detector.state()[0]["described"].double().std(0)
    nearest = ((described[1:] - described[0]) / scale).norm(dim=1).topk(2, largest=False).indices
    height, width = grid.shape[1:]
    expected = torch.full((height, width), torch.inf, dtype=torch.float64)
    for i in nearest.tolist():
        normal = normals[i]
        for r in range(height):
            for c in range(width):
                for y in range(max(0, r - 1), min(height, r + 2)):
                    for z in range(max(0, c - 1), min(width, c + 2)):
                        expected[r, c] = min(expected[r, c], float((grid[:, r, c] - normal[:, y, z]).norm()))
    torch.testing.assert_close(detector.anomaly_map(x)[0].double(), expected, rtol=1e-4, atol=1e-4)


def test_a_normal_that_it_was_fitted_on_has_an_empty_map() -> None:
    model = fit(Spade(neighbours=1), NORMALS, preprocessing=SMALL, calibration=0, device="cpu")
    for result in model.score(NORMALS[:3]):
        assert result.grid is not None
        assert result.grid.max() < 1e-3
        assert result.score < 1e-3


def test_the_budget_bounds_patches_but_not_scores() -> None:
    cells, channels = 10 * 8, 128
    few, all_ = fitted(max_bank_mb=5 * cells * channels * 2 / 2**20), fitted()
    assert few.state()[0]["patches"].shape == (5 * cells, channels)
    assert torch.equal(few.state()[0]["described"], all_.state()[0]["described"])
    assert len(all_.state()[0]["grids"]) == len(NORMALS)


def test_images_of_other_shapes_are_compared_place_by_place() -> None:
    detector = fitted()
    maps = detector.anomaly_map(inputs(2, (48, 96)))
    assert maps.shape == (2, 6, 12)
    assert torch.isfinite(maps).all()


def test_scoring_before_fitting_is_an_error() -> None:
    with pytest.raises(FitError, match="not fitted"):
        Spade().anomaly_map(inputs(1))


@pytest.mark.real
def test_pneumonia_of_children_is_found(real_data: Path) -> None:
    model = fit(Spade(), discover(real_data / "zhanglab_cxr/train/normal")[::4], device="cpu")
    test = real_data / "zhanglab_cxr/test"
    samples = [s for kind in ("normal", "bacteria", "virus") for s in discover(test / kind)[::3]]
    labels = [int("IM-" not in s.id) for s in samples]
    assert image_auroc(labels, model.score(samples).scores) > 0.9
