"""Planted: lesions of known kind, size and contrast in real normal images, for sensitivity on real anatomy.

python datasets/planted/make.py NORMALS OUT --patient-pattern "^([0-9]+)_"
python datasets/planted/make.py CT_SLICES OUT --modality ct --hounsfield 5.882353 -1350
"""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import click
import numpy as np

from anomalib_med.datasets import discover, read, split_by_patient
from anomalib_med.errors import AnomedError, ConfigError, ReadError
from anomalib_med.phantoms import add_ct_lesion, add_lesion, lungs_of_ct, lungs_of_radiograph
from anomalib_med.phantoms.drawing import Float, Mask, check_kinds
from anomalib_med.phantoms.lesions import CT_KINDS
from anomalib_med.phantoms.lesions import KINDS as LESION_KINDS
from anomalib_med.phantoms.write import CHEST_KINDS, Picture, Stored, build
from anomalib_med.records import Progress, Sample, silent

SIZES = (0.5, 1.0, 2.0)
CONTRASTS = (0.25, 0.5, 1.0)
FORMAT = 1  # raised whenever the same arguments would give other pixels
COLUMNS = ("path", "patient", "label", "mask", "kind", "size", "contrast", "split", "source")
_HU_OFFSET, _HU_STEPS = 1024.0, 16.0  # a CT slice is stored as (HU + 1024) * 16

Modality = Literal["radiograph", "ct"]
Lesion = tuple[str, float, float]  # kind, size, contrast


@dataclass(frozen=True, slots=True)
class _Plan:
    """How images are understood and changed."""

    modality: Modality
    lesions: tuple[Lesion, ...]
    per_image: int
    hounsfield: tuple[float, float]
    seed: int

    def values(self, sample: Sample) -> Float:
        """Grey values, or Hounsfield units."""
        pixels = read(sample).pixels
        pixels = pixels if pixels.ndim == 2 else pixels.mean(axis=2)
        slope, intercept = self.hounsfield
        return (pixels * slope + intercept).astype(np.float32) if self.modality == "ct" else pixels

    def stored(self, values: Float, *, deep: bool) -> Stored:
        """Values of a PNG of 8 or 16 bits; everything of one data set alike."""
        if self.modality == "ct":
            return np.clip(np.round((values + _HU_OFFSET) * _HU_STEPS), 0, 65535).astype(np.uint16)
        if deep:
            return np.clip(np.round(values), 0, 65535).astype(np.uint16)
        return np.clip(np.round(values), 0, 255).astype(np.uint8)

    def planted(self, values: Float, index: int) -> Iterator[tuple[int, Lesion, Float, Mask]]:
        """The lesions of one image; turns go on from image to image, so that all are equally frequent."""
        for number in range(self.per_image):
            lesion = self.lesions[(index * self.per_image + number) % len(self.lesions)]
            kind, size, contrast = lesion
            rng = np.random.default_rng([0x91A7, self.seed, index, number])
            plant, lungs_of = (
                (add_ct_lesion, lungs_of_ct) if self.modality == "ct" else (add_lesion, lungs_of_radiograph)
            )
            yield number, lesion, *plant(values, lungs_of(values), kind, rng, size=size, contrast=contrast)


def write_planted(
    root: Path | str,
    train: Sequence[Sample],
    heldout: Sequence[Sample],
    *,
    modality: Modality = "radiograph",
    kinds: Sequence[str] | None = None,
    sizes: Sequence[float] = SIZES,
    contrasts: Sequence[float] = CONTRASTS,
    per_image: int = 4,
    hounsfield: tuple[float, float] = (1.0, 0.0),
    seed: int = 0,
    progress: Progress = silent,
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
        Lesions, from `lesions.KINDS` or `lesions.CT_KINDS`; by default nodule, opacity, effusion and foreign body, or
        nodule and ground glass.
    sizes, contrasts
        Factors of the extent and the strength of a lesion; 1 and 1 is plainly visible.
    per_image
        Lesions planted into each held-out image, one an abnormal image; combinations of kind, size and contrast take
        turns.
    hounsfield
        Slope and intercept that turn the stored values of CT slices into Hounsfield units.
    seed
        Seed of the data set, not negative.
    progress
        Called after every image.

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
    kinds = tuple(kinds or (CT_KINDS if modality == "ct" else CHEST_KINDS))
    check_kinds(kinds, CT_KINDS if modality == "ct" else LESION_KINDS)
    if not train or not heldout:
        raise ConfigError(f"{len(train)} images to fit on and {len(heldout)} held out: give at least one of each")
    shared = sorted({s.patient for s in train} & {s.patient for s in heldout})
    if shared:
        raise ConfigError(f"{len(shared)} patients are among the images to fit on and the held out, as {shared[0]}")
    if per_image < 1 or seed < 0 or not sizes or not contrasts:
        raise ConfigError(f"per_image {per_image}, seed {seed}: give 1 or more, 0 or more, and sizes and contrasts")
    plan = _Plan(modality, tuple(itertools.product(kinds, sizes, contrasts)), per_image, hounsfield, seed)
    stamp = {
        "dataset": "planted",
        "format": FORMAT,
        "seed": seed,
        "modality": modality,
        "lesions": [list(lesion) for lesion in plan.lesions],
        "per_image": per_image,
        "hounsfield": list(hounsfield),
        "images": hashlib.sha256("\n".join(sample.id for sample in (*train, *heldout)).encode()).hexdigest(),
    }
    left_out: list[str] = []
    build(root, stamp, COLUMNS, _pictures(train, heldout, plan, progress, left_out))
    return left_out


def _pictures(
    train: Sequence[Sample], heldout: Sequence[Sample], plan: _Plan, progress: Progress, left_out: list[str]
) -> Iterator[Picture]:
    """All pictures; what is said of the images that give none goes to `left_out`."""
    deep = plan.modality == "radiograph" and _is_deep([*train, *heldout])
    images = [(split, *item) for split, samples in (("train", train), ("test", heldout)) for item in enumerate(samples)]
    for done, (split, index, sample) in enumerate(images, 1):
        try:
            values = plan.values(sample)
            planted = list(plan.planted(values, index)) if split == "test" else []
        except (ReadError, ConfigError) as error:
            left_out.append(f"{sample.id}: {error}")
            continue
        whose = {"patient": sample.patient, "source": sample.id}
        yield Picture(split, f"{index:05d}", plan.stored(values, deep=deep), whose)
        for number, (kind, size, contrast), changed, mask in planted:
            cells = {"kind": kind, "size": size, "contrast": contrast, **whose}
            yield Picture(split, f"{index:05d}_{number}", plan.stored(changed, deep=deep), cells, mask)
        progress("images", done, len(images))


def _is_deep(samples: Sequence[Sample]) -> bool:
    """Whether the first image that can be read has more than 8 bits."""
    for sample in samples:
        try:
            return bool(read(sample).pixels.max() > 255)
        except ReadError:
            continue
    return False


@click.command()
@click.argument("normals", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--heldout", default=0.2, show_default=True, help="Share of the patients that get lesions.")
@click.option("--patient-pattern", help="Regular expression with one group that finds the patient in a path.")
@click.option("--modality", type=click.Choice(["radiograph", "ct"]), default="radiograph", show_default=True)
@click.option("--hounsfield", nargs=2, type=float, default=(1.0, 0.0), help="Slope and intercept of stored CT values.")
@click.option("--kind", "kinds", multiple=True, help="A kind of lesion; may be repeated.")
@click.option("--per-image", default=4, show_default=True, help="Lesions for each held-out image.")
@click.option("--seed", default=0, show_default=True, help="Seed of the split and of the lesions.")
def main(
    normals: Path,
    out: Path,
    heldout: float,
    patient_pattern: str | None,
    modality: Modality,
    hounsfield: tuple[float, float],
    kinds: tuple[str, ...],
    per_image: int,
    seed: int,
) -> None:
    """Plant lesions into the held-out part of the images of NORMALS and write the data set to the folder OUT."""
    try:
        train, rest = split_by_patient(discover(normals, patient_pattern=patient_pattern), heldout, seed)
        left_out = write_planted(
            out,
            train,
            rest,
            modality=modality,
            kinds=kinds or None,
            per_image=per_image,
            hounsfield=hounsfield,
            seed=seed,
        )
    except AnomedError as error:
        raise click.ClickException(str(error)) from error
    for said in left_out:
        click.echo(f"left out: {said}", err=True)


if __name__ == "__main__":
    main()
