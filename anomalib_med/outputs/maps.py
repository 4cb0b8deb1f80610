"""Anomaly maps on disk: ``.npy``, 16-bit PNG with its scale, and NIfTI for volumes.

A 16-bit PNG holds whole numbers from 0 to 65535; ``value = lo + png * step``. `lo` and `step` are the same for all
images of a run, so maps can be compared by eye and written before the last one is known. They stand in
``maps/scale.json`` and in every PNG (tEXt chunks ``anomed:lo``, ``anomed:step``, and ``anomed:clipped``, the number of
pixels beyond the scale).
"""

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np

from anomalib_med.errors import OutputError
from anomalib_med.files import output_errors, temporary_beside, write_atomic
from anomalib_med.records import Volume

_LEVELS = 65535
_BELOW, _SPANS = 1.0, 8.0  # the scale starts one colour span below the colour range and is eight spans wide
_IHDR_END = 33  # signature and IHDR chunk: text chunks go right behind it


def png_scale(colour_range: tuple[float, float]) -> tuple[float, float]:
    """The fixed scale ``(lo, step)`` of the 16-bit maps of a run, with 8192 steps inside the colour range.

    It covers one width of the colour range below it and six above it; the little beyond that is clipped and counted.
    """
    lo, hi = colour_range
    span = hi - lo
    return lo - _BELOW * span, _SPANS * span / _LEVELS


def write_npy(path: Path, map: np.ndarray) -> None:
    """Write a float32 ``(H, W)`` map as ``.npy``; raises OutputError."""
    buffer = io.BytesIO()
    np.save(buffer, map.astype(np.float32, copy=False), allow_pickle=False)
    write_atomic(path, buffer.getbuffer())


def write_png(path: Path, map: np.ndarray, scale: tuple[float, float]) -> int:
    """Write a float ``(H, W)`` map as a 16-bit PNG that knows its own `scale`; raises OutputError.

    Returns
    -------
    How many pixels lay beyond the scale; NaN counts, and becomes the lowest level.
    """
    lo, step = scale
    levels, clipped = quantised(map, scale)
    encoded = cv2.imencode(".png", levels)[1].tobytes()
    texts = {"anomed:lo": repr(lo), "anomed:step": repr(step), "anomed:clipped": str(clipped)}
    chunks = b"".join(_text_chunk(key, value) for key, value in texts.items())
    write_atomic(path, encoded[:_IHDR_END] + chunks + encoded[_IHDR_END:])
    return clipped


def quantised(map: np.ndarray, scale: tuple[float, float]) -> tuple[np.ndarray, int]:
    """A map as uint16 on a scale ``(lo, step)``, and how many pixels lay beyond it; NaN becomes the lowest level."""
    lo, step = scale
    levels = np.rint((map.astype(np.float64) - lo) / step)
    inside = (levels >= 0) & (levels <= _LEVELS)
    clipped = int(inside.size - np.count_nonzero(inside))
    levels = np.clip(np.nan_to_num(levels, nan=0.0, posinf=_LEVELS, neginf=0.0), 0, _LEVELS)
    return levels.astype(np.uint16), clipped


def clipped_pixels(path: Path) -> int:
    """How many pixels of a map of `write_png` lay beyond the scale, from its first bytes; raises OutputError."""
    with output_errors(path), path.open("rb") as handle:
        head = handle.read(512)
    key = b"tEXtanomed:clipped\0"
    at = head.find(key)
    if at < 0:
        raise OutputError(f"{path}: not a map of this program (its scale is missing): score again with --overwrite")
    length = int.from_bytes(head[at - 4 : at])  # keyword, zero and text
    return int(head[at + len(key) : at + 4 + length])


class VolumeMaps:
    """The maps of one volume, gathered slice by slice in a file so that memory holds one slice.

    The map, a ``.nii.gz``, lies over the volume: it gets the orientation and affine of a NIfTI file, or the slices and
    the `Volume.affine` of a DICOM series or MetaImage. The slices lie beside `out` until `write` or `discard`.
    """

    def __init__(self, volume: Volume, out: Path) -> None:
        self.volume = volume
        self.out = out
        self.clipped = 0  # float32 holds every value
        self.shape: tuple[int, int] | None = None
        self._slots = dict(zip((sample.id for sample in volume.samples), volume.slots, strict=True))
        self._filled: set[int] = set()
        self._temporary = temporary_beside(out)
        with output_errors(out):
            # Plain writes, not a writable memory map: a full disk is then an error and not the end of the process.
            self._handle = self._temporary.open("wb")

    def add(self, id: str, map: np.ndarray) -> str:
        """Store the float ``(H, W)`` map of a slice; returns its file below the folder of maps.

        Raises OutputError for a map of another size than those before.
        """
        self.shape = self.shape or (map.shape[0], map.shape[1])
        if map.shape != self.shape:
            raise OutputError(f"{id}: the slice is {map.shape}, the others {self.shape}: use --maps npy")
        self._put(self._slots[id], map)
        return self.out.name

    def write(self) -> None:
        """Write the volume of maps, with NaN in slices that were not scored, and remove what was gathered."""
        from anomalib_med.datasets.readers.nifti import SUFFIXES, write_slices, write_volume

        source = self.volume.path
        try:
            if self.shape is None:
                return
            for slot in sorted(set(range(self.volume.length)) - self._filled):
                self._put(slot, np.full(self.shape, np.nan, np.float32))
            with output_errors(self.out):
                self._handle.close()
                maps = np.memmap(self._temporary, np.float32, "r", shape=(self.volume.length, *self.shape))
                if source is not None and source.name.lower().endswith(SUFFIXES):
                    write_volume(maps, source, self.out)
                else:
                    assert self.volume.affine is not None
                    write_slices(maps, self.volume.affine, self.out)
        finally:
            self.discard()

    def discard(self) -> None:
        """Forget the gathered slices; what lies at `out` is untouched."""
        with output_errors(self.out):
            self._handle.close()
            self._temporary.unlink(missing_ok=True)

    def _put(self, slot: int, map: np.ndarray) -> None:
        with output_errors(self.out):
            self._handle.seek(slot * map.size * 4)
            self._handle.write(np.ascontiguousarray(map, np.float32).data)
        self._filled.add(slot)


def _text_chunk(key: str, value: str) -> bytes:
    body = b"tEXt" + key.encode("latin-1") + b"\0" + value.encode("latin-1")
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
