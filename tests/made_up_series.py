"""CT series written as DICOM where a test wants them."""

from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import CTImageStorage

from tests.made_up_files import write_dicom

AXIAL = (1.0, 0, 0, 0, 1, 0)


def write_slice(path: Path, hu: np.ndarray, position: tuple[float, ...] | None, **tags: object) -> Path:
    """One CT slice in Hounsfield units; `position` in mm (LPS), None to leave the place out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    known: dict[str, object] = {
        "Modality": "CT",
        "SOPClassUID": CTImageStorage,
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "RescaleIntercept": -1024,
        "RescaleSlope": 1,
        "PixelSpacing": [1.0, 1.0],
        "StudyInstanceUID": "1.2.9",
        "SeriesInstanceUID": "1.2.9.1",
    }
    if position is not None:
        known |= {"ImageOrientationPatient": list(AXIAL), "ImagePositionPatient": [f"{p:.6g}" for p in position]}
    return write_dicom(path, (hu + 1024).astype(np.uint16), **(known | tags))


def write_series(
    folder: Path,
    volume: np.ndarray,
    *,
    origin: tuple[float, float, float] = (0.0, 0, 0),
    axes: tuple[float, ...] = AXIAL,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    way: tuple[float, ...] | None = None,
    order: list[int] | None = None,
    **tags: object,
) -> list[Path]:
    """A volume ``(slices, H, W)`` in Hounsfield units as DICOM files, named in `order`.

    `spacing` is between slices, rows and columns; slice k lies ``k * spacing[0]`` along `way`, the slice normal where
    none is given. Returns the files in the order of the slices.
    """
    normal = np.cross(axes[:3], axes[3:]) if way is None else np.asarray(way)
    order = list(range(len(volume))) if order is None else order
    files = []
    for k, hu in enumerate(volume):
        position = tuple(np.asarray(origin) + k * spacing[0] * normal)
        known = {"ImageOrientationPatient": [f"{a:.10g}" for a in axes], "PixelSpacing": list(spacing[1:])}
        known |= {"InstanceNumber": order[k] + 1}
        files.append(write_slice(folder / f"{order[k]:04d}.dcm", hu, position, **(known | tags)))
    return files


def write_capture(path: Path, **tags: object) -> Path:
    """A secondary capture in colour."""
    write_dicom(path, np.zeros((8, 8), np.uint16), StudyInstanceUID="1.2.9", SeriesInstanceUID="1.2.9.7", Modality="OT")
    ds = pydicom.dcmread(path)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit = 7
    ds.PixelData = bytes(range(192))
    for keyword, value in tags.items():
        setattr(ds, keyword, value)
    ds.save_as(path)
    return path


def chest_volume(seed: int, slices: int = 12, size: int = 128) -> np.ndarray:
    """A body with two lungs and a spine in Hounsfield units, ``(slices, size, size)``; alike but for its seed."""
    rng = np.random.default_rng(seed)
    y, x = (np.mgrid[:size, :size].astype(np.float32) + 0.5) / size
    across, deep, up = rng.uniform(0.97, 1.03, 3)

    def inside(cx: float, cy: float, rx: float, ry: float) -> np.ndarray:
        return np.asarray(((x - cx) / (rx * across)) ** 2 + ((y - cy) / (ry * deep)) ** 2 < 1)

    volume = np.full((slices, size, size), -1000.0, np.float32)
    for k in range(slices):
        grow = 1 + 0.1 * np.sin(3.0 * up * k / slices)
        volume[k][inside(0.5, 0.5, 0.44, 0.36)] = 30
        for cx in (0.3, 0.7):
            volume[k][inside(cx, 0.48, 0.13 * grow, 0.22 * grow)] = -850
        volume[k][inside(0.5, 0.72, 0.05, 0.05)] = 400
    return volume + rng.normal(0, 20, volume.shape).astype(np.float32)
