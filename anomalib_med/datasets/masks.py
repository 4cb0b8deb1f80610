"""Where the lesion is: masks as pictures, as slices of a volume, as run lengths, as polygons, and filled boxes."""

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from anomalib_med.datasets.readers import read
from anomalib_med.errors import ReadError
from anomalib_med.records import Box, Lesion, Sample

Mask = NDArray[np.bool_]


def read_mask(sample: Sample, shape: tuple[int, int] | None = None) -> Mask | None:
    """The lesion of a sample in the geometry of the original image.

    Parameters
    ----------
    sample
        Its lesion is the first of these that is known: `Sample.mask` (of a volume the slice `Sample.frame`; the pixels
        with the values of `Sample.lesion` where it names some, otherwise all that are not zero), the run lengths or
        polygons of `Sample.lesion`, the filled `Sample.boxes`.
    shape
        Rows and columns of the image; read from the image where they are needed and not given.

    Returns
    -------
    bool ``(H, W)``; all False for a normal image; None for an abnormal one of which the place is not known.

    Raises
    ------
    ReadError
        The mask cannot be read, or is of another shape than the image.
    """
    if sample.mask is not None:
        return _from_file(sample, shape)
    lesion = sample.lesion or Lesion()
    if not has_mask(sample):
        return None
    shape = shape or read(sample).shape
    if lesion.runs:
        runs = [decode_rle(part, shape, relative=lesion.relative) for part in lesion.runs]
        return np.asarray(np.any(runs, axis=0), np.bool_)
    return filled_polygons(lesion.polygons, shape) if lesion.polygons else filled_boxes(sample.boxes, shape)


def read_area(sample: Sample, shape: tuple[int, int]) -> Mask | None:
    """The area that is to be looked at, from the file `Sample.area`: of a volume the slice `Sample.frame`.

    It is bool ``(H, W)`` in the geometry of the image, True where the file is not zero; None where no file is named.
    Raises ReadError where the file cannot be read, or is of another shape than the image.
    """
    return None if sample.area is None else _from_file(replace(sample, mask=sample.area, lesion=None), shape)


def has_mask(sample: Sample) -> bool:
    """Whether `read_mask` knows the place of the lesion: from a mask or outline, or from boxes."""
    outlined = sample.lesion is not None and (sample.lesion.runs or sample.lesion.polygons)
    return bool(sample.mask or sample.boxes or sample.label == 0 or outlined)


def filled_boxes(boxes: tuple[Box, ...], shape: tuple[int, int]) -> Mask:
    """Boxes ``(x, y, width, height)`` in pixels, filled; every box covers at least one pixel."""
    mask = np.zeros(shape, np.bool_)
    for x, y, width, height in boxes:
        left, top = max(int(np.floor(x)), 0), max(int(np.floor(y)), 0)
        mask[top : max(int(np.ceil(y + height)), top + 1), left : max(int(np.ceil(x + width)), left + 1)] = True
    return mask


def filled_polygons(polygons: Sequence[Sequence[tuple[float, float]]], shape: tuple[int, int]) -> Mask:
    """Polygons ``[[x, y], ...]`` in pixels, filled one by one, so that they may overlap."""
    canvas = np.zeros(shape, np.uint8)
    for polygon in polygons:
        if len(polygon) >= 3:
            cv2.fillPoly(canvas, [np.round(np.asarray(polygon, np.float64)).astype(np.int32)], (1,))
    return canvas.astype(np.bool_)


def decode_rle(text: str, shape: tuple[int, int], *, relative: bool = False) -> Mask:
    """Mask ``(H, W)`` of the given shape from run lengths down the columns.

    The text holds pairs of start and length. Starts count from 1; `relative` starts are gaps since the end of the last
    run. ``-1`` and "" are an empty mask. Raises ReadError for anything else, or for a run outside the image.
    """
    flat = np.zeros(shape[0] * shape[1], np.bool_)
    try:
        numbers = [int(word) for word in text.split()] if text.strip() != "-1" else []
    except ValueError as error:
        raise ReadError(f"run lengths {text[:40]!r}: not whole numbers") from error
    if len(numbers) % 2:
        raise ReadError(f"run lengths {text[:40]!r}: an odd number of {len(numbers)} values, they come in pairs")
    end = 0
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        begin = end + start if relative else start - 1
        end = begin + length
        if begin < 0 or end > flat.size:
            raise ReadError(f"run lengths: a run ends at pixel {end} of an image of {shape[0]} x {shape[1]}")
        flat[begin:end] = True
    return flat.reshape(shape[1], shape[0]).T


def encode_rle(mask: Mask) -> str:
    """Run lengths of a mask, down the columns and from 1: what `decode_rle` reads."""
    edges = np.flatnonzero(np.diff(mask.T.ravel().astype(np.int8), prepend=0, append=0))
    return " ".join(f"{start + 1} {end - start}" for start, end in zip(edges[::2], edges[1::2], strict=True))


def _from_file(sample: Sample, shape: tuple[int, int] | None) -> Mask:
    stored = np.atleast_3d(read(replace(sample, path=sample.mask, mask=None, array=None)).pixels).max(axis=2)
    values = sample.lesion.values if sample.lesion else ()
    mask = np.isin(np.rint(stored), values) if values else stored > 0
    if shape is not None and mask.shape != shape:
        raise ReadError(f"{sample.mask}: the mask is {mask.shape}, the image {sample.path} is {shape} (rows, columns)")
    return np.asarray(mask, np.bool_)
