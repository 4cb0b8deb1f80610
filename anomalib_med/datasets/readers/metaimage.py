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
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_HEADER_BYTES = 65536
_OBLIQUE = 0.02  # a direction cosine off by more than this is no flip of an axis


@dataclass(frozen=True, slots=True)
class Volume:
    """What the header of a MetaImage says.

    Parameters
    ----------
    shape
        Slices, rows, columns.
    spacing
        Millimetres between slices, rows, columns.
    origin
        World position (LPS, mm) of the first stored voxel: x, y, z.
    flipped
        Whether slices, rows, columns are stored against the LPS axes.
    dtype
        Of a stored value.
    data
        The file with the values, and where they begin in it.
    compressed
        Values are a zlib stream.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    flipped: tuple[bool, bool, bool]
    dtype: np.dtype
    data: tuple[Path, int]
    compressed: bool

    def index(self, x: float, y: float, z: float) -> tuple[float, float, float]:
        """Slice, row and column, as shown, of a world position (LPS, mm)."""
        world = (z, y, x)
        place = []
        for axis, (flipped, length) in enumerate(zip(self.flipped, self.shape, strict=True)):
            steps = (world[axis] - self.origin[2 - axis]) / self.spacing[axis]
            place.append(length - 1 + steps if flipped else steps)
        return place[0], place[1], place[2]


def slice_affine(path: Path) -> np.ndarray:
    """The affine ``(4, 4)`` from ``(column, row, slice)``, as `read` gives them, to mm in the patient (RAS).

    Raises
    ------
    ReadError
        As `read_header`.
    """
    volume = read_header(path)
    affine = np.eye(4)
    for axis, sign in enumerate((-1, -1, 1)):  # MetaImage counts to the left and to the back, RAS does not
        at = 2 - axis
        reach = (volume.shape[at] - 1) * volume.spacing[at] if volume.flipped[at] else 0.0
        affine[axis, axis] = sign * volume.spacing[at]
        affine[axis, 3] = sign * (volume.origin[axis] - reach)
    return affine


def count_frames(path: Path) -> int:
    """Axial slices; only the header is read.

    Raises
    ------
    ReadError
        Not a MetaImage that can be read.
    """
    return read_header(path).shape[0]


def read(sample: Sample, path: Path) -> Image:
    """One axial slice, the stored values.

    Raises
    ------
    ReadError
        Not a MetaImage that can be read, no such slice, cut short, the file with the values is missing.
    """
    volume, frame = read_header(path), sample.frame or 0
    slices, rows, columns = volume.shape
    if frame >= slices:
        raise ReadError(f"{path}: holds {slices} axial slices, there is no frame {frame}: correct the frame asked for")
    at = slices - 1 - frame if volume.flipped[0] else frame
    pixels = _stored(volume, path)[at * rows * columns : (at + 1) * rows * columns].reshape(rows, columns)
    pixels = pixels[:: -1 if volume.flipped[1] else 1, :: -1 if volume.flipped[2] else 1]
    return Image(pixels, sample, spacing=volume.spacing[1:])


def read_header(path: Path) -> Volume:
    """Read the header of a volume.

    Raises
    ------
    ReadError
        A field is missing or has a value that is not supported.
    """
    return _header(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _header(path: Path, changed: int) -> Volume:
    """Keyed by time as well, so that a file that was replaced is read again."""
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES)
    fields, begin = {}, 0
    for line in head.split(b"\n"):
        begin += len(line) + 1
        key, equals, value = line.decode("latin-1").partition("=")
        if not equals:
            continue
        fields[key.strip()] = value.strip()
        if key.strip() == "ElementDataFile":
            break
    try:
        return _volume(fields, path, begin)
    except (KeyError, ValueError) as error:
        raise ReadError(f"{path}: not a MetaImage header, or damaged ({error}): copy it again") from error


def _volume(fields: dict[str, str], path: Path, begin: int) -> Volume:
    size = [int(word) for word in fields["DimSize"].split()]
    if len(size) != 3 or fields.get("ElementNumberOfChannels", "1") != "1":
        raise ReadError(f"{path}: of size {fields['DimSize']}, not one grey volume: convert it to NIfTI")
    kind = fields["ElementType"]
    if kind not in _TYPES:
        raise ReadError(f"{path}: values of type {kind}: convert it to NIfTI")
    order = ">" if fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False")) == "True" else "<"
    spacing = [float(word) for word in fields.get("ElementSpacing", fields.get("ElementSize", "1 1 1")).split()]
    origin = [float(word) for word in fields.get("Offset", fields.get("Position", "0 0 0")).split()]
    name = fields["ElementDataFile"]
    local = name.upper() == "LOCAL"
    if not local and ("%" in name or name.upper().startswith("LIST")):
        raise ReadError(f"{path}: its values are spread over many files: convert it to NIfTI")
    return Volume(
        shape=(size[2], size[1], size[0]),
        spacing=(spacing[2], spacing[1], spacing[0]),
        origin=(origin[0], origin[1], origin[2]),
        flipped=_flips(fields.get("TransformMatrix", "1 0 0 0 1 0 0 0 1"), path),
        dtype=np.dtype(order + _TYPES[kind]),
        data=(path, begin) if local else (path.parent / name, 0),
        compressed=fields.get("CompressedData", "False") == "True",
    )


def _flips(text: str, path: Path) -> tuple[bool, bool, bool]:
    """Which of slices, rows, columns are stored against the axes."""
    matrix = np.array([float(word) for word in text.split()]).reshape(3, 3)
    if np.abs(np.abs(matrix) - np.eye(3)).max() > _OBLIQUE:
        raise ReadError(f"{path}: the volume is oblique or not axial (TransformMatrix {text}): convert it to NIfTI")
    x, y, z = (bool(matrix[i, i] < 0) for i in range(3))
    return z, y, x


def _stored(volume: Volume, path: Path) -> np.ndarray:
    """All values of a volume, flat; mapped where the file is not compressed, so that one slice is read alone."""
    source, begin = volume.data
    count = int(np.prod(volume.shape))
    if not source.is_file():
        raise ReadError(f"{path}: its values are in {source.name}, which is not beside it: copy that file too")
    if volume.compressed:
        values = _inflated(source, begin, source.stat().st_mtime_ns, str(volume.dtype.str))
    else:
        if source.stat().st_size < begin + count * volume.dtype.itemsize:
            raise ReadError(f"{source}: is cut short: copy it again")
        values = np.memmap(source, volume.dtype, "r", begin, (count,))
    if values.size < count:
        raise ReadError(f"{source}: is cut short: copy it again")
    return values


@lru_cache(maxsize=2)
def _inflated(source: Path, begin: int, changed: int, dtype: str) -> np.ndarray:
    """Keyed by time as well, so that a file that was replaced is read again."""
    return np.frombuffer(zlib.decompress(source.read_bytes()[begin:]), np.dtype(dtype))
