"""Small files of several kinds, written where a test wants them."""

# nibabel leaves most of its functions without types.
# mypy: disallow-untyped-calls=False

from pathlib import Path

import cv2
import nibabel
import numpy as np
import PIL.Image
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from tests.conftest import normal_picture

PATIENT_NAME, PATIENT_ID = "Doe^Jane", "PID-7731-XQ"


def write_pictures(folder: Path, count: int, *, first: int = 0, shape: tuple[int, int] = (96, 80)) -> Path:
    """Normal PNG files ``image_00.png`` and so on, each of another seed."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        cv2.imwrite(str(folder / f"image_{i:02d}.png"), normal_picture(first + i, shape))
    return folder


def write_dicom(
    path: Path, pixels: np.ndarray | bytes, *, syntax: UID = ExplicitVRLittleEndian, **tags: object
) -> Path:
    """A radiograph of a named patient; pixels uint16 ``(H, W)``, or the bytes of a compressed stream."""
    shape = pixels.shape if isinstance(pixels, np.ndarray) else (16, 16)
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.Modality = "1.2.3", "1.2.3.4", "DX"
    ds.PatientName, ds.PatientID, ds.PatientBirthDate = PATIENT_NAME, PATIENT_ID, "19700101"
    ds.Rows, ds.Columns = shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    raw = pixels.tobytes() if isinstance(pixels, np.ndarray) else pydicom.encaps.encapsulate([pixels])
    ds.add_new("PixelData", "OW" if isinstance(pixels, np.ndarray) else "OB", raw)
    for keyword, value in tags.items():
        setattr(ds, keyword, value)
    ds.save_as(path, enforce_file_format=True)
    return path


def write_dicom_without_pixels(path: Path) -> Path:
    """A DICOM object that is no image."""
    ds = pydicom.dcmread(write_dicom(path, normal_picture(0).astype(np.uint16)))
    for keyword in ("PixelData", "Rows", "Columns"):
        delattr(ds, keyword)
    ds.save_as(path, enforce_file_format=True)
    return path


def write_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """A volume ``(X, Y, Z)``; voxels of 1 mm in RAS order where no affine is given."""
    nibabel.Nifti1Image(voxels, np.eye(4) if affine is None else affine).to_filename(path)
    return path


def write_table(path: Path, header: str, *rows: str) -> Path:
    """A CSV table."""
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def read_png_map(path: Path) -> np.ndarray:
    """An anomaly map from a 16-bit PNG, by the scale that the file states."""
    with PIL.Image.open(path) as image:
        lo, step = (float(image.text[f"anomed:{key}"]) for key in ("lo", "step"))
        return (lo + np.asarray(image) * step).astype(np.float32)
