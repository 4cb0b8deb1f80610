"""PNG, JPEG, TIFF and BMP: 8 and 16 bit and floating point, grey and colour.

The stored rows and columns are kept as they are: an EXIF orientation is ignored on purpose, because masks, boxes and
maps are given in stored pixels. A photographed film that carries one should be turned before it is used.
"""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from anomalib_med.errors import ReadError
from anomalib_med.records import Image, Sample

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")

_PNG = b"\x89PNG\r\n\x1a\n"
# Byte order, and whether offsets have 64 bits.
_TIFF = {b"II*\0": ("<", False), b"MM\0*": (">", False), b"II+\0": ("<", True), b"MM\0+": (">", True)}
_CUT_SHORT = "is cut short: copy or export it again"

_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
_PIECES = ((273, 279), (324, 325))  # offsets and lengths of strips, of tiles
_WANTED = {_PHOTOMETRIC, *_PIECES[0], *_PIECES[1]}
_FIELD_TYPES = {3: "u2", 4: "u4", 16: "u8"}


def count_frames(path: Path) -> int:
    """Pages of a TIFF, 1 for every other format. Only the directories of a TIFF are read, and nothing of the others."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        return 1
    data = _mapped(path)
    # Another format may go by this name: the decoder looks at the content.
    return len(list(_tiff_pages(data, path))) if data[:4].tobytes() in _TIFF else 1


def read(sample: Sample, path: Path) -> Image:
    """Decode one image, or one page of a TIFF; the content decides on the format, not the name.

    The stored values are ``(H, W)``, or ``(H, W, 3)`` in RGB order where the three channels differ. Transparency is
    dropped, a palette is looked up, and a TIFF in which white is zero is inverted. Raises ReadError where the file is
    no image, cut short, or of an unsupported kind.
    """
    frame = sample.frame or 0
    data = _mapped(path)
    if data[:4].tobytes() in _TIFF:
        return Image(grey_if_equal(_read_tiff(data, path, frame)), sample)
    if frame > 0:
        raise ReadError(f"{path}: holds one image, there is no frame {frame}: correct the frame that was asked for")
    if not _is_whole(data.tobytes()):
        raise ReadError(f"{path}: {_CUT_SHORT}")
    try:
        decoded = cv2.imdecode(np.array(data), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ReadError(f"{path}: cannot be decoded ({error.err}): save it as PNG or TIFF") from error
    if decoded is None:
        raise ReadError(f"{path}: not an image, or damaged: PNG, JPEG, TIFF and BMP are read under this name")
    return Image(grey_if_equal(_without_alpha(decoded, path)), sample)


def grey_if_equal(pixels: np.ndarray) -> np.ndarray:
    """Drop the colour axis, ``(H, W, 3)`` to ``(H, W)``, where the three channels are equal everywhere."""
    if pixels.ndim == 3 and all(np.array_equal(pixels[..., 0], pixels[..., i]) for i in (1, 2)):
        return pixels[..., 0]
    return pixels


def _mapped(path: Path) -> np.ndarray:
    """The bytes of a file, uint8; mapped, so that one page of a large TIFF is read without the others."""
    if path.stat().st_size == 0:
        raise ReadError(f"{path}: the file is empty: copy or export it again")
    return np.memmap(path, np.uint8, "r")


def _without_alpha(decoded: np.ndarray, path: Path) -> np.ndarray:
    pixels = np.atleast_3d(decoded)
    if pixels.shape[2] > 4:
        raise ReadError(f"{path}: has {pixels.shape[2]} channels: save it as grey or RGB")
    return pixels[..., 2::-1] if pixels.shape[2] > 2 else pixels[..., 0]  # OpenCV gives blue, green, red


def _is_whole(data: bytes) -> bool:
    """Whether a PNG or JPEG has its end; decoders fill what is missing with grey and say nothing."""
    if data.startswith(_PNG):
        at, kind = len(_PNG), b""
        while kind != b"IEND" and at + 12 <= len(data):
            kind = data[at + 4 : at + 8]
            at += 12 + int.from_bytes(data[at : at + 4], "big")
        return kind == b"IEND" and at <= len(data)
    if data.startswith(b"\xff\xd8\xff"):
        at = 2
        # A thumbnail inside a segment has an end marker of its own, so the search starts at the scan.
        while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
            at += 1 if data[at + 1] == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        return data.find(b"\xff\xd9", at) >= 0
    return True


def _read_tiff(data: np.ndarray, path: Path, frame: int) -> np.ndarray:
    pages = list(_tiff_pages(data, path))
    if frame >= len(pages):
        raise ReadError(f"{path}: holds {len(pages)} pages, there is no frame {frame}: correct the frame asked for")
    page = pages[frame]
    pieces = [zip(page.get(offsets, ()), page.get(lengths, ()), strict=False) for offsets, lengths in _PIECES]
    if any(start + size > data.size for piece in pieces for start, size in piece):
        raise ReadError(f"{path}: {_CUT_SHORT}")
    try:
        complete, decoded = cv2.imdecodemulti(data, cv2.IMREAD_UNCHANGED, range=(frame, frame + 1))
    except cv2.error as error:
        raise ReadError(f"{path}: cannot be decoded ({error.err}): save it as an uncompressed TIFF") from error
    if not complete or len(decoded) != 1:
        raise ReadError(f"{path}: page {frame} cannot be decoded: save it as an uncompressed TIFF")
    pixels = _without_alpha(decoded[0], path)
    if page.get(_PHOTOMETRIC) == [_WHITE_IS_ZERO] and pixels.dtype == np.uint16:
        return 65535 - pixels  # the decoder inverts 8 bits and leaves 16 bits as they are
    return pixels


def _tiff_pages(data: np.ndarray, path: Path) -> Iterator[dict[int, list[int]]]:
    """The wanted fields of every page of a TIFF or BigTIFF, in order."""
    order, big = _TIFF[data[:4].tobytes()]
    word = np.dtype(order + ("u8" if big else "u4"))
    count = np.dtype(order + ("u8" if big else "u2"))
    entry = np.dtype([("tag", order + "u2"), ("type", order + "u2"), ("number", word), ("at", word)])
    seen: set[int] = set()
    try:
        at = int(np.frombuffer(data, word, 1, 8 if big else 4)[0])
        while at and at not in seen:
            seen.add(at)
            fields, first = int(np.frombuffer(data, count, 1, at)[0]), at + count.itemsize
            page = {}
            for i, (tag, kind, number, place) in enumerate(np.frombuffer(data, entry, fields, first).tolist()):
                if tag in _WANTED and kind in _FIELD_TYPES:
                    values = np.dtype(order + _FIELD_TYPES[kind])
                    inline = number * values.itemsize <= word.itemsize
                    start = first + (i + 1) * entry.itemsize - word.itemsize if inline else place
                    page[tag] = np.frombuffer(data, values, number, start).tolist()
            yield page
            at = int(np.frombuffer(data, word, 1, first + fields * entry.itemsize)[0])
    except (ValueError, OverflowError) as error:
        raise ReadError(f"{path}: {_CUT_SHORT}") from error
    if not seen:
        raise ReadError(f"{path}: the TIFF holds no page: copy or export it again")
