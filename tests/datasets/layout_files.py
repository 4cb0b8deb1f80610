"""Small files for trees in published layouts: pictures, masks, tables, DICOM, MetaImage, NIfTI."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np

from tests.made_up_files import write_dicom, write_nifti


def picture(path: Path, shape: tuple[int, int] = (24, 20), value: int | None = None) -> Path:
    """A grey picture of any raster format; each name has its own content unless a value is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(map(ord, path.name))
    pixels = np.random.default_rng(seed).integers(0, 255, shape) if value is None else np.full(shape, value)
    cv2.imwrite(str(path), pixels.astype(np.uint8))
    return path


def pictures(root: Path, names: Iterable[str], shape: tuple[int, int] = (24, 20)) -> None:
    """Several pictures below a folder."""
    for name in names:
        picture(root / name, shape)


def lesion_mask(path: Path, shape: tuple[int, int] = (24, 20), value: int = 255) -> Path:
    """A mask with 12 lesion pixels, rows 4 to 6 and columns 8 to 11."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros(shape, np.uint8)
    mask[4:7, 8:12] = value
    cv2.imwrite(str(path), mask)
    return path


def table(path: Path, header: str, rows: Sequence[str]) -> Path:
    """A CSV table as it is published, header and all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def dicom(path: Path, patient: str = "p") -> None:
    """A small radiograph."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_dicom(path, np.arange(24 * 20, dtype=np.uint16).reshape(24, 20), PatientID=patient)


def metaimage(
    path: Path,
    voxels: np.ndarray,
    *,
    origin: tuple[float, float, float],
    flip: bool = False,
    spacing: tuple[float, float, float] = (0.7, 0.7, 2.5),
) -> None:
    """A volume as LUNA16 publishes it; spacing of x, y, z in mm; `flip` stores rows and columns backwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = " ".join(map(str, voxels.shape[::-1]))
    steps = " ".join(map(str, spacing))
    sign = "-1 0 0 0 -1 0 0 0 1" if flip else "1 0 0 0 1 0 0 0 1"
    header = (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n"
        f"TransformMatrix = {sign}\nOffset = {' '.join(map(str, origin))}\nCenterOfRotation = 0 0 0\n"
        f"AnatomicalOrientation = RAI\nElementSpacing = {steps}\nDimSize = {size}\nElementType = MET_SHORT\n"
        f"ElementDataFile = {path.stem}.raw\n"
    )
    path.write_text(header)
    path.with_suffix(".raw").write_bytes(voxels.astype("<i2").tobytes())


def volumes(image: Path, mask: Path, background: float, inside: float) -> None:
    """Twelve slices of 20 x 24 pixels; the first and last two are empty, 4 and 5 have a lesion of 24 voxels."""
    voxels = np.full((24, 20, 12), background, np.float32)
    voxels[4:20, 4:16, 2:10] = inside
    classes = np.zeros(voxels.shape, np.uint8)
    classes[8:14, 6:10, 4:6] = 1
    image.parent.mkdir(parents=True, exist_ok=True)
    mask.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(image, voxels)
    write_nifti(mask, classes)
