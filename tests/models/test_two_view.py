from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from anomalib_med import Preprocessing, fit
from anomalib_med.errors import FitError
from anomalib_med.evaluation import image_auroc
from anomalib_med.models.memory_bank.two_view import TwoView
from anomalib_med.models.memory_bank.whitening import shrinkage
from anomalib_med.models.pooling import pool
from anomalib_med.phantoms import add_lesion, chest_phantom
from anomalib_med.records import Progress, silent
from tests.conftest import normal_picture

NORMALS = torch.stack([torch.from_numpy(normal_picture(i, (64, 64))).float()[None] / 255 for i in range(20)])


@dataclass
class Batch:
    x: torch.Tensor
    valid: torch.Tensor
    patients: list[str]

    @property
    def heights(self) -> torch.Tensor:
        return torch.full((len(self.x),), torch.nan)


@dataclass
class Normals:
    """Normals of given patients, in batches of four."""

    patients: list[str]
    x: torch.Tensor = field(default_factory=lambda: NORMALS)
    progress: Progress = silent

    def __len__(self) -> int:
        return len(self.patients)

    def batches(self, size: int) -> Iterator[Batch]:
        for start in range(0, len(self), 4):
            rows = slice(start, min(start + 4, len(self)))
            x = self.x[rows]
            yield Batch(x, torch.ones(len(x), 64, 64, dtype=torch.bool), self.patients[rows])


def fitted(patients: list[str], kind: type[TwoView] = TwoView, **settings: object) -> TwoView:
    detector = kind(**{"bank_size": 100_000, **settings})
    detector.fit(Normals(patients))
    return detector


def whitened(patches: torch.Tensor, of: torch.Tensor, patients: int) -> torch.Tensor:
    """Patches of unit length after centring and whitening by others, whose covariance is shrunk."""
    covariance, identity = torch.cov(of.T, correction=0), torch.eye(of.shape[1])
    share = float(shrinkage(covariance[None], torch.tensor([patients]))[0])
    least = max(0.1, share)
    shrunk = (1 - least) * covariance + least * covariance.trace() / len(identity) * identity
    # Any square root of the inverse gives the same cosines.
    return F.normalize((patches - (1 - share) * of.mean(0)) @ torch.linalg.cholesky(shrunk.inverse()), dim=1)


def views(
    detector: TwoView, x: torch.Tensor, described: torch.Tensor, bank: torch.Tensor, normal: tuple[torch.Tensor, int]
) -> list[float]:
    """Both views of one image, with three neighbours; `normal` are patches to whiten by and how many patients'."""
    scale = detector.state()[0]["described"].double().std(0)
    grid = detector.features(x)[0]
    cells = grid.double().flatten(1)
    mean, deviation = cells.mean(1), cells.std(1, correction=0)
    z = (cells - mean[:, None]) / deviation[:, None]
    own = torch.cat([mean, deviation, (z**3).mean(1), (z**4).mean(1).log()])
    whole = ((described - own) / scale).norm(dim=1).sort().values[:3].mean()
    cosines = (1 - whitened(cells.T, *normal) @ whitened(bank, *normal).T).amin(1).reshape(grid.shape[1:])
    return [float(whole), float(pool(cosines[None], torch.ones(1, 64, 64, dtype=torch.bool), "power8")[0])]


@pytest.mark.parametrize(
    ("images", "most", "held_out"), [(1, 200, [1, 6, 11, 16]), (2, 200, [2, 3, 12, 13]), (1, 2, [1, 11])]
)
def test_score_is_the_sum_of_both_views_in_standard_deviations_of_held_out_patients(
    images: int, most: int, held_out: list[int]
) -> None:
    class Judging(TwoView):
        judged = most

    patients = [f"patient {row // images}" for row in range(20)]
    detector = fitted(patients, Judging, neighbours=3)
    described = detector.state()[0]["described"].double()
    patches = [detector.features(NORMALS[row][None])[0].double().flatten(1).T for row in range(20)]
    kept = [patches[row] for row in range(20) if row not in held_out]
    others = torch.cat(kept)
    normal = torch.cat([own[::7] for own in kept]), len(kept) // images
    own = []
    for row in held_out:
        strangers = [i for i in range(20) if patients[i] != patients[row]]
        own.append(views(detector, NORMALS[row][None], described[strangers], others, normal))
    mean, deviation = np.mean(own, 0), np.std(own, 0)
    x = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(3))
    found = float(detector.image_score(x, detector.anomaly_map(x), torch.ones(1, 64, 64, dtype=torch.bool))[0])
    # In the end the bank holds the patches of all.
    expected = (views(detector, x, described, torch.cat(patches), normal) - mean) / np.maximum(deviation, 0.1 * mean)
    assert found == pytest.approx(expected.sum(), rel=2e-3)


@pytest.mark.parametrize("patients", [["one"] * 20, ["one"]])
def test_normals_of_one_patient_are_enough(patients: list[str]) -> None:
    detector = fitted(patients)
    x = NORMALS[:2]
    assert detector.image_score(x, detector.anomaly_map(x), torch.ones(2, 64, 64, dtype=torch.bool)).isfinite().all()


def test_sees_a_lesion_and_a_change_of_the_whole_image() -> None:
    images = [chest_phantom(i).pixels for i in range(60)]
    model = fit("twoview", np.stack(images[:40]), preprocessing=Preprocessing(size=128), device="cpu")
    normal = model.score(np.stack(images[40:])).scores
    drawn = [chest_phantom(i) for i in range(40, 60)]
    lesions = [add_lesion(p.pixels, p.lungs, "foreign", np.random.default_rng(i))[0] for i, p in enumerate(drawn)]
    grain = np.random.default_rng(0)
    grainy = [image + 0.1 * np.ptp(image) * grain.standard_normal(image.shape) for image in images[40:]]
    labels = np.repeat([0, 1], 20)
    for changed in (lesions, grainy):
        assert image_auroc(labels, np.concatenate([normal, model.score(np.stack(changed)).scores])) > 0.7


def test_is_not_fitted_without_normals() -> None:
    with pytest.raises(FitError, match="no normal image"):
        TwoView().fit(Normals([]))
    with pytest.raises(FitError, match="not fitted"):
        TwoView().anomaly_map(NORMALS[:1])
