"""Lung fields without a network: right on phantoms and real slices, honest and without an error on everything else."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from anomalib_med.datasets.folder import discover
from anomalib_med.datasets.readers import read
from anomalib_med.errors import ConfigError, ReadError
from anomalib_med.phantoms.ct import ct_slice_phantom
from anomalib_med.preprocessing import Frames, Preprocessing, prepare, register_area
from anomalib_med.preprocessing.areas import find_area
from anomalib_med.preprocessing.lungs import lung_field
from anomalib_med.records import Frame, Image, Sample
from tests.made_up_files import write_table

LUNG = Preprocessing(size=128, windows=("lung",), valid="lung")


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def chest(lungs: str = "both") -> tuple[np.ndarray, np.ndarray]:
    """A body with two round lungs, a trachea and a table, 1 mm pixels; and where the lungs are."""
    y, x = np.mgrid[:300, :400].astype(np.float32)
    hu = np.full((300, 400), -1000.0, np.float32)
    hu[280:284] = 200  # table
    hu[((x - 200) / 170) ** 2 + ((y - 140) / 125) ** 2 < 1] = 30
    left = ((x - 115) / 55) ** 2 + ((y - 140) / 85) ** 2 < 1
    right = ((x - 285) / 55) ** 2 + ((y - 140) / 85) ** 2 < 1
    field = (left | right) if lungs == "both" else left
    hu[field] = -840
    hu[(x - 200) ** 2 + (y - 110) ** 2 < 9**2] = -990  # trachea
    rng = np.random.default_rng(0)
    return hu + rng.normal(0, 15, hu.shape).astype(np.float32), field


def test_the_lungs_are_found_without_trachea_and_without_the_air_around_the_body() -> None:
    hu, field = chest()
    mask, problem = lung_field(hu, (1, 1), hounsfield=True)
    assert mask is not None, problem
    assert dice(mask, field) > 0.97
    assert not mask[100:120, 190:210].any()
    assert not mask[:10].any()


def test_a_nodule_at_the_pleura_and_one_inside_belong_to_the_lung() -> None:
    hu, field = chest()
    nodules = np.zeros(hu.shape, np.uint8)
    cv2.circle(nodules, (66, 140), 6, 1, -1)
    cv2.circle(nodules, (290, 150), 20, 1, -1)
    inside = (nodules > 0) & field
    hu[inside] = 40
    mask, _ = lung_field(hu, (1, 1), hounsfield=True)
    assert mask is not None
    assert mask[inside].mean() > 0.97


@pytest.mark.parametrize("seed", range(6))
def test_the_lungs_of_phantoms_are_found(seed: int) -> None:
    phantom = ct_slice_phantom(seed, 256)
    mask, problem = lung_field(phantom.pixels, None, hounsfield=True)
    assert mask is not None, problem
    assert dice(mask, phantom.lungs) > 0.9


def test_one_lung_alone_is_not_trusted() -> None:
    mask, problem = lung_field(chest("left")[0], (1, 1), hounsfield=True)
    assert mask is None
    assert "one side only" in problem


def test_grey_pictures_with_dark_lungs_work_too() -> None:
    hu, field = chest()
    mask, _ = lung_field(np.clip((hu + 1350) / 1500 * 255, 0, 255), (1, 1), hounsfield=False)
    assert mask is not None
    assert dice(mask, field) > 0.97


@pytest.mark.parametrize("seed", range(40))
def test_noise_of_any_size_raises_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    noise = rng.normal(-500, 10 ** rng.uniform(0, 4), tuple(rng.integers(1, 90, 2))).astype(np.float32)
    area = find_area("lung", noise, None, hounsfield=bool(seed % 2))
    assert area.mask.shape == noise.shape
    assert area.mask.any()


@pytest.mark.parametrize("value", [-1000.0, 0.0, 40.0])
def test_a_slice_without_lung_falls_back_to_the_body_and_says_so(value: float) -> None:
    hu, _ = chest()
    hu[hu > -900] = value
    area = find_area("lung", np.where(hu > -900, 40, hu), (1, 1), hounsfield=True)
    assert area.status.startswith("body: ")
    assert area.mask.mean() > 0.3


def test_the_frame_says_what_was_looked_at() -> None:
    hu, field = chest()
    frame = prepare(Image(hu, Sample("a"), spacing=(1, 1), modality="CT"), LUNG)
    assert frame.area == "lung"
    small = cv2.resize(field.astype(np.float32), frame.valid.shape[::-1], interpolation=cv2.INTER_AREA) > 0.5
    assert dice(frame.valid, small) > 0.95
    assert prepare(Image(hu, Sample("a"), modality="CT"), Preprocessing(windows=("lung",))).area == "body"
    assert prepare(Image(hu, Sample("a"), modality="CT"), Preprocessing(windows=("lung",), valid="all")).area == "all"
    assert prepare(Image(hu, Sample("a"), modality="DX"), Preprocessing(windows=("percentile",))).area == "borders"


def test_a_mask_file_in_the_table_replaces_it(tmp_path: Path) -> None:
    hu, _ = chest()
    np.save(tmp_path / "a.npy", hu)
    own = np.zeros(hu.shape, np.uint8)
    own[50:150, 60:120] = 255
    cv2.imwrite(str(tmp_path / "own.png"), own)
    cv2.imwrite(str(tmp_path / "wrong.png"), own[:20])
    cv2.imwrite(str(tmp_path / "nothing.png"), 0 * own)
    rows = ["a.npy,1,own.png", "a.npy,2,wrong.png", "a.npy,3,nothing.png"]
    frames = Frames([], LUNG)
    found = []
    for row in rows:
        (sample,) = discover(write_table(tmp_path / "t.csv", "path,id,area", row))
        frames.samples = [sample]
        found.append(next(iter(frames.outcomes()))[1])
    first, second, third = found
    assert isinstance(first, Frame)
    assert first.area == "own"
    rows_in, columns_in = np.nonzero(first.valid)
    height, width = first.valid.shape
    np.testing.assert_allclose([rows_in.min() / height, columns_in.max() / width], [50 / 300, 120 / 400], atol=0.01)
    assert isinstance(second, ReadError)
    assert "wrong.png" in str(second)
    assert isinstance(third, Frame)
    assert third.area == "all: the mask is empty"


def test_a_function_of_the_users_replaces_it() -> None:
    hu, _ = chest()
    image = Image(hu, Sample("a"), spacing=(1, 1), modality="CT")
    with pytest.raises(ValueError, match="register_area"):
        Preprocessing(valid="test-dense")
    register_area("test-dense", lambda pixels, spacing: pixels > -200)
    frame = prepare(image, Preprocessing(size=128, windows=("lung",), valid="test-dense"))
    assert frame.area == "test-dense"
    assert 0.2 < frame.valid.mean() < 0.5
    register_area("test-none", lambda pixels, spacing: np.zeros_like(pixels))
    assert prepare(image, Preprocessing(windows=("lung",), valid="test-none")).area == "body: test-none found nothing"
    register_area("test-odd", lambda pixels, spacing: pixels[:3])
    with pytest.raises(ReadError, match="test-odd gave a mask"):
        prepare(image, Preprocessing(windows=("lung",), valid="test-odd"))
    with pytest.raises(ConfigError, match="built in"):
        register_area("lung", lambda pixels, spacing: pixels)


@pytest.mark.real
def test_the_lungs_of_real_slices_are_found_and_an_abdomen_and_heads_are_refused_or_taken_whole(
    real_data: Path,
) -> None:
    samples = real_data / "reader_samples"
    for sample in discover(samples / "ct_dicom_series") + discover(samples / "ct_dicom_slices"):
        image = read(sample)
        mask, problem = lung_field(image.pixels, image.spacing, hounsfield=True)
        assert mask is not None, f"{sample.id}: {problem}"
        assert 0.1 < mask.mean() < 0.4
    (abdomen,) = discover(samples / "ct_dicom_bigendian_abdomen")
    frame = prepare(read(abdomen), LUNG)
    assert frame.area == "body: no lung field found"
    for sample in discover(samples / "nifti/brats_pat0002_flair.nii.gz")[::10]:
        image = read(sample)
        if np.ptp(image.pixels) > 0:
            assert prepare(image, LUNG).valid.any()
