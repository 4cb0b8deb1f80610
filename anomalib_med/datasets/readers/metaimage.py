"""MetaImage volumes (.mhd with .raw beside it, .mha): every axial slice a frame, shown as NIfTI slices are.

LUNA16 is published like this. Patient axes are LPS: with the identity as TransformMatrix, row 0 is anterior and column
0 is the patient's right, and slices count from inferior to superior.
"""

import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from anomalib_med.errors import ReadError
from anomalib_med.records import Image, Sample

SUFFIXES = (".mhd", ".mha")

_TYPES = {
    **{"MET_CHAR": "i1", "MET_SHORT": "i2", "MET_INT": "i4", "MET_FLOAT": "f4", "MET_DOUBLE": "f8"},
    **{"MET_UCHAR": "u1", "MET_USHORT": "u2", "MET_UINT": "u4"},
}
_HEADER_BYTES = 65536
_OBLIQUE = 0.02  # a direction cosine off by more than this is no flip of an axis


@dataclass(frozen=True, slots=True)
class MetaImageHeader:
    """What the header of a MetaImage says."""

    shape: tuple[int, int, int]
    """Slices, rows, columns."""
    spacing: tuple[float, float, float]
    """Millimetres between slices, rows, columns."""
    origin: tuple[float, float, float]
    """World position (LPS, mm) of the first stored voxel: x, y, z."""
    flipped: tuple[bool, ...]
    """Whether slices, rows, columns are stored against the LPS axes."""
    dtype: np.dtype
    data: tuple[Path, int]
    """The file with the values, and where they begin in it."""
    compressed: bool
    """Whether the values are a zlib stream."""


def slice_affine(path: Path) -> np.ndarray:
    """The affine ``(4, 4)`` from ``(column, row, slice)``, as `read` gives them, to mm in the patient (RAS)."""
    header = read_header(path)
    affine = np.eye(4)
    for axis, sign in enumerate((-1, -1, 1)):  # MetaImage counts to the left and to the back, RAS does not
        at = 2 - axis
        reach = (header.shape[at] - 1) * header.spacing[at] if header.flipped[at] else 0.0
        affine[axis, axis] = sign * header.spacing[at]
        affine[axis, 3] = sign * (header.origin[axis] - reach)
    return affine


def count_frames(path: Path) -> int:
    """Number of axial slices, from the header; raises ReadError as `read_header`."""
    return read_header(path).shape[0]


def read(sample: Sample, path: Path) -> Image:
    """One axial slice, the stored values.

    Raises ReadError where the file is no MetaImage that can be read, has no such slice, or its values are cut short or
    missing.
    """
    header, frame = read_header(path), sample.frame or 0
    slices, rows, columns = header.shape
    if frame >= slices:
        raise ReadError(f"{path}: holds {slices} axial slices, there is no frame {frame}: correct the frame asked for")
    at = slices - 1 - frame if header.flipped[0] else frame
    pixels = _stored(header, path)[at * rows * columns : (at + 1) * rows * columns].reshape(rows, columns)
    pixels = np.flip(pixels, tuple(axis for axis in (0, 1) if header.flipped[axis + 1]))
    return Image(pixels, sample, spacing=header.spacing[1:])


def read_header(path: Path) -> MetaImageHeader:
    """The header of a volume; raises ReadError where a field is missing or has a value that is not supported."""
    return _header(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _header(path: Path, changed: int) -> MetaImageHeader:
    """Keyed by time as well, so that a file that was replaced is read again."""
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES)
    fields, begin = {}, 0
    for line in head.split(b"\n"):
        begin += len(line) + 1
        key, equals, value = (part.strip() for part in line.decode("latin-1").partition("="))
        if equals:
            fields[key] = value
        if "ElementDataFile" in fields:
            break
    try:
        return _parsed(fields, path, begin)
    except (KeyError, ValueError) as error:
        raise ReadError(f"{path}: not a MetaImage header, or damaged ({error}): copy it again") from error


def _parsed(fields: dict[str, str], path: Path, begin: int) -> MetaImageHeader:
    def numbers(*names: str, default: str) -> list[float]:
        return [float(word) for word in next((fields[n] for n in names if n in fields), default).split()]

    shape = tuple(int(word) for word in reversed(fields["DimSize"].split()))
    if len(shape) != 3 or fields.get("ElementNumberOfChannels", "1") != "1":
        raise ReadError(f"{path}: of size {fields['DimSize']}, not one grey volume: convert it to NIfTI")
    kind, name = fields["ElementType"], fields["ElementDataFile"]
    if kind not in _TYPES:
        raise ReadError(f"{path}: values of type {kind}: convert it to NIfTI")
    if "%" in name or name.upper().startswith("LIST"):
        raise ReadError(f"{path}: its values are spread over many files: convert it to NIfTI")
    axes = np.reshape(numbers("TransformMatrix", default="1 0 0 0 1 0 0 0 1"), (3, 3))
    if np.abs(np.abs(axes) - np.eye(3)).max() > _OBLIQUE:
        text = f"the volume is oblique or not axial (TransformMatrix {fields['TransformMatrix']})"
        raise ReadError(f"{path}: {text}: convert it to NIfTI")
    x, y, z = numbers("Offset", "Position", default="0 0 0")
    width, height, depth = numbers("ElementSpacing", "ElementSize", default="1 1 1")
    big_endian = fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False")) == "True"
    flipped = tuple(bool(axes[i, i] < 0) for i in (2, 1, 0))
    dtype = np.dtype((">" if big_endian else "<") + _TYPES[kind])
    data = (path, begin) if name.upper() == "LOCAL" else (path.parent / name, 0)
    compressed = fields.get("CompressedData") == "True"
    return MetaImageHeader(shape, (depth, height, width), (x, y, z), flipped, dtype, data, compressed)


def _stored(header: MetaImageHeader, path: Path) -> np.ndarray:
    """All values of a volume, flat; mapped where the file is not compressed, so that one slice is read alone."""
    (source, begin), count = header.data, int(np.prod(header.shape))
    if not source.is_file():
        raise ReadError(f"{path}: its values are in {source.name}, which is not beside it: copy that file too")
    if header.compressed:
        values = _inflated(source, begin, source.stat().st_mtime_ns, header.dtype.str)
    else:
        whole = source.stat().st_size >= begin + count * header.dtype.itemsize
        values = np.memmap(source, header.dtype, "r", begin, (count,)) if whole else np.empty(0)
    if values.size < count:
        raise ReadError(f"{source}: is cut short: copy it again")
    return values


@lru_cache(maxsize=2)
def _inflated(source: Path, begin: int, changed: int, dtype: str) -> np.ndarray:
    """Keyed by time as well, so that a file that was replaced is read again."""
    return np.frombuffer(zlib.decompress(source.read_bytes()[begin:]), np.dtype(dtype))
