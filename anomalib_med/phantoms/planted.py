"""Lesions of known kind, size and contrast planted into real normal images: sensitivity on real anatomy."""

import csv
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from anomalib_med.datasets.readers import read
from anomalib_med.errors import ConfigError, ReadError
from anomalib_med.phantoms.ct import CT_KINDS, add_ct_lesion
from anomalib_med.phantoms.ct_lungs import lungs_of_ct, lungs_of_radiograph
from anomalib_med.phantoms.drawing import Float, Mask
from anomalib_med.phantoms.lesions import KINDS as LESION_KINDS
from anomalib_med.phantoms.lesions import add_lesion
from anomalib_med.phantoms.write import (
    CHEST_KINDS,
    Progress,
    Stored,
    build_aside,
    check_kinds,
    complete,
    save_png,
)
from anomalib_med.records import Sample

SIZES = (0.5, 1.0, 2.0)
CONTRASTS = (0.25, 0.5, 1.0)
FORMAT = 1  # raised whenever the same arguments would give other pixels
_COLUMNS = ("path", "patient", "label", "mask", "kind", "size", "contrast", "split", "source")
_HU_OFFSET, _HU_STEPS = 1024.0, 16.0  # a CT slice is stored as (HU + 1024) * 16


@dataclass(frozen=True, slots=True)
class _Plan:
    """How images are understood and changed."""

    modality: Literal["radiograph", "ct"]
    grid: tuple[tuple[str, float, float], ...]  # kind, size, contrast
    per_image: int
    hounsfield: tuple[float, float]  # slope and intercept of the stored values
    seed: int

    def values(self, sample: Sample) -> Float:
        """Grey values, or Hounsfield units."""
        pixels = read(sample).pixels
        pixels = pixels if pixels.ndim == 2 else pixels.mean(axis=2)
        slope, intercept = self.hounsfield
        return (pixels * slope + intercept).astype(np.float32) if self.modality == "ct" else pixels

    def stored(self, values: Float, deep: bool) -> Stored:
        """As a PNG of 8 or 16 bits; everything of one data set alike."""
        if self.modality == "ct":
            return np.clip(np.round((values + _HU_OFFSET) * _HU_STEPS), 0, 65535).astype(np.uint16)
        if deep:
            return np.clip(np.round(values), 0, 65535).astype(np.uint16)
        return np.clip(np.round(values), 0, 255).astype(np.uint8)

    def stamp(self, samples: Sequence[Sample]) -> dict[str, object]:
        """What tells one data set from another."""
        return {
            "dataset": "planted",
            "format": FORMAT,
            "seed": self.seed,
            "modality": self.modality,
            "lesions": [list(lesion) for lesion in self.grid],
            "per_image": self.per_image,
            "hounsfield": list(self.hounsfield),
            "images": hashlib.sha256("\n".join(sample.id for sample in samples).encode()).hexdigest(),
        }

    def plant(self, values: Float, lesion: tuple[str, float, float], rng: np.random.Generator) -> tuple[Float, Mask]:
        kind, size, contrast = lesion
        if self.modality == "ct":
            return add_ct_lesion(values, lungs_of_ct(values), kind, rng, size=size, contrast=contrast)
        return add_lesion(values, lungs_of_radiograph(values), kind, rng, size=size, contrast=contrast)


def write_planted(
    root: Path | str,
    train: Sequence[Sample],
    heldout: Sequence[Sample],
    *,
    modality: Literal["radiograph", "ct"] = "radiograph",
    kinds: Sequence[str] | None = None,
    sizes: Sequence[float] = SIZES,
    contrasts: Sequence[float] = CONTRASTS,
    per_image: int = 4,
    hounsfield: tuple[float, float] = (1.0, 0.0),
    seed: int = 0,
    progress: Progress | None = None,
) -> list[str]:
    """Write the data set ``planted``: real normals to fit on, real normals to test, and those with a lesion each.

    Under `root`: ``train/normal``, ``test/normal``, ``test/abnormal``, ``test/masks``, ``manifest.csv`` (path, patient,
    label, mask, kind, size, contrast, split, source) and the stamp ``dataset.json``. Every image goes through the same
    writer, so that no trace of storage tells the classes apart. The folder appears complete or not at all; where it is
    already complete with the same arguments nothing is written.

    Parameters
    ----------
    root
        New or empty folder.
    train, heldout
        Normal images of different patients.
    modality
        ``radiograph``: frontal chest radiographs, bright is dense. ``ct``: axial chest slices.
    kinds
        Lesions, from `lesions.KINDS` or `ct.CT_KINDS`; by default nodule, opacity, effusion and foreign body, or nodule
        and ground glass.
    sizes, contrasts
        Multiply the extent and the strength of a lesion; 1 and 1 is plainly visible.
    per_image
        Lesions planted into each held-out image, one an abnormal image; combinations of kind, size and contrast take
        turns.
    hounsfield
        Slope and intercept that turn the stored values of CT slices into Hounsfield units.
    seed
        Not negative.
    progress
        Called with the number of images written and the number in all.

    Returns
    -------
    What was said of the images that were left out: not readable, or no lung found in them.

    Raises
    ------
    ConfigError
        No image, a patient on both sides, a kind, size or contrast that makes no sense.
    OutputError
        `root` holds something else, or cannot be written.
    """
    chosen = tuple(kinds or (CT_KINDS if modality == "ct" else CHEST_KINDS))
    check_kinds(chosen, CT_KINDS if modality == "ct" else LESION_KINDS)
    _check(train, heldout, sizes, contrasts, per_image, seed)
    plan = _Plan(modality, tuple(itertools.product(chosen, sizes, contrasts)), per_image, hounsfield, seed)
    root, stamp = Path(root).resolve(), plan.stamp([*train, *heldout])
    if complete(root, stamp):
        return []
    return build_aside(root, stamp, lambda folder: _write(folder, train, heldout, plan, progress))


def _check(
    train: Sequence[Sample],
    heldout: Sequence[Sample],
    sizes: Sequence[float],
    contrasts: Sequence[float],
    per_image: int,
    seed: int,
) -> None:
    if not train or not heldout:
        raise ConfigError(f"{len(train)} images to fit on and {len(heldout)} held out: give at least one of each")
    shared = sorted({s.patient for s in train} & {s.patient for s in heldout})
    if shared:
        raise ConfigError(f"{len(shared)} patients are among the images to fit on and the held out, as {shared[0]}")
    if per_image < 1 or seed < 0 or not sizes or not contrasts:
        raise ConfigError(f"per_image {per_image}, seed {seed}: give 1 or more, 0 or more, and sizes and contrasts")


def _write(
    root: Path, train: Sequence[Sample], heldout: Sequence[Sample], plan: _Plan, progress: Progress | None
) -> list[str]:
    for folder in ("train/normal", "test/normal", "test/abnormal", "test/masks"):
        (root / folder).mkdir(parents=True)
    rows: list[tuple[str | int | float, ...]] = []
    left_out: list[str] = []
    total = len(train) + len(heldout)
    deep = plan.modality == "radiograph" and _is_deep([*train, *heldout])
    for done, (split, index, sample) in enumerate(_all(train, heldout), 1):
        try:
            values = plan.values(sample)
            planted = list(_planted(values, sample, index, plan)) if split == "test" else []
        except (ReadError, ConfigError) as error:
            left_out.append(f"{sample.id}: {error}")
            continue
        path = f"{split}/normal/{index:05d}.png"
        save_png(root / path, plan.stored(values, deep))
        rows.append((path, sample.patient, 0, "", "", "", "", split, sample.id))
        for number, (lesion, changed, mask) in enumerate(planted):
            name = f"{index:05d}_{number}.png"
            save_png(root / f"test/abnormal/{name}", plan.stored(changed, deep))
            save_png(root / f"test/masks/{name}", mask.astype(np.uint8) * np.uint8(255))
            rows.append((f"test/abnormal/{name}", sample.patient, 1, f"test/masks/{name}", *lesion, split, sample.id))
        if progress is not None:
            progress(done, total)
    with (root / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        writer.writerows(rows)
    return left_out


def _all(train: Sequence[Sample], heldout: Sequence[Sample]) -> Iterator[tuple[str, int, Sample]]:
    for split, samples in (("train", train), ("test", heldout)):
        for index, sample in enumerate(samples):
            yield split, index, sample


def _is_deep(samples: Sequence[Sample]) -> bool:
    """Whether the first image that can be read has more than 8 bits."""
    for sample in samples:
        try:
            return bool(read(sample).pixels.max() > 255)
        except ReadError:
            continue
    return False


def _planted(
    values: Float, sample: Sample, index: int, plan: _Plan
) -> Iterator[tuple[tuple[str, float, float], Float, Mask]]:
    """The lesions of one image; turns go on from image to image, so that all combinations are equally frequent."""
    for number in range(plan.per_image):
        lesion = plan.grid[(index * plan.per_image + number) % len(plan.grid)]
        rng = np.random.default_rng([0x91A7, plan.seed, index, number])
        changed, mask = plan.plant(values, lesion, rng)
        yield lesion, changed, mask
