"""Writes synthetic data sets as folders of PNG files: healthy images to train on, healthy and abnormal ones to test."""

import csv
import json
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from anomalib_med.errors import ConfigError, OutputError
from anomalib_med.phantoms.chest import chest_phantom
from anomalib_med.phantoms.ct import CT_KINDS, add_ct_lesion, ct_slice_phantom
from anomalib_med.phantoms.digit_anatomy import KINDS as DIGIT_KINDS
from anomalib_med.phantoms.digit_anatomy import digit_anatomy
from anomalib_med.phantoms.drawing import Float, Mask
from anomalib_med.phantoms.lesions import KINDS as LESION_KINDS
from anomalib_med.phantoms.lesions import add_lesion

T = TypeVar("T")
Progress = Callable[[int, int], None]  # images written, images in all
Stored = NDArray[np.uint8] | NDArray[np.uint16]

CHEST_KINDS = ("nodule", "opacity", "effusion", "foreign")
STAMP = "dataset.json"
# Raised whenever the same seed would give other pixels: a folder of an older format is then not taken for complete.
FORMAT = 1
_COLUMNS = ("path", "patient", "label", "mask", "kind", "split", "seed")
_SEEDS_PER_GROUP = 100_000  # no group shares a seed with another, nor data set seed 0 with seed 1


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How one data set is made: a picture from a seed and a kind (None is healthy), ready to be stored."""

    name: str
    kinds: tuple[str, ...]
    draw: Callable[[int, str | None, str], tuple[Stored, Mask]]
    arguments: dict[str, int | str | list[str]]


def write_chest_dataset(
    root: Path | str,
    *,
    train: int = 120,
    normal: int = 40,
    abnormal: int = 40,
    size: int = 256,
    seed: int = 0,
    kinds: Sequence[str] = CHEST_KINDS,
    progress: Progress | None = None,
) -> None:
    """Write chest radiograph phantoms, 12 bits in the upper bits of 16-bit PNG.

    Under `root`: ``train/normal``, ``test/normal``, ``test/abnormal``, ``test/masks`` (8 bit, 255 inside the lesion,
    named as the abnormal image), ``manifest.csv`` (path, patient, label, mask, kind, split, seed) and the stamp
    ``dataset.json``. Every image is a patient of its own. The folder appears complete or not at all; where it is
    already complete with the same arguments nothing is written.

    Parameters
    ----------
    root
        New or empty folder.
    train, normal, abnormal
        Number of images to train on, healthy ones to test, abnormal ones to test; lesion kinds take turns.
    size
        Height and width in pixels.
    seed
        Not negative; another seed gives other patients.
    kinds
        From `lesions.KINDS`.
    progress
        Called with the number of images written and the number in all.

    Raises
    ------
    ConfigError
        Where a number or a kind makes no sense.
    OutputError
        Where `root` holds something else, or cannot be written.
    """
    check_kinds(kinds, LESION_KINDS)

    def draw(image_seed: int, kind: str | None, _: str) -> tuple[Stored, Mask]:
        phantom = chest_phantom(image_seed, size)
        pixels, mask = phantom.pixels, np.zeros_like(phantom.lungs)
        if kind is not None:
            pixels, mask = add_lesion(pixels, phantom.lungs, kind, np.random.default_rng([0x1E5, image_seed]))
        return _left_align(np.round(pixels * 4095)), mask

    arguments: dict[str, int | str | list[str]] = {"size": size, "kinds": list(kinds)}
    _write(Path(root), _Recipe("phantoms", tuple(kinds), draw, arguments), (train, normal, abnormal), seed, progress)


def write_ct_dataset(
    root: Path | str,
    *,
    train: int = 120,
    normal: int = 40,
    abnormal: int = 40,
    size: int = 256,
    seed: int = 0,
    kinds: Sequence[str] = CT_KINDS,
    progress: Progress | None = None,
) -> None:
    """Write CT-like chest slices as 16-bit PNG: Hounsfield units are ``value / 16 - 1024``.

    Layout, parameters and errors as `write_chest_dataset`; `kinds` from `ct.CT_KINDS`.
    """
    check_kinds(kinds, CT_KINDS)

    def draw(image_seed: int, kind: str | None, _: str) -> tuple[Stored, Mask]:
        phantom = ct_slice_phantom(image_seed, size)
        pixels, mask = phantom.pixels, np.zeros_like(phantom.lungs)
        if kind is not None:
            pixels, mask = add_ct_lesion(pixels, phantom.lungs, kind, np.random.default_rng([0x1E5, image_seed]))
        return _left_align(pixels + 1024), mask

    arguments: dict[str, int | str | list[str]] = {"size": size, "kinds": list(kinds)}
    _write(Path(root), _Recipe("ct_phantoms", tuple(kinds), draw, arguments), (train, normal, abnormal), seed, progress)


def write_digit_anatomy(
    root: Path | str,
    *,
    train: int = 1600,
    normal: int = 500,
    abnormal: int = 500,
    seed: int = 0,
    progress: Progress | None = None,
) -> None:
    """Write the regenerated DigitAnatomy, 96 x 96 pixels, 8-bit PNG; test images use digits that training never shows.

    Layout, parameters and errors as `write_chest_dataset`. Not the published files: see `digit_anatomy`.
    """

    def draw(image_seed: int, kind: str | None, split: str) -> tuple[Stored, Mask]:
        pixels, mask = digit_anatomy(image_seed, kind=kind, split="train" if split == "train" else "test")
        return np.round(pixels * 255).astype(np.uint8), mask

    _write(Path(root), _Recipe("digit_anatomy", DIGIT_KINDS, draw, {}), (train, normal, abnormal), seed, progress)


def check_kinds(kinds: Sequence[str], known: Sequence[str]) -> None:
    """Refuse lesion kinds that do not exist.

    Raises
    ------
    ConfigError
        Where `kinds` is empty or holds an unknown one.
    """
    unknown = [kind for kind in kinds if kind not in known]
    if unknown or not kinds:
        raise ConfigError(f"kinds: {', '.join(unknown) or 'none given'}; choose from {', '.join(known)}")


def _write(root: Path, recipe: _Recipe, counts: tuple[int, int, int], seed: int, progress: Progress | None) -> None:
    if seed < 0:
        raise ConfigError(f"seed: {seed} is negative; give 0 or more")
    for name, count in zip(("train", "normal", "abnormal"), counts, strict=True):
        if not 0 <= count <= _SEEDS_PER_GROUP:
            raise ConfigError(f"{name}: {count} images; give a number from 0 to {_SEEDS_PER_GROUP}")
    root = root.resolve()
    train, normal, abnormal = counts
    stamp: dict[str, object] = {
        "dataset": recipe.name,
        "format": FORMAT,
        "seed": seed,
        "train": train,
        "normal": normal,
        "abnormal": abnormal,
    }
    stamp |= recipe.arguments
    if complete(root, stamp):
        return
    build_aside(root, stamp, lambda folder: _write_images(folder, recipe, counts, seed, progress))


def build_aside(root: Path, stamp: dict[str, object], write: Callable[[Path], T]) -> T:
    """Have a data set written beside its folder, stamp it and rename it; returns what `write` does.

    A reader never meets half a data set, and two writers cannot mix theirs.

    Raises
    ------
    OutputError
        Where it cannot be written.
    """
    building = root.parent / f".{root.name}-{uuid.uuid4().hex[:8]}"
    try:
        building.mkdir(parents=True)
        written = write(building)
        (building / STAMP).write_text(json.dumps(stamp, indent=2) + "\n", encoding="utf-8")
        _publish(building, root, stamp)
    except OSError as error:
        raise OutputError(
            f"{root}: cannot be written ({error.strerror or error}); free space or choose another folder"
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return written


def complete(root: Path, stamp: dict[str, object]) -> bool:
    """Whether `root` already holds this data set; refuses a folder with anything else in it."""
    if root.is_file():
        raise OutputError(f"{root}: is a file; choose a new or empty folder")
    if not root.exists() or not any(root.iterdir()):
        return False
    try:
        held = json.loads((root / STAMP).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        held = None
    if held != stamp:
        raise OutputError(
            f"{root}: holds other files or a data set made with other arguments; choose a new or empty folder"
        )
    return True


def _publish(building: Path, root: Path, stamp: dict[str, object]) -> None:
    """Move a finished folder to its place, where another writer may have been first with the same."""
    try:
        building.replace(root)
    except OSError:
        # Another writer was first: fine where it wrote the same.
        if not complete(root, stamp):
            raise


def _write_images(
    root: Path, recipe: _Recipe, counts: tuple[int, int, int], seed: int, progress: Progress | None
) -> None:
    groups = (("train", "normal"), ("test", "normal"), ("test", "abnormal"))
    for folder in [*("/".join(group) for group in groups), "test/masks"]:
        (root / folder).mkdir(parents=True)
    rows: list[dict[str, str | int]] = []
    for number, ((split, label), count) in enumerate(zip(groups, counts, strict=True)):
        for index in range(count):
            image_seed = (seed * len(groups) + number) * _SEEDS_PER_GROUP + index
            kind = recipe.kinds[index % len(recipe.kinds)] if label == "abnormal" else None
            pixels, mask = recipe.draw(image_seed, kind, split)
            path = f"{split}/{label}/{index:05d}.png"
            mask_path = f"test/masks/{index:05d}.png" if kind else ""
            save_png(root / path, pixels)
            if kind:
                save_png(root / mask_path, mask.astype(np.uint8) * np.uint8(255))
            row = (path, f"{recipe.name}-{image_seed}", int(kind is not None), mask_path, kind or "", split, image_seed)
            rows.append(dict(zip(_COLUMNS, row, strict=True)))
            if progress is not None:
                progress(len(rows), sum(counts))
    with (root / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def save_png(path: Path, pixels: Stored) -> None:
    """Write one picture."""
    encoded, data = cv2.imencode(".png", pixels)
    if not encoded:
        raise OutputError(f"{path}: OpenCV could not encode the image as PNG")
    path.write_bytes(data.tobytes())


def stored_to_hounsfield(stored: NDArray[np.uint16]) -> Float:
    """Hounsfield units of a PNG that `write_ct_dataset` wrote, float32."""
    return (stored >> 4).astype(np.float32) - np.float32(1024)


def _left_align(values: Float) -> NDArray[np.uint16]:
    """12-bit values in the upper bits of 16: an ordinary viewer then shows them at full brightness."""
    return (values * 16).astype(np.uint16)
