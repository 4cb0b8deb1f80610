"""Lung fields without a network: Dice on phantoms, how often they are found in real slices, seconds a slice, a picture.

    python benchmarks/lung_fields.py -o docs/lung_fields.jpg [FOLDER ...]

FOLDERs hold CT slices: DICOM, NIfTI, or 8-bit pictures in a lung window (1500 / -600). The picture shows phantoms only.
"""

import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
from shared import command_line

from anomalib_med.datasets.folder import discover
from anomalib_med.datasets.readers import read
from anomalib_med.phantoms.ct import ct_slice_phantom
from anomalib_med.phantoms.lesions import add_ct_lesion
from anomalib_med.preprocessing.lungs import lung_field

PHANTOMS, SIZE = 100, 512


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("folder", type=Path, nargs="*")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    dice, seconds = [], []
    for seed in range(PHANTOMS):
        phantom = ct_slice_phantom(seed, SIZE)
        start = time.process_time()
        mask, _ = lung_field(phantom.pixels, None, hounsfield=True)
        seconds.append(time.process_time() - start)
        dice.append(0.0 if mask is None else 2 * (mask & phantom.lungs).sum() / (mask.sum() + phantom.lungs.sum()))
    print(f"{PHANTOMS} phantoms of {SIZE} x {SIZE}: Dice {np.mean(dice):.3f} ({min(dice):.3f} to {max(dice):.3f})")
    print(f"{1000 * np.median(seconds):.0f} ms of one core a slice")
    for folder in options.folder:
        told: Counter[str] = Counter()
        for sample in discover(folder):
            image = read(sample)
            grey = image.modality == "" and image.pixels.min() >= 0 and image.pixels.max() <= 255
            hu = image.pixels * (1500 / 255) - 1350 if grey else image.pixels
            told[lung_field(hu, image.spacing, hounsfield=True)[1].partition(":")[0] or "lung"] += 1
        print(f"{folder.name}: " + ", ".join(f"{reason} {count}" for reason, count in told.most_common()))
    if options.output:
        cv2.imwrite(
            str(options.output), np.hstack([picture(seed) for seed in range(5)]), [cv2.IMWRITE_JPEG_QUALITY, 85]
        )


def picture(seed: int) -> np.ndarray:
    """A phantom, with a nodule or ground glass but for the first, and the outline of its lung field."""
    phantom = ct_slice_phantom(seed, SIZE)
    pixels, kind = phantom.pixels, ("", "nodule", "ground_glass", "nodule", "ground_glass")[seed]
    if kind:
        pixels, _ = add_ct_lesion(pixels, phantom.lungs, kind, np.random.default_rng(seed), size=1.5)
    mask, _ = lung_field(pixels, None, hounsfield=True)
    grey = np.clip((pixels + 1350) / 1500 * 255, 0, 255).astype(np.uint8)
    shown = cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)
    if mask is not None:
        contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(shown, contours, -1, (60, 160, 255), 2)
    return cv2.resize(shown, (240, 240), interpolation=cv2.INTER_AREA)


if __name__ == "__main__":
    main()
