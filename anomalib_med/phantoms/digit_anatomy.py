"""DigitAnatomy: nine digits in a grid stand for anatomy that repeats from patient to patient (Xiang et al., CVPR 2023).

A regeneration with the 8x8 digits bundled with scikit-learn, not the authors' files, which use MNIST: figures measured
on it are not comparable with published ones.
"""

from functools import cache
from typing import Literal

import cv2
import numpy as np
from sklearn.datasets import load_digits

from anomalib_med.errors import ConfigError
from anomalib_med.phantoms.drawing import Float, Mask, check_arguments

Split = Literal["train", "test"]

KINDS = ("missing", "misordered", "flipped", "zero")
CELL = 32
GRID = 3
_DIGIT = 28
_TEST_SHARE = 0.4
_MIRROR_ALIKE = (1, 8)  # these flip to near themselves


def digit_anatomy(seed: int, *, kind: str | None = None, split: Split = "train") -> tuple[Float, Mask]:
    """Draw one image: the digits 1 to 9, row by row, each cropped and scaled at random.

    Parameters
    ----------
    seed
        Not negative. The same arguments give the same pixels.
    kind
        None for a normal image; ``missing`` (one cell blank), ``misordered`` (two cells swapped), ``flipped`` (one
        digit other than 1 and 8 mirrored left-right), ``zero`` (a 0 in one cell).
    split
        Which of two disjoint sets of handwritten digits is drawn from, ``train`` or ``test``.

    Returns
    -------
    Pixels, float32 ``(96, 96)`` in [0, 1], and mask, bool ``(96, 96)``: the changed cells, none in a normal image.

    Raises
    ------
    ConfigError
        The seed is negative, or the kind or split is unknown.
    """
    check_arguments(seed)
    if kind is not None and kind not in KINDS:
        raise ConfigError(f"kind: {kind!r} is not one of {', '.join(KINDS)}; or give None for a normal image")
    if split not in ("train", "test"):
        raise ConfigError(f"split: {split!r} is not one of train, test")
    rng = np.random.default_rng([0xD161, seed])
    cells = [_cell(digit, split, rng) for digit in range(1, 10)]
    changed = _disturb(cells, kind, split, rng) if kind else ()
    marks = np.isin(np.arange(GRID * GRID), changed).reshape(GRID, GRID)
    grid = np.block([cells[row : row + GRID] for row in range(0, GRID * GRID, GRID)])
    return grid, np.kron(marks, np.ones((CELL, CELL), np.bool_)).astype(np.bool_)


def _disturb(cells: list[Float], kind: str, split: Split, rng: np.random.Generator) -> tuple[int, ...]:
    """Apply one anomaly to the cells in place; returns which cells changed."""
    if kind == "misordered":
        a, b = (int(i) for i in rng.choice(len(cells), 2, replace=False))
        cells[a], cells[b] = cells[b], cells[a]
        return a, b
    if kind == "flipped":
        index = int(rng.choice([i for i in range(9) if i + 1 not in _MIRROR_ALIKE]))
        cells[index] = cells[index][:, ::-1]
        return (index,)
    index = int(rng.integers(len(cells)))
    cells[index] = np.zeros_like(cells[index]) if kind == "missing" else _cell(0, split, rng)
    return (index,)


@cache
def handwriting(digit: int, split: Split) -> tuple[Float, ...]:
    """All handwritten examples of one digit in one split, ``(28, 28)`` each in [0, 1]."""
    source = load_digits()
    examples = source.images[source.target == digit]
    # The split is part of the data set: the same for every seed.
    order = np.random.default_rng([0xD161, 0, digit]).permutation(len(examples))
    held_out = round(_TEST_SHARE * len(examples))
    chosen = order[:held_out] if split == "test" else order[held_out:]
    images = (examples[i].astype(np.float32) / 16 for i in chosen)
    return tuple(np.clip(cv2.resize(i, (_DIGIT, _DIGIT), interpolation=cv2.INTER_CUBIC), 0, 1) for i in images)


def _cell(digit: int, split: Split, rng: np.random.Generator) -> Float:
    """One digit after torchvision's RandomResizedCrop(28, scale=(0.6, 1.3), ratio=(1, 1)), then 32 x 32."""
    examples = handwriting(digit, split)
    image = examples[int(rng.integers(len(examples)))]
    side, top, left = _DIGIT, 0, 0
    for _ in range(10):  # as torchvision: ten attempts, then the whole image
        attempt = round(_DIGIT * float(np.sqrt(rng.uniform(0.6, 1.3))))
        if attempt <= _DIGIT:
            side = attempt
            top, left = (int(v) for v in rng.integers(0, _DIGIT - side + 1, 2))
            break
    crop = cv2.resize(image[top : top + side, left : left + side], (_DIGIT, _DIGIT), interpolation=cv2.INTER_LINEAR)
    return np.asarray(cv2.resize(crop, (CELL, CELL), interpolation=cv2.INTER_LINEAR), np.float32)
