"""Files to images: one door for every format, and one kind of error for every file that cannot be read."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np

from anomalib_med.datasets.readers import array, dicom, metaimage, nifti, raster
from anomalib_med.datasets.readers.array import samples_from_array
from anomalib_med.datasets.readers.dicom import HeaderInfo
from anomalib_med.datasets.readers.nifti import write_volume
from anomalib_med.errors import ReadError
from anomalib_med.records import Image, Sample

__all__ = ["FORMATS", "HeaderInfo", "header", "is_image", "read", "samples_from_array", "write_volume"]

FORMATS = "PNG, JPEG, TIFF, BMP, DICOM, NIfTI, MetaImage, .npy"


def read(sample: Sample) -> Image:
    """Read the pixels of a sample; of a part of the image where `Sample.crop` says so.

    The pixels are float32 without NaN or infinity: where the file holds none, the lowest value of the image stands and
    `missing` is True. Whatever is wrong with the file is a ReadError that names it and the remedy in one line.
    """
    if sample.array is not None:
        return _finished(array.read(sample, None), sample.id)
    if sample.path is None:
        raise ReadError(f"{sample.id}: the sample has neither a file nor an array: give one of them")
    path = Path(sample.path)
    if sample.aside:
        raise ReadError(f"{path}: set aside: {sample.aside}")
    if sample.frame is not None and sample.frame < 0:
        raise ReadError(f"{path}: there is no frame {sample.frame}: frames count from 0")
    with _reader(path) as reader:
        image = _finished(reader.read(sample, path), str(path))
    if sample.crop is None:
        return image
    top, left, height, width = sample.crop
    part = np.s_[top : top + height, left : left + width]
    return replace(image, pixels=image.pixels[part], missing=None if image.missing is None else image.missing[part])


def header(path: Path, *, keep_patient_ids: bool = False) -> HeaderInfo:
    """What can be known of a file of any format without reading its pixels.

    `keep_patient_ids` keeps PatientID and the UIDs of a DICOM file as they are; otherwise pseudonyms stand for them.
    Raises ReadError where the file is not an image, or its header is damaged.
    """
    with _reader(path) as reader:
        if reader is dicom:
            return dicom.header(path, keep_patient_ids=keep_patient_ids)
        return HeaderInfo(frames=reader.count_frames(path))


def is_image(path: Path) -> bool:
    """Whether a file looks like one that can be read: by its extension, or by DICOM's mark in its content.

    A file that may not be opened counts as one, so that it is listed and its reading says why it failed.
    """
    try:
        return _reader_of(path) is not None
    except PermissionError:
        return True


@contextmanager
def _reader(path: Path) -> Iterator[ModuleType]:
    """The reader of a file; whatever goes wrong in the block is a ReadError that names the file and the remedy."""
    try:
        reader = _reader_of(path)
        if reader is None:
            raise ReadError(f"{path}: not an image: {FORMATS} are read")
        yield reader
    except ReadError:
        raise
    except FileNotFoundError as error:
        raise ReadError(f"{path}: no such file: it was moved or deleted, or the path has a typing error") from error
    except OSError as error:
        said = error.strerror or error
        raise ReadError(f"{path}: cannot be opened ({said}): check the permissions and the disk") from error
    except Exception as error:  # a damaged file makes the decoders raise anything
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise ReadError(f"{path}: damaged, or of an unsupported kind ({said}): copy or export it again") from error


def _reader_of(path: Path) -> ModuleType | None:
    for reader in (raster, nifti, metaimage, array, dicom):
        if path.name.lower().endswith(reader.SUFFIXES):
            return reader
    # Neither a pipe, which would wait for ever, nor a link to nothing is looked into.
    return dicom if path.is_file() and dicom.is_dicom(path) else None


def _finished(image: Image, name: str) -> Image:
    """The image with the promises of `Image` kept: float32, finite, not empty."""
    if image.pixels.size == 0:
        raise ReadError(f"{name}: the image is empty ({image.shape[0]} x {image.shape[1]} pixels): export it again")
    with np.errstate(over="ignore"):  # what does not fit float32 becomes infinite, and so missing
        pixels = np.ascontiguousarray(image.pixels, dtype=np.float32)
    measured = np.isfinite(pixels)
    missing = image.missing
    if not measured.all():
        if not measured.any():
            raise ReadError(f"{name}: not one pixel is a finite number (all NaN): export it again")
        holes = np.asarray(~np.atleast_3d(measured).all(axis=2))
        missing = holes if missing is None else missing | holes
        pixels = np.where(measured, pixels, pixels[measured].min())
    return replace(image, pixels=pixels, missing=missing)
