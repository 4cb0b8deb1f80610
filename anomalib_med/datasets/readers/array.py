"""Arrays in memory, and ``.npy`` files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from anomalib_med.errors import InputError, ReadError
from anomalib_med.records import Image, Sample

SUFFIXES = (".npy",)


def samples_from_array(array: np.ndarray | Sequence[np.ndarray], prefix: str = "image") -> list[Sample]:
    """One sample for each image of an array, with the ids ``<prefix>-000`` and so on, each a patient of its own.

    The array is ``(N, H, W)``, ``(N, H, W, 3)``, or a sequence of N arrays ``(H, W)`` or ``(H, W, 3)``, of any real
    number type. Raises InputError where there is no image, another shape, or something else than numbers.
    """
    if isinstance(array, np.ndarray) and not (array.ndim == 3 or (array.ndim == 4 and array.shape[-1] == 3)):
        remedy = "images are given as (N, H, W) or (N, H, W, 3), so one image as array[None]"
        raise InputError(f"array of shape {array.shape}: {remedy}")
    if len(array) == 0:
        raise InputError("the array holds no image: give at least one")
    width = max(3, len(str(len(array) - 1)))
    samples = [Sample(id=f"{prefix}-{i:0{width}d}", array=np.asarray(image)) for i, image in enumerate(array)]
    for sample in samples:
        if problem := _problem(sample.array):
            raise InputError(f"{sample.id}: {problem}")
    return samples


def count_frames(path: Path) -> int:
    """Images in a ``.npy`` file: 1 for ``(H, W)``, N for ``(N, H, W)`` and ``(N, H, W, 3)``, from its header."""
    return len(_stored(path))


def read(sample: Sample, path: Path | None) -> Image:
    """Pixels of a sample in memory, or of one image of a ``.npy`` file.

    Raises ReadError where they have another shape, are not numbers, or where there is no such frame.
    """
    name, pixels, frame = path or sample.id, sample.array, sample.frame or 0
    if path is not None:
        stored = _stored(path)
        if frame >= len(stored):
            text = f"{path}: holds {len(stored)} images, there is no frame {frame}"
            raise ReadError(f"{text}: correct the frame asked for")
        pixels = stored[frame]
    problem = _problem(pixels)
    if pixels is None or problem:
        raise ReadError(f"{name}: {problem}")
    return Image(pixels, sample)


def _stored(path: Path) -> np.ndarray:
    """The images ``(N, H, W)`` or ``(N, H, W, 3)`` in a file, mapped and not read."""
    try:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise ReadError(f"{path}: not a .npy file of numbers ({error}): write it with numpy.save") from error
    if not (stored.ndim in (2, 3) or (stored.ndim == 4 and stored.shape[-1] == 3)):
        raise ReadError(f"{path}: of shape {stored.shape}: only (H, W), (N, H, W) and (N, H, W, 3) are read")
    return np.asarray(stored[None] if stored.ndim == 2 else stored)


def _problem(pixels: np.ndarray | None) -> str:
    """Why an array is not an image, or ""."""
    if pixels is None or pixels.dtype.kind not in "buif":
        return f"the pixels are of type {getattr(pixels, 'dtype', None)}, not real numbers: convert them to float32"
    if not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        return f"an image of shape {pixels.shape}: only (H, W) and (H, W, 3) are images"
    return ""
