"""What the memory banks promise of inputs at several scales."""

from pathlib import Path

import numpy as np
import pytest

from anomalib_med import FittedModel, Preprocessing, detectors, fit, load, merge_models
from anomalib_med.errors import ConfigError
from anomalib_med.evaluation import pixel_auroc
from anomalib_med.models.base import BankConfig
from anomalib_med.phantoms import add_lesion, chest_phantom
from tests.cli.command import anomed
from tests.conftest import normal_picture
from tests.made_up_files import write_pictures

NORMALS = np.stack([normal_picture(i) for i in range(12)])
FAMILY = [
    name
    for name, detector in detectors().items()
    if issubclass(detector.Config, BankConfig) and detector.__module__.startswith("anomalib_med.")
]


def fitted(name: str, normals: np.ndarray = NORMALS, size: int = 64, **options: object) -> FittedModel:
    settings = {"bank_size": 300} if "bank_size" in detectors()[name].Config.model_fields else {}
    detector = detectors()[name](scales=(1, 0.5), **settings)
    return fit(detector, normals, preprocessing=Preprocessing(size=size), device="cpu", **options)


def test_the_whole_family_has_scales() -> None:
    assert {"twoview", "patchcore", "spade", "padim", "knn", "mahalanobis", "anomalydino"} == set(FAMILY)


@pytest.mark.parametrize("name", FAMILY)
def test_a_model_of_two_scales_finds_lesions_is_saved_and_does_not_depend_on_the_cache(
    name: str, tmp_path: Path
) -> None:
    phantoms = [chest_phantom(seed, 128) for seed in range(32)]
    images = np.stack([phantom.pixels for phantom in phantoms])
    drawn = [
        add_lesion(image, phantom.lungs, "foreign", np.random.default_rng(seed))
        for seed, (image, phantom) in enumerate(zip(images[24:], phantoms[24:], strict=True))
    ]
    diseased, masks = np.stack([pixels for pixels, _ in drawn]), [mask for _, mask in drawn]
    model = fitted(name, images[:24], 128)
    scores = model.score(diseased)
    difference = list(np.abs(diseased - images[:24].mean(0)))
    assert pixel_auroc(masks, list(scores.maps)) > pixel_auroc(masks, difference)
    again = load(model.save(tmp_path / "model"), device="cpu")
    assert again.detector.config == model.detector.config
    assert again.score(diseased).scores.tolist() == scores.scores.tolist()
    cached = fitted(name, images[:24], 128, cache=tmp_path / "cache")
    assert cached.fingerprint() == model.fingerprint()
    assert cached.score(diseased).scores.tolist() == scores.scores.tolist()


def test_models_of_other_scales_are_not_merged() -> None:
    both, one = fitted("patchcore"), fit("patchcore", NORMALS, preprocessing=Preprocessing(size=64), device="cpu")
    with pytest.raises(ConfigError, match="scales"):
        merge_models(both, one, device="cpu")


@pytest.mark.parametrize("scales", [(), (0,), (-1.0,), (5,), "half"])
def test_scales_that_make_no_sense_are_refused(scales: object) -> None:
    with pytest.raises(ConfigError, match='option "scales'):
        detectors()["patchcore"](scales=scales)


def test_scales_are_set_on_the_command_line_and_shown(tmp_path: Path) -> None:
    write_pictures(tmp_path / "normals", 8)
    result = anomed(
        "fit", tmp_path / "normals", "-o", tmp_path / "model", "-m", "knn", "-s", "scales=1,0.5", "--size", "64"
    )
    assert result.code == 0, result.err
    assert load(tmp_path / "model").describe()["detector"]["settings"]["scales"] == [1.0, 0.5]  # type: ignore[index,call-overload]
