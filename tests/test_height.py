"""Slices are compared with normal slices of their own height."""

from pathlib import Path

import numpy as np
import pytest

from anomalib_med import FittedModel, Preprocessing, Sample, detectors, fit, load
from anomalib_med.datasets.folder import discover
from anomalib_med.errors import ConfigError
from tests.cli.command import anomed
from tests.made_up_series import chest_volume, write_series

pytestmark = pytest.mark.filterwarnings("ignore:.*held out")

SLICES, LOW, HIGH = 12, 2, 9
NAMES = [name for name, kind in detectors().items() if kind.uses_height and kind.__module__.startswith("anomalib_med.")]


def volume(seed: int, *at: int) -> np.ndarray:
    """A chest with a dense block in the left lung of some slices."""
    hu = chest_volume(seed, SLICES, 96)
    for k in at:
        hu[k, 40:56, 24:36] = 60
    return hu


def write(folder: Path, name: str, hu: np.ndarray) -> list[Sample]:
    tags = {"SeriesInstanceUID": f"1.2.{name}", "StudyInstanceUID": f"1.3.{name}", "PatientID": name}
    write_series(folder / name, hu, spacing=(5, 3.6, 3.6), **tags)
    return discover(folder / name)


@pytest.fixture(scope="module")
def normals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("normals")
    for i in range(6):
        write(root, str(i), volume(i, LOW - 1, LOW, LOW + 1))
    return root


def fitted(name: str, normals: Path, height: str) -> FittedModel:
    settings = Preprocessing(size=96, height=height, windows=("lung",))
    return fit(detectors()[name](bank_size=1500), normals, calibration=0.34, preprocessing=settings, device="cpu")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_normal_at_one_height_is_found_at_another(name: str, normals: Path, tmp_path: Path) -> None:
    normal, planted = (write(tmp_path, f"9{i}", volume(50, LOW, *at)) for i, at in enumerate([(), (HIGH,)]))
    rises = {}
    for height in ("none", "volume", "lung"):
        model = fitted(name, normals, height)
        before, after = (model.score(samples) for samples in (normal, planted))
        rises[height] = after.scores[HIGH] - before.scores[HIGH], np.ptp(before.scores)
        if height != "none":
            rise = np.unravel_index(int(np.argmax(after.maps[HIGH] - before.maps[HIGH])), (96, 96))
            assert 36 <= rise[0] < 60
            assert 20 <= rise[1] < 40
            assert int(np.argmax(after.scores)) == HIGH
            assert after.scores[HIGH] > before.scores.max()
    assert rises["volume"][0] > 3 * max(rises["none"][0], 0)
    assert rises["lung"][0] > 3 * max(rises["none"][0], 0)


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded_and_in_any_order_scores_are_bit_equal(name: str, normals: Path, tmp_path: Path) -> None:
    model = fitted(name, normals, "volume")
    samples = write(tmp_path, "8", volume(60, LOW))
    expected = model.score(samples)
    again = load(model.save(tmp_path / "model"), device="cpu")
    assert again.preprocessing.height == "volume"
    assert again.fingerprint() == model.fingerprint()
    assert again.score(samples).scores.tolist() == expected.scores.tolist()
    assert again.score(samples[::-1]).scores[::-1].tolist() == expected.scores.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_a_slice_of_unknown_height_is_compared_with_all_heights(name: str, normals: Path) -> None:
    model = fitted(name, normals, "volume")
    picture = volume(70, LOW)[[LOW, HIGH]]
    scores = model.score(picture)
    assert np.isfinite(scores.scores).all()
    assert {result.area for result in scores.results} == {"body at unknown height"}


def test_normals_of_unknown_height_are_set_aside_and_other_detectors_refuse(normals: Path) -> None:
    settings = Preprocessing(size=96, height="volume", windows=("lung",))
    model = fit("patchcore", [*discover(normals), *discover(volume(1)[:2])], preprocessing=settings, device="cpu")
    assert len(model.failures) == 2
    with pytest.raises(ConfigError, match="one of patchcore, twoview"):
        fit("padim", normals, preprocessing=settings, device="cpu")


def test_the_command_line_has_the_same_names(normals: Path, tmp_path: Path) -> None:
    options = ("--height", "volume", "--slices", "3", "-s", "height=1.5", "--size", "64", "--device", "cpu")
    outcome = anomed("fit", normals, "-o", tmp_path / "model", *options)
    assert outcome.code == 0, outcome.err
    model = load(tmp_path / "model", device="cpu")
    assert (model.preprocessing.height, model.preprocessing.slices) == ("volume", 3)
    assert model.detector.config.model_dump()["height"] == 1.5
    outcome = anomed("score", tmp_path / "model", normals / "0", "-o", tmp_path / "out", "--maps", "dicom")
    assert outcome.code == 0, outcome.err
    refused = anomed("fit", normals, "-o", tmp_path / "other", "--slices", "2")
    assert refused.code == 2
    assert "odd number" in refused.err
