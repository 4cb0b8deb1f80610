"""What augmentation may do to a chest, and what it never does."""

import numpy as np
import pytest

from anomalib_med.phantoms import chest_phantom
from anomalib_med.preprocessing.augment import ChestAugmentation

SIDE = 96


@pytest.fixture(scope="module")
def augment() -> ChestAugmentation:
    return ChestAugmentation()


@pytest.fixture(scope="module")
def chest() -> np.ndarray:
    pixels = chest_phantom(0, SIDE).pixels.astype(np.float32)
    return ((pixels - pixels.min()) / np.ptp(pixels))[None]


WHOLE = np.ones((SIDE, SIDE), bool)


def likeness(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_it_never_flips_turns_or_crops(augment: ChestAugmentation, chest: np.ndarray) -> None:
    for seed in range(200):
        moved, valid = augment(chest, WHOLE, seed)
        assert moved.shape == chest.shape and moved.dtype == np.float32
        assert moved.min() >= 0 and moved.max() <= 1
        assert valid.all()
        own = likeness(moved, chest)
        others = [chest[:, :, ::-1], chest[:, ::-1], np.rot90(chest, axes=(1, 2)), np.rot90(chest, 2, axes=(1, 2))]
        assert own > 0.85 and own > max(likeness(moved, other) for other in others)


def test_a_point_moves_by_a_few_percent_at_most(augment: ChestAugmentation) -> None:
    y, x = np.mgrid[:SIDE, :SIDE]
    corner = np.exp(-((y - 12) ** 2 + (x - 12) ** 2) / 18).astype(np.float32)[None]  # where a centre crop would cut
    for seed in range(200):
        moved, _ = augment(corner, WHOLE, seed)
        row, column = np.unravel_index(moved[0].argmax(), moved[0].shape)
        assert abs(int(row) - 12) <= 0.09 * SIDE and abs(int(column) - 12) <= 0.09 * SIDE


def test_it_depends_on_its_seed_alone(augment: ChestAugmentation, chest: np.ndarray) -> None:
    first = augment(chest, WHOLE, 3)[0]
    others = [augment(chest, WHOLE, seed)[0] for seed in (1, 2)]
    assert np.array_equal(augment(chest, WHOLE, 3)[0], first)
    assert np.array_equal(ChestAugmentation()(chest, WHOLE, 3)[0], first)
    assert not any(np.array_equal(first, other) for other in others)


def test_the_valid_area_moves_with_the_pixels(augment: ChestAugmentation) -> None:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[20:70, 30:80] = True
    for seed in range(20):
        moved, valid = augment(np.where(mask, 0.8, 0.2).astype(np.float32)[None].repeat(3, 0), mask, seed)
        assert moved.shape == (3, SIDE, SIDE)
        assert ((moved[0] > 0.5) == valid).mean() > 0.98
