import numpy as np
import pytest
import torch
from sklearn.covariance import OAS

from anomalib_med import Preprocessing, fit
from anomalib_med.errors import FitError
from anomalib_med.models.memory_bank.padim import FEWEST, PaDiM, PlaceSums, shrink
from tests.conftest import normal_picture

NORMALS = np.stack([normal_picture(i) for i in range(24)])
SMALL = Preprocessing(size=64, aspect="stretch")


def fitted(normals: np.ndarray = NORMALS, **settings: object) -> PaDiM:
    detector = fit(PaDiM(**settings), normals, preprocessing=SMALL, calibration=0, device="cpu").detector
    assert isinstance(detector, PaDiM)
    return detector


def inputs(count: int = 3, shape: tuple[int, int] = (64, 64)) -> torch.Tensor:
    return torch.rand(count, 1, *shape, generator=torch.Generator().manual_seed(5))


class Normals:
    """Training frames of given inputs and valid areas, a batch each."""

    def __init__(self, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return sum(len(x) for x, _ in self._batches)

    def batches(self, size: int) -> list["Normals.Batch"]:
        return [Normals.Batch(x, valid) for x, valid in self._batches]

    class Batch:
        def __init__(self, x: torch.Tensor, valid: torch.Tensor) -> None:
            self.x, self.valid = x, valid


def test_maps_are_mahalanobis_distances_to_the_gaussian_of_each_place() -> None:
    x, new = torch.rand(30, 1, 64, 64, generator=torch.Generator().manual_seed(1)), inputs()
    detector = PaDiM(dimensions=20, shrinkage="none", ridge=0.05)
    detector.fit(Normals([(part, torch.ones(len(part), 64, 64, dtype=torch.bool)) for part in x.split(7)]))
    channels = detector.state()[0]["basis"].argmax(0)
    normals, queries = (detector.features(images).double()[:, channels].flatten(2) for images in (x, new))
    covariances = [torch.cov(cell.T, correction=0) for cell in normals.unbind(2)]
    ridge = 0.05 * torch.stack([c.diagonal() for c in covariances]).mean() * torch.eye(20, dtype=torch.float64)
    for place, covariance in enumerate(covariances):
        centred = queries[:, :, place] - normals[:, :, place].mean(0)
        expected = (centred @ torch.linalg.inv(covariance + ridge) * centred).sum(1).sqrt()
        found = detector.anomaly_map(new).flatten(1)[:, place].double()
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_shrinkage_is_that_of_scikit_learn() -> None:
    samples = np.random.default_rng(0).normal(size=(3, 15, 8)) * np.linspace(1, 3, 8)
    covariances = torch.stack([torch.cov(torch.from_numpy(s).T, correction=0) for s in samples])
    found = shrink(covariances, torch.full((3,), 15.0, dtype=torch.float64))
    for sample, shrunk in zip(samples, found, strict=True):
        np.testing.assert_allclose(shrunk, OAS().fit(sample).covariance_, rtol=1e-10)


def test_sums_hold_the_same_moments_however_the_images_come_and_far_from_zero() -> None:
    features = 1000 + torch.randn(40, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    everywhere = torch.ones(40, 2, 2, dtype=torch.bool)
    whole, parts = (PlaceSums(3, 2, 2, torch.device("cpu")) for _ in range(2))
    whole.add(features, everywhere)
    for part in features.split(9):
        parts.add(part, everywhere[: len(part)])
    expected = torch.stack([torch.cov(cell.T, correction=0) for cell in features.flatten(2).unbind(2)])
    for sums in (whole, parts):
        torch.testing.assert_close(sums.gaussians(0)[1], expected, rtol=1e-6, atol=1e-8)


def test_what_lies_outside_the_valid_area_does_not_count() -> None:
    cells = torch.ones(24, 8, 8, dtype=torch.bool)
    cells[::2, :, :2] = False
    sums, features = PlaceSums(3, 8, 8, torch.device("cpu")), torch.randn(24, 3, 8, 8, dtype=torch.float64)
    poisoned = features.masked_fill(~cells[:, None], 1e6)
    sums.add(poisoned, cells)
    means, _, counts = sums.gaussians(0)
    assert counts.reshape(8, 8)[:, :2].eq(12).all()
    torch.testing.assert_close(means.reshape(8, 8, 3)[:, 0], features[1::2, :, :, 0].mean(0).permute(1, 0))


def test_a_place_that_few_normals_show_has_the_gaussian_of_all_places() -> None:
    features = torch.randn(20, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cells = torch.ones(20, 4, 4, dtype=torch.bool)
    cells[FEWEST - 1 :, 0, 0] = False
    sums = PlaceSums(3, 4, 4, torch.device("cpu"))
    sums.add(features, cells)
    counted = features.permute(0, 2, 3, 1)[cells]
    means, covariances, _ = sums.gaussians(0)
    torch.testing.assert_close(means[0], counted.mean(0))
    torch.testing.assert_close(covariances[0], torch.cov(counted.T, correction=0))
    torch.testing.assert_close(means[1], features[:, :, 0, 1].mean(0))


def test_reach_counts_the_cells_around_a_place() -> None:
    features = torch.randn(20, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sums = PlaceSums(3, 4, 4, torch.device("cpu"))
    sums.add(features, torch.ones(20, 4, 4, dtype=torch.bool))
    means, covariances, counts = sums.gaussians(1)
    corner = features[:, :, :2, :2].permute(0, 2, 3, 1).reshape(-1, 3)
    assert counts.reshape(4, 4)[1, 0] == 6 * 20
    torch.testing.assert_close(means[0], corner.mean(0))
    torch.testing.assert_close(covariances[0], torch.cov(corner.T, correction=0))


def test_principal_components_keep_what_varies_most() -> None:
    detector = fitted(reduction="pca", dimensions=10)
    basis = detector.state()[0]["basis"]
    torch.testing.assert_close(basis.T @ basis, torch.eye(10), rtol=1e-4, atol=1e-4)
    features = detector.features(inputs(1))[0].flatten(1).float()
    random = fitted(dimensions=10).state()[0]["basis"]
    assert ((basis.T @ features).var(1).sum()) > ((random.T @ features).var(1).sum())


def test_the_model_does_not_grow_with_the_normals() -> None:
    few, many = fitted(NORMALS[:12], dimensions=30).state()[0], fitted(dimensions=30).state()[0]
    assert {k: v.shape for k, v in few.items()} == {k: v.shape for k, v in many.items()}
    assert few["whitening"].shape == (64, 30 * 31 / 2)


def test_images_of_other_shapes_are_compared_at_the_same_relative_place() -> None:
    detector = fitted()
    assert detector.anomaly_map(inputs(2, (48, 96))).shape == (2, 8, 8)
    x = inputs(1)
    large = torch.nn.functional.interpolate(x, (128, 128), mode="nearest")
    assert torch.isfinite(detector.anomaly_map(large)).all()


def test_the_grid_is_the_most_common_one_of_the_normals() -> None:
    shapes = [(64, 64), (64, 80), (64, 80)]
    frames = Normals([(inputs(5, s), torch.ones(5, *s, dtype=torch.bool)) for s in shapes])
    detector = PaDiM()
    detector.fit(frames)
    assert detector.anomaly_map(inputs(1)).shape == (1, 8, 10)


def test_a_place_that_never_varies_gives_finite_distances() -> None:
    x = torch.zeros(12, 1, 64, 64)
    detector = PaDiM()
    detector.fit(Normals([(x, torch.ones(12, 64, 64, dtype=torch.bool))]))
    assert torch.isfinite(detector.anomaly_map(inputs())).all()


def test_scoring_before_fitting_is_an_error() -> None:
    with pytest.raises(FitError, match="not fitted"):
        PaDiM().anomaly_map(inputs(1))
    with pytest.raises(FitError, match="no normal image"):
        PaDiM().fit(Normals([]))
