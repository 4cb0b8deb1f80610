"""The map of a DICOM series as a DICOM series of its own: one file a slice, in the study and the place of the scan.

Stored values are whole numbers from 0 to 65535, as in the 16-bit PNG maps; RescaleSlope and RescaleIntercept give the
map's own values. RescaleType is US: these are no Hounsfield units.
"""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian
from pydicom.valuerep import format_number_as_ds

from anomalib_med.files import move_folder, output_errors, temporary_beside
from anomalib_med.outputs.maps import quantised
from anomalib_med.records import Volume
from anomalib_med.version import __version__

SERIES_NUMBER = 9001
DESCRIPTION = "anomaly map (no Hounsfield units)"
_IDENTITY = ("StudyInstanceUID", "FrameOfReferenceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
_GEOMETRY = (
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    *("PatientPosition", "GantryDetectorTilt", "PositionReferenceIndicator", "InstanceNumber"),
)
_EMPTY = (
    *("PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber"),
    *("ReferringPhysicianName", "KVP", "AcquisitionNumber"),
)


class DicomMaps:
    """The maps of one DICOM series, written slice by slice; they appear when the last one is there.

    A map has the StudyInstanceUID and FrameOfReferenceUID of the scan and the position, orientation and spacing of its
    slice, so that it opens over the scan; the patient is named as in the tables, and nothing else of the patient is
    copied. Its own UIDs follow from those of the scan and from the run.

    `scale` is ``(lo, step)`` of :func:`.maps.png_scale`; `clipped` counts the pixels beyond it. `colour_range` is the
    window that the files state. `run` is any text that tells runs apart: the UIDs of the maps depend on it.
    """

    def __init__(
        self, volume: Volume, out: Path, scale: tuple[float, float], colour_range: tuple[float, float], run: str
    ) -> None:
        self.out = out
        self.clipped = 0
        self._patient, self._run, self._colours = volume.patient, run, colour_range
        self._scale = tuple(format_number_as_ds(value) for value in scale)  # as they are stored
        slices = zip(volume.samples, volume.slots, strict=True)
        self._slices = {sample.id: (sample.path, f"{slot + 1:04d}.dcm") for sample, slot in slices}
        self._partial = temporary_beside(out)
        with output_errors(out):
            self._partial.mkdir()

    def add(self, id: str, map: np.ndarray) -> str:
        """Write the float ``(H, W)`` map of a slice; returns its file below the folder of maps. Raises OutputError."""
        source, file = self._slices[id]
        assert source is not None
        tags = [*_IDENTITY, *_GEOMETRY]
        dataset = self._described(pydicom.dcmread(source, stop_before_pixels=True, specific_tags=tags))
        levels, clipped = quantised(map, (float(self._scale[0]), float(self._scale[1])))
        self.clipped += clipped
        dataset.Rows, dataset.Columns = levels.shape
        dataset.PixelData = levels.astype("<u2").tobytes()
        with output_errors(self.out):
            dataset.save_as(self._partial / file, enforce_file_format=True)
        return f"{self.out.name}/{file}"

    def write(self) -> None:
        """Put the series in its place; raises OutputError."""
        with output_errors(self.out):
            if any(self._partial.iterdir()):
                move_folder(self._partial, self.out)
        self.discard()

    def discard(self) -> None:
        """Forget what was written; what lies at `out` is untouched."""
        shutil.rmtree(self._partial, ignore_errors=True)

    def _described(self, source: Dataset) -> Dataset:
        """The data set of a map without its pixels, for the slice whose header is `source`."""
        d = Dataset()
        for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", *_GEOMETRY):
            if keyword in source:
                setattr(d, keyword, source[keyword].value)
        for keyword in _EMPTY:
            setattr(d, keyword, "")
        d.PatientID, d.Modality = self._patient, "CT"
        d.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
        d.SOPClassUID = CTImageStorage
        d.SeriesInstanceUID = self._uid(str(source.get("SeriesInstanceUID", self.out.name)))
        d.SOPInstanceUID = self._uid(str(source.get("SOPInstanceUID", "")) + str(source.get("InstanceNumber", "")))
        d.SeriesNumber, d.SeriesDescription = SERIES_NUMBER, DESCRIPTION
        d.Manufacturer, d.SoftwareVersions = "anomalib-med", __version__
        d.DerivationDescription = "anomaly map: higher is more anomalous"
        if "SOPInstanceUID" in source and "SOPClassUID" in source:
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
            d.SourceImageSequence = [item]
        d.SamplesPerPixel, d.PhotometricInterpretation, d.PixelRepresentation = 1, "MONOCHROME2", 0
        d.BitsAllocated, d.BitsStored, d.HighBit = 16, 16, 15
        d.RescaleIntercept, d.RescaleSlope = self._scale
        d.RescaleType, d.BurnedInAnnotation = "US", "NO"
        low, high = self._colours
        d.WindowCenter, d.WindowWidth = format_number_as_ds((low + high) / 2), format_number_as_ds(high - low)
        d.VOILUTFunction = "LINEAR_EXACT"  # LINEAR counts in whole grey values
        d.file_meta = FileMetaDataset()
        d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        return d

    def _uid(self, text: str) -> UID:
        digest = hashlib.sha256(f"{self._run} {text}".encode()).digest()
        return UID(f"2.25.{int.from_bytes(digest[:16])}")
