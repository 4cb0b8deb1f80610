"""The exposed field of a radiograph: borders and markers out, lungs in."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from anomalib_med.phantoms import chest_phantom
from anomalib_med.preprocessing import Preprocessing, prepare
from anomalib_med.preprocessing.exposed import SIDE, exposed_field
from anomalib_med.records import Image, Sample

SIZE = 512


def radiograph(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A phantom from 0 to 230 and its lungs."""
    phantom = chest_phantom(seed, SIZE)
    pixels = phantom.pixels.astype(np.float32)
    return 10 + 220 * (pixels - pixels.min()) / np.ptp(pixels), phantom.lungs


def marked(pixels: np.ndarray, *texts: tuple[str, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The image with bright letters, and where they are."""
    letters = np.zeros(pixels.shape, np.uint8)
    for text, row, column in texts:
        cv2.putText(letters, text, (column, row), cv2.FONT_HERSHEY_SIMPLEX, 0.8, 255, 2)
    return np.where(letters > 0, 255, pixels).astype(np.float32), letters > 0


def collimated(pixels: np.ndarray, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """The image behind shutters that are turned, and where they are."""
    turn = cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), degrees, 1.0)
    open_field = np.zeros(pixels.shape, np.float32)
    open_field[16:-16, 20:-20] = 1
    shut = cv2.warpAffine(open_field, turn, (SIZE, SIZE)) < 0.5
    noise = np.random.default_rng(0).normal(0, 0.5, pixels.shape)
    return np.where(shut, 1 + noise, pixels).astype(np.float32), shut


@pytest.mark.parametrize("seed", range(8))
def test_turned_shutters_and_letters_are_left_out_and_the_lungs_stay(seed: int) -> None:
    pixels, lungs = radiograph(seed)
    pixels, shut = collimated(pixels, (-4, -2, 0, 3)[seed % 4])
    pixels, letters = marked(pixels, ("L", 70, 440), ("AP", 64, 44))
    mask, problem = exposed_field(pixels)
    assert problem == ""
    assert mask[shut].mean() < 0.06
    assert mask[letters].mean() < 0.3
    assert mask[lungs & ~shut].mean() > 0.999


@pytest.mark.parametrize("seed", range(8))
def test_of_an_image_without_borders_and_letters_nothing_of_the_patient_is_lost(seed: int) -> None:
    pixels, lungs = radiograph(seed + 100)
    mask, _ = exposed_field(pixels)
    assert mask[lungs].all()
    assert mask.mean() > 0.8


def test_a_dense_nodule_and_black_lungs_at_the_edge_of_the_frame_stay() -> None:
    pixels, lungs = radiograph(3)
    rows, columns = np.nonzero(lungs)
    row, column = int(rows[np.argmin(columns)]), int(columns.min()) + 12
    cv2.circle(pixels, (column, row), 12, 255, -1)
    cv2.GaussianBlur(pixels, (0, 0), 2, dst=pixels)
    assert exposed_field(pixels)[0][row - 12 : row + 13, column - 12 : column + 13].all()
    black = np.where(lungs, 0, pixels).astype(np.float32)
    assert exposed_field(black)[0][lungs].all()


def test_where_the_field_would_be_too_small_flat_borders_alone_are_left_out() -> None:
    pixels = np.zeros((SIZE, SIZE), np.float32)
    pixels[240:280, 300:] = np.random.default_rng(0).uniform(0, 255, (40, SIZE - 300))
    mask, problem = exposed_field(pixels)
    frame = prepare(Image(pixels, Sample("a")), Preprocessing(windows=((0.0, 255.0),), valid="exposed"))
    assert mask.any()
    assert problem == "" or frame.area.startswith("borders: ")
    assert exposed_field(np.ones((64, 64), np.float32))[1] == "the image has no contrast"


def test_the_frame_has_the_field_at_the_size_of_the_input() -> None:
    pixels, lungs = radiograph(1)
    pixels, _ = collimated(pixels, 3)
    pixels, letters = marked(pixels, ("R", 70, 60))
    image = Image(pixels, Sample("a"))
    frame = prepare(image, Preprocessing(size=224, windows=((0.0, 255.0),), valid="exposed"))
    assert frame.area == "exposed"
    assert frame.valid.shape == (224, 224)
    small = cv2.resize(letters.astype(np.float32), (224, 224), interpolation=cv2.INTER_AREA) > 0.5
    assert frame.valid[small].mean() < 0.2
    assert frame.valid[cv2.resize(lungs.astype(np.uint8), (224, 224)) > 0].mean() > 0.99
    ct = prepare(Image(pixels * 4 - 900, Sample("b"), modality="CT"), Preprocessing(windows=("lung",), valid="exposed"))
    assert ct.area == "body"


@pytest.mark.parametrize("shape", [(20, 30), (300, 40), (64, 512)])
def test_noise_and_odd_shapes_raise_nothing(shape: tuple[int, int]) -> None:
    mask, _ = exposed_field(np.random.default_rng(0).normal(size=shape).astype(np.float32))
    assert mask.shape == shape
    assert mask.any()


@pytest.mark.real
def test_the_lungs_of_real_radiographs_stay(real_data: Path) -> None:
    lost = []
    for file in sorted((real_data / "covid_cxr_lesions/lungs").glob("*.png")):
        lungs = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
        pixels = cv2.imread(str(next((real_data / "covid_cxr_lesions/images").glob(f"{file.stem}.*"))), 0)
        side = min(1.0, SIDE / max(pixels.shape))
        small = cv2.resize(pixels, None, fx=side, fy=side, interpolation=cv2.INTER_AREA)
        mask, _ = exposed_field(small.astype(np.float32))
        inside = cv2.resize(lungs, small.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0
        lost.append(1 - mask[inside].mean())
    assert len(lost) == 100
    assert max(lost) < 0.02
    assert np.mean(lost) < 0.001
