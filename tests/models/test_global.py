"""The detectors that compare whole images: knn and mahalanobis."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf

from anomalib_med import Detector, Preprocessing, fit
from anomalib_med.datasets import discover
from anomalib_med.errors import FitError
from anomalib_med.evaluation import image_auroc
from anomalib_med.models.memory_bank.description import describe
from anomalib_med.models.memory_bank.global_knn import GlobalKNN
from anomalib_med.models.memory_bank.mahalanobis import Mahalanobis, ledoit_wolf
from tests.conftest import normal_picture

NORMALS = np.stack([normal_picture(i) for i in range(24)])
BOTH = pytest.mark.parametrize("kind", [GlobalKNN, Mahalanobis])


def fitted(kind: type[Detector], **settings: object) -> Detector:
    return fit(kind(**settings), NORMALS, preprocessing=Preprocessing(size=64), calibration=0, device="cpu").detector


def inputs(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 1, 64, 64, generator=torch.Generator().manual_seed(5))


def described(detector: Detector, x: torch.Tensor) -> torch.Tensor:
    return torch.stack([describe(grid.flatten(1)) for grid in detector.features(x)]).double()


EVERYWHERE = torch.ones(3, 64, 64, dtype=torch.bool)


@pytest.mark.parametrize("standardise", [True, False])
def test_knn_scores_are_mean_distances_to_the_nearest_descriptions(standardise: bool) -> None:
    detector, x = fitted(GlobalKNN, neighbours=3, standardise=standardise), inputs()
    normals = detector.state()[0]["described"].double()
    scale = normals.std(0) if standardise else torch.ones(normals.shape[1], dtype=torch.float64)
    expected = torch.cdist(described(detector, x) / scale, normals / scale).sort(1).values[:, :3].mean(1)
    found = detector.image_score(x, detector.anomaly_map(x), EVERYWHERE)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_mahalanobis_scores_are_those_of_scikit_learn() -> None:
    x, new = torch.rand(40, 1, 64, 64, generator=torch.Generator().manual_seed(1)), inputs()
    detector = Mahalanobis()

    class Normals:
        def __len__(self) -> int:
            return len(x)

        def batches(self, size: int) -> list["Normals.Batch"]:
            return [Normals.Batch(part) for part in x.split(7)]

        class Batch:
            def __init__(self, part: torch.Tensor) -> None:
                self.x, self.valid = part, torch.ones(len(part), 64, 64, dtype=torch.bool)

    detector.fit(Normals())
    normals = described(detector, x)
    scale = normals.std(0)
    reference = LedoitWolf().fit(normals / scale)
    expected = reference.mahalanobis(described(detector, new) / scale) ** 0.5
    found = detector.image_score(new, detector.anomaly_map(new), EVERYWHERE)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_ledoit_wolf_is_that_of_scikit_learn() -> None:
    samples = np.random.default_rng(0).normal(size=(30, 50)) * np.linspace(0.1, 3, 50)
    centred = torch.from_numpy(samples - samples.mean(0))
    np.testing.assert_allclose(ledoit_wolf(centred), LedoitWolf().fit(samples).covariance_, rtol=1e-8, atol=1e-12)


@BOTH
def test_the_mean_of_a_map_is_the_score(kind: type[Detector]) -> None:
    detector, x = fitted(kind), inputs()
    maps = detector.anomaly_map(x)
    torch.testing.assert_close(maps.mean((1, 2)), detector.image_score(x, maps, EVERYWHERE), rtol=1e-3, atol=1e-3)


@BOTH
def test_only_the_valid_area_counts(kind: type[Detector]) -> None:
    detector, x = fitted(kind), inputs()
    half = EVERYWHERE.clone()
    half[:, :, 32:] = False
    maps = detector.anomaly_map(x)
    assert not torch.equal(detector.image_score(x, maps, EVERYWHERE), detector.image_score(x, maps, half))


@BOTH
def test_a_constant_number_does_not_make_a_score_infinite(kind: type[Detector]) -> None:
    copies = np.stack([normal_picture(0)] * 8)
    model = fit(kind(), copies, preprocessing=Preprocessing(size=64), calibration=0, device="cpu")
    assert np.isfinite(model.score(NORMALS[:3]).scores).all()


@BOTH
def test_scoring_before_fitting_is_an_error(kind: type[Detector]) -> None:
    with pytest.raises(FitError, match="not fitted"):
        kind().anomaly_map(inputs(1))


@BOTH
@pytest.mark.real
def test_pneumonia_of_children_is_found(kind: type[Detector], real_data: Path) -> None:
    model = fit(kind(), discover(real_data / "zhanglab_cxr/train/normal")[::4], device="cpu")
    test = real_data / "zhanglab_cxr/test"
    samples = [s for group in ("normal", "bacteria", "virus") for s in discover(test / group)[::3]]
    labels = [int("IM-" not in s.id) for s in samples]
    assert image_auroc(labels, model.score(samples).scores) > 0.88
