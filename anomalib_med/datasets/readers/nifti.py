"""NIfTI volumes: every axial slice a frame, shown as a radiologist sees it, and maps written back in the same space."""

# nibabel leaves most of its functions without types.
# mypy: disallow-untyped-calls=False

import gzip
import mmap
import threading
import zlib
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, cast

import nibabel
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform

from anomalib_med.errors import OutputError, ReadError
from anomalib_med.files import output_errors, replacing
from anomalib_med.records import Image, Sample

SUFFIXES = (".nii", ".nii.gz")
VOLUMES_KEPT = 2

_RAS = np.array([[0, 1], [1, 1], [2, 1]])
_LOCK = threading.Lock()


def count_frames(path: Path) -> int:
    """Number of axial slices, from the header; raises ReadError where the file is not one NIfTI volume."""
    volume = _open(path)
    return int(volume.shape[_axes(_orientation(volume))[2]])


def read(sample: Sample, path: Path) -> Image:
    """One axial slice, ``scl_slope`` and ``scl_inter`` applied.

    Slices count from inferior to superior. Row 0 is anterior and column 0 is the patient's right, whatever the
    orientation of the file: with the volume in canonical RAS order, ``pixels = canonical[::-1, ::-1, frame].T``.
    An oblique volume is taken along the axis nearest to the patient's. Raises ReadError where the file is not one
    NIfTI volume, has no such slice, or is cut short.
    """
    volume, frame = _open(path), sample.frame or 0
    orientation = _orientation(volume)
    left_right, front_back, axis = _axes(orientation)
    slices = volume.shape[axis]
    if frame >= slices:
        raise ReadError(f"{path}: holds {slices} axial slices, there is no frame {frame}: correct the frame asked for")
    at = frame if orientation[axis, 1] > 0 else slices - 1 - frame
    where = tuple(slice(at, at + 1) if i == axis else slice(None) for i in range(3))
    pixels = apply_orientation(_block(volume, path, where), orientation)[::-1, ::-1, 0].T
    zooms = volume.header.get_zooms()
    spacing = (float(zooms[front_back]), float(zooms[left_right]))
    return Image(pixels, sample, spacing=spacing if min(spacing) > 0 else None)


def read_volume(path: Path) -> np.ndarray:
    """All axial slices of a volume, ``(frames, H, W)``, each as `read` gives it; raises ReadError as `read` does."""
    volume = _open(path)
    canonical = apply_orientation(_block(volume, path, (slice(None),) * 3), _orientation(volume))
    return np.asarray(canonical[::-1, ::-1].transpose(2, 1, 0))


def slice_affine(path: Path) -> np.ndarray:
    """The affine ``(4, 4)`` from ``(column, row, slice)``, as `read` gives them, to mm in the patient (RAS)."""
    volume = _open(path)
    orientation = _orientation(volume)
    canonical = volume.affine @ inv_ornt_aff(orientation, volume.shape[:3])
    shown = np.diag([-1.0, -1.0, 1.0, 1.0])
    shown[:2, 3] = [volume.shape[axis] - 1 for axis in _axes(orientation)[:2]]
    return np.asarray(canonical @ shown)


def write_slices(maps: np.ndarray, affine: np.ndarray, out: Path) -> None:
    """Write maps ``(slices, H, W)`` of a scan that is no NIfTI file, with an affine as from `slice_affine`.

    Raises OutputError where the file cannot be written.
    """
    data = maps.transpose(2, 1, 0)
    header = nibabel.Nifti1Image(np.empty((1, 1, 1), np.float32), affine).header
    header.set_xyzt_units("mm")
    header["descrip"] = b"anomaly map"
    header.set_sform(affine, 1)
    header.set_qform(affine, 1, strip_shears=True)
    _write(data, header, out, maps)


def write_volume(maps: np.ndarray, like: Path, out: Path) -> None:
    """Write the maps of all slices of the volume `like` as one NIfTI file in its orientation, affine and voxel order.

    The maps are float32 ``(frames, H, W)`` in the order and geometry of `read`. They may be a memmap: the file,
    ``.nii`` or ``.nii.gz``, is written slice by slice, and replaced only when it is complete.

    Raises
    ------
    OutputError
        Another shape than the volume's, another file type, or the file cannot be written.
    ReadError
        `like` cannot be read.
    """
    if not out.name.lower().endswith(SUFFIXES):
        raise OutputError(f"{out}: a volume is written as .nii or .nii.gz: change the name")
    volume = _open(like)
    orientation = _orientation(volume)
    data = apply_orientation(maps.transpose(2, 1, 0)[::-1, ::-1], ornt_transform(_RAS, orientation))
    if data.shape != volume.shape[:3]:
        raise OutputError(f"{out}: maps of shape {maps.shape} do not fit {like.name}, a volume of {volume.shape}")
    header = volume.header.copy()
    header.set_data_dtype(np.float32)
    header.extensions.clear()  # they may hold a DICOM header with the patient's name
    header["descrip"], header["intent_name"], header["db_name"], header["aux_file"] = b"anomaly map", b"", b"", b""
    header["cal_min"] = header["cal_max"] = 0
    _write(data, header, out, maps)


def _write(data: np.ndarray, header: nibabel.Nifti1Header, out: Path, maps: np.ndarray) -> None:
    """Write slab after slab, so that of maps in a memory map one slab is resident and not the volume."""
    mapped: mmap.mmap | None = getattr(maps, "_mmap", None)
    header.set_data_shape(data.shape)
    header.set_slope_inter(1, 0)
    header.set_data_offset(0)
    with output_errors(out), replacing(out) as temporary, temporary.open("wb") as raw, _compressed(raw, out) as file:
        header.write_to(file)
        for k in range(data.shape[2]):
            file.write(np.asarray(data[:, :, k], header.get_data_dtype()).tobytes(order="F"))
            if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
                mapped.madvise(mmap.MADV_DONTNEED)


def _compressed(raw: BinaryIO, out: Path) -> AbstractContextManager[BinaryIO]:
    if not out.name.lower().endswith(".gz"):
        return nullcontext(raw)
    return cast(BinaryIO, gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0))


def _open(path: Path) -> nibabel.Nifti1Image:
    """The header of one volume; the voxels stay in the file. Axes of length 1 after the third are kept."""
    try:
        volume = nibabel.load(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # nibabel lets whatever a damaged header causes through
        raise ReadError(f"{path}: not a NIfTI file, or damaged ({error}): copy or convert it again") from error
    if not isinstance(volume, nibabel.Nifti1Image):
        raise ReadError(f"{path}: not a NIfTI file but {type(volume).__name__}: convert it to NIfTI")
    if len(volume.shape) < 3 or any(length != 1 for length in volume.shape[3:]):
        raise ReadError(f"{path}: of shape {volume.shape}, not one volume (X, Y, Z): extract one volume first")
    if volume.get_data_dtype().kind not in "iuf":
        raise ReadError(f"{path}: voxels of type {volume.get_data_dtype()}: only real grey values are read")
    if 0 in volume.shape:
        raise ReadError(f"{path}: of shape {volume.shape}, the volume is empty: convert it again")
    return volume


def _orientation(volume: nibabel.Nifti1Image) -> np.ndarray:
    """For each voxel axis the patient axis (0 right, 1 anterior, 2 superior) and its direction (1 or -1)."""
    orientation: np.ndarray = io_orientation(volume.affine)
    if np.isnan(orientation).any():
        raise ReadError(f"{volume.get_filename()}: the affine maps an axis to nothing: correct sform or qform")
    return orientation


def _axes(orientation: np.ndarray) -> list[int]:
    """The voxel axes that run from left to right, from posterior to anterior, and from inferior to superior."""
    return [int(axis) for axis in np.argsort(orientation[:, 0])]


def _block(volume: nibabel.Nifti1Image, path: Path, where: tuple[slice, ...]) -> np.ndarray:
    """Scaled voxels ``(X, Y, Z)``, with length 1 along the axis that was cut."""
    try:
        proxy = cast(ArrayProxy, volume.dataobj)
        if not path.name.lower().endswith(".gz"):
            return np.asanyarray(proxy[(*where, *(0 for _ in volume.shape[3:]))])
        stat = path.stat()
        with _LOCK:  # readers of the slices of one volume wait for the first of them instead of all decompressing
            stored = _decompressed(path, stat.st_mtime_ns, stat.st_size)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ReadError(f"{path}: cut short or damaged ({error}): copy or convert it again") from error
    block = stored.reshape(stored.shape[:3])[where]
    return block if (proxy.slope, proxy.inter) == (1, 0) else block * proxy.slope + proxy.inter


@lru_cache(maxsize=VOLUMES_KEPT)
def _decompressed(path: Path, changed: int, size: int) -> np.ndarray:
    """Stored voxels, kept for all slices; keyed by time and size, so that a file that was replaced is read again."""
    return np.asanyarray(cast(ArrayProxy, _open(path).dataobj).get_unscaled())
