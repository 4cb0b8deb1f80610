"""Writes data sets of pictures as folders: healthy images to train on, healthy and abnormal ones to test."""

import contextlib
import csv
import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from anomalib_med.errors import ConfigError, OutputError
from anomalib_med.files import temporary_beside
from anomalib_med.phantoms.chest import chest_phantom
from anomalib_med.phantoms.ct import ct_slice_phantom
from anomalib_med.phantoms.digit_anatomy import KINDS as DIGIT_KINDS
from anomalib_med.phantoms.digit_anatomy import digit_anatomy
from anomalib_med.phantoms.drawing import Mask, check_arguments, check_kinds
from anomalib_med.phantoms.lesions import CT_KINDS, add_ct_lesion, add_lesion
from anomalib_med.phantoms.lesions import KINDS as LESION_KINDS
from anomalib_med.records import Progress, silent

Stored = NDArray[np.uint8] | NDArray[np.uint16]
Cells = Mapping[str, str | int | float]
Stamp = Mapping[str, object]
Draw = Callable[[int, str | None, str], tuple[Stored, Mask]]  # seed, kind of lesion or None, side of the split

CHEST_KINDS = ("nodule", "opacity", "effusion", "foreign")
STAMP = "dataset.json"
# Raised whenever the same seed would give other pixels: a folder of an older format is then not taken for complete.
FORMAT = 1
_GROUPS = (("train", "normal"), ("test", "normal"), ("test", "abnormal"))
_SEEDS_PER_GROUP = 100_000  # no group shares a seed with another, nor data set seed 0 with seed 1


def write_chest_dataset(
    root: Path | str,
    *,
    train: int = 120,
    normal: int = 40,
    abnormal: int = 40,
    size: int = 256,
    seed: int = 0,
    kinds: Sequence[str] = CHEST_KINDS,
    progress: Progress = silent,
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
        Seed of the data set, not negative; another seed gives other patients.
    kinds
        Kinds of lesion, from `lesions.KINDS`.
    progress
        Called after every image.

    Raises
    ------
    ConfigError
        A number or a kind makes no sense.
    OutputError
        `root` holds something else, or cannot be written.
    """
    check_kinds(kinds, LESION_KINDS)
    stamp = {"dataset": "phantoms", "size": size, "kinds": list(kinds)}
    _write(root, partial(_phantom, False, size), [train, normal, abnormal], seed, kinds, progress, stamp)


def write_ct_dataset(
    root: Path | str,
    *,
    train: int = 120,
    normal: int = 40,
    abnormal: int = 40,
    size: int = 256,
    seed: int = 0,
    kinds: Sequence[str] = CT_KINDS,
    progress: Progress = silent,
) -> None:
    """Write CT-like chest slices as 16-bit PNG: Hounsfield units are ``value / 16 - 1024``.

    Layout, parameters and errors are those of `write_chest_dataset`, with `kinds` from `lesions.CT_KINDS`.
    """
    check_kinds(kinds, CT_KINDS)
    stamp = {"dataset": "ct_phantoms", "size": size, "kinds": list(kinds)}
    _write(root, partial(_phantom, True, size), [train, normal, abnormal], seed, kinds, progress, stamp)


def write_digit_anatomy(
    root: Path | str,
    *,
    train: int = 1600,
    normal: int = 500,
    abnormal: int = 500,
    seed: int = 0,
    progress: Progress = silent,
) -> None:
    """Write the regenerated DigitAnatomy, 96 x 96 pixels, 8-bit PNG; test images use digits that training never shows.

    Layout, parameters and errors are those of `write_chest_dataset`. Not the published files: see `digit_anatomy`.
    """

    def draw(image_seed: int, kind: str | None, split: str) -> tuple[Stored, Mask]:
        pixels, mask = digit_anatomy(image_seed, kind=kind, split="train" if split == "train" else "test")
        return np.round(pixels * 255).astype(np.uint8), mask

    _write(root, draw, [train, normal, abnormal], seed, DIGIT_KINDS, progress, {"dataset": "digit_anatomy"})


@dataclass(frozen=True)
class Picture:
    """One picture of a data set, abnormal where it has a mask; `cells` are its further columns in the manifest."""

    split: str
    name: str
    pixels: Stored
    cells: Cells
    mask: Mask | None = None

    def write(self, root: Path) -> Cells:
        """Write the picture and its mask as PNG below `root`; returns its row of the manifest."""
        path = f"{self.split}/{'normal' if self.mask is None else 'abnormal'}/{self.name}.png"
        mask_path = "" if self.mask is None else f"test/masks/{self.name}.png"
        (root / path).write_bytes(cv2.imencode(".png", self.pixels)[1].tobytes())
        if self.mask is not None:
            (root / mask_path).write_bytes(cv2.imencode(".png", self.mask * np.uint8(255))[1].tobytes())
        return {"path": path, "label": int(bool(mask_path)), "mask": mask_path, "split": self.split, **self.cells}


def build(root: Path | str, stamp: Stamp, columns: Sequence[str], pictures: Iterable[Picture]) -> None:
    """Write a data set beside its folder, stamp it and rename it, unless `root` already holds it.

    A reader never meets half a data set, and two writers cannot mix theirs.

    Raises
    ------
    OutputError
        `root` holds anything else, or cannot be written.
    """
    root = Path(root).resolve()
    if _holds(root, stamp):
        return
    building = temporary_beside(root)
    try:
        for folder in [*("/".join(group) for group in _GROUPS), "test/masks"]:
            (building / folder).mkdir(parents=True)
        with (building / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(picture.write(building) for picture in pictures)
        (building / STAMP).write_text(json.dumps(stamp, indent=2) + "\n", encoding="utf-8")
        building.replace(root)
    except OSError as error:
        if not _holds(root, stamp):  # another writer was first: fine where it wrote the same
            text = f"{root}: cannot be written ({error.strerror or error}); free space or choose another folder"
            raise OutputError(text) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _holds(root: Path, stamp: Stamp) -> bool:
    """Whether `root` already holds this data set; refuses a folder with anything else in it."""
    if root.is_file():
        raise OutputError(f"{root}: is a file; choose a new or empty folder")
    if not root.exists() or not any(root.iterdir()):
        return False
    with contextlib.suppress(FileNotFoundError, ValueError):
        if json.loads((root / STAMP).read_text(encoding="utf-8")) == stamp:
            return True
    other = "other files or a data set made with other arguments"
    raise OutputError(f"{root}: holds {other}; choose a new or empty folder")


def _phantom(in_hu: bool, size: int, seed: int, kind: str | None, _: str) -> tuple[Stored, Mask]:
    """A CT slice or a radiograph, with a lesion where a kind is asked for, as 12-bit values."""
    phantom = (ct_slice_phantom if in_hu else chest_phantom)(seed, size)
    pixels, mask = phantom.pixels, np.zeros_like(phantom.lungs)
    if kind is not None:
        plant = add_ct_lesion if in_hu else add_lesion
        pixels, mask = plant(pixels, phantom.lungs, kind, np.random.default_rng([0x1E5, seed]))
    values = pixels + 1024 if in_hu else np.round(pixels * 4095)
    # In the upper bits of 16, so that an ordinary viewer shows them at full brightness.
    return (values * 16).astype(np.uint16), mask


def _write(
    root: Path | str, draw: Draw, numbers: list[int], seed: int, kinds: Sequence[str], progress: Progress, stamp: Stamp
) -> None:
    counts = dict(zip(("train", "normal", "abnormal"), numbers, strict=True))
    check_arguments(seed)
    for group, count in counts.items():
        if not 0 <= count <= _SEEDS_PER_GROUP:
            raise ConfigError(f"{group}: {count} images; give a number from 0 to {_SEEDS_PER_GROUP}")

    def pictures() -> Iterator[Picture]:
        done = itertools.count(1)
        for number, ((split, label), count) in enumerate(zip(_GROUPS, numbers, strict=True)):
            for index in range(count):
                image_seed = (seed * len(_GROUPS) + number) * _SEEDS_PER_GROUP + index
                kind = kinds[index % len(kinds)] if label == "abnormal" else None
                pixels, mask = draw(image_seed, kind, split)
                cells: Cells = {"patient": f"{stamp['dataset']}-{image_seed}", "kind": kind or "", "seed": image_seed}
                yield Picture(split, f"{index:05d}", pixels, cells, mask if kind else None)
                progress("images", next(done), sum(numbers))

    columns = ("path", "patient", "label", "mask", "kind", "split", "seed")
    build(root, {"dataset": stamp["dataset"], "format": FORMAT, "seed": seed, **counts, **stamp}, columns, pictures())
