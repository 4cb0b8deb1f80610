"""Maps and masks made from a seed, the same wherever they are made: for values of other implementations."""

from collections.abc import Iterator

import numpy as np


def made_up_pairs(name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Twelve maps of 48 x 64 and their masks; every fourth image is normal.

    `name` is "noise" (no ties), "ties" (eight values) or "smooth" (lesions stand out a little).
    """
    rng = np.random.default_rng(12)
    for i in range(12):
        mask = np.zeros((48, 64), np.uint8)
        for _ in range(0 if i % 4 == 3 else 1 + i % 3):
            y, x, h, w = rng.integers(0, 38), rng.integers(0, 52), rng.integers(2, 10), rng.integers(2, 12)
            mask[y : y + h, x : x + w] = 1
        map = rng.random((48, 64))
        if name == "ties":
            map = np.floor(map * 8 + mask)
        if name == "smooth":
            map = (map + np.roll(map, 1, 0) + np.roll(map, 1, 1) + np.roll(map, 2, 0)) / 4 + 0.2 * mask
        yield map.astype(np.float32), mask
