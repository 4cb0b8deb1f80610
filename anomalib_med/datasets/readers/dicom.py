"""DICOM: radiographs, CT and others, in physical units, of every transfer syntax that pydicom has a decoder for.

The order is the standard's (PS3.3 C.11): stored values, then Modality LUT or rescale, then for radiographs the VOI LUT,
then the inversion of MONOCHROME1. A window is handed on and not applied.

Nobody's name or birth date is read. PatientID and the UIDs are replaced by pseudonyms unless they are asked for.
"""

import hashlib
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import pixel_array

from anomalib_med.datasets.readers.raster import grey_if_equal
from anomalib_med.errors import ReadError
from anomalib_med.records import Image, Place, Sample

SUFFIXES = (".dcm", ".dicom", ".dic", ".ima")
RADIOGRAPHS = ("CR", "DX", "MG", "IO", "PX", "RG", "RF", "XA")
AXIAL = 0.8
"""Least cosine between the axes of an axial slice and the axes of the patient."""
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
CT_PADDING = -2000.0
"""Hounsfield units at and below which no scanner measures: the filling outside the reconstructed circle."""

_HEADER_TAGS = [
    *("PatientID", "PatientSex", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "ViewPosition"),
    *("NumberOfFrames", "Rows", "Columns", "SOPClassUID", "ImageType", "SamplesPerPixel"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "InstanceNumber", "AcquisitionNumber"),
]
_IMAGE_TAGS = [
    *("SOPClassUID", "Modality", "NumberOfFrames", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PlanarConfiguration"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "PixelSpacing", "ImagerPixelSpacing", "ImageOrientationPatient"),
    *(f"{hue}PaletteColorLookupTable{part}" for hue in ("Red", "Green", "Blue") for part in ("Descriptor", "Data")),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
]
_EXTRA = 'pip install "anomalib-med[dicom]"'


@dataclass(frozen=True, slots=True)
class HeaderInfo:
    """What the header of a file says without its pixels; "" where it does not say, as for every format but DICOM.

    Patient, study and series are pseudonyms (``dicom-``, ``study-``, ``series-`` and 12 hexadecimal digits), or the
    identifiers if asked for. Modality, view and sex are DICOM's codes. `place` is known of DICOM files with one image.
    """

    frames: int = 1
    patient: str = ""
    study: str = ""
    series: str = ""
    modality: str = ""
    view: str = ""
    sex: str = ""
    place: Place | None = None


def is_dicom(path: Path) -> bool:
    """Whether a file has DICOM's mark after its preamble."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def header(path: Path, *, keep_patient_ids: bool = False) -> HeaderInfo:
    """Read who and what a file is; pixels, name and birth date are left in the file.

    The patient is PatientID, or the study or series where the file has none, or "". Raises ReadError where the file is
    not DICOM.
    """
    tags = _tags(path, _HEADER_TAGS)

    def named(keyword: str, prefix: str) -> str:
        value = str(tags.get(keyword) or "").strip()
        pseudonym = f"{prefix}-{hashlib.sha256(value.encode()).hexdigest()[:12]}"
        return value if keep_patient_ids or not value else pseudonym

    whose = (named(keyword, "dicom") for keyword in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID"))
    series = named("SeriesInstanceUID", "series")
    frames = min(_frames(tags), path.stat().st_size)  # a damaged number must not become a billion samples
    modality, view, sex = (str(tags.get(keyword) or "") for keyword in ("Modality", "ViewPosition", "PatientSex"))
    place = _place(tags, series) if frames == 1 else None
    study = named("StudyInstanceUID", "study")
    return HeaderInfo(frames, next(filter(None, whose), ""), study, series, modality, view, sex, place)


def read(sample: Sample, path: Path) -> Image:
    """Decode one frame into physical units: Hounsfield units for CT, the stored values after rescale elsewhere, or RGB.

    MONOCHROME1 is inverted as ``lowest + highest - value``, with the lowest and highest value that the bits stored can
    hold, so that it does not depend on the content. `window` is the first one the file states, as the values where
    PS3.3 C.11.2.1.2 begins and ends its ramp. `missing` is the pixel padding, and what lies at or below `CT_PADDING` in
    a CT. Raises ReadError where the file is not DICOM, has no pixel data or no such frame, is cut short, or compressed
    in a way that no decoder here knows.
    """
    tags, frame = _tags(path, _IMAGE_TAGS), sample.frame or 0
    if "Rows" not in tags:
        what = tags.get("SOPClassUID")
        kind = f" ({uid.UID(what).name})" if what else ""
        raise ReadError(f"{path}: a DICOM object without pixel data{kind}: leave it out, or export the image itself")
    if frame >= _frames(tags):
        raise ReadError(f"{path}: holds {_frames(tags)} frames, there is no frame {frame}: correct the frame asked for")
    stored = _decoded(path, tags, frame)
    modality, spacing = str(tags.get("Modality") or ""), _spacing(tags, frame)
    if stored.ndim == 3 or tags.get("PhotometricInterpretation") == "PALETTE COLOR":
        colour = apply_color_lut(stored, tags) if stored.ndim == 2 else stored
        return Image(grey_if_equal(colour[..., :3]), sample, spacing=spacing, modality=modality)
    pixels, limits = _modality_values(stored, tags, frame)
    missing = _padding(stored, pixels, tags)
    window = _window(tags, frame)
    if modality in RADIOGRAPHS and tags.get("VOILUTSequence"):
        pixels, limits = _looked_up(pixels, tags.VOILUTSequence[0], tags)
        window = limits
    if tags.get("PhotometricInterpretation") == "MONOCHROME1":
        total = limits[0] + limits[1]
        pixels = total - pixels
        window = window and (total - window[1], total - window[0])
    return Image(pixels, sample, spacing, modality, window, missing, _flips(tags, modality))


def _place(tags: Dataset, series: str) -> Place:
    """Where a slice lies; a tag that makes no sense counts as missing."""
    sop = str(tags.get("SOPClassUID") or "")
    if "Rows" not in tags:
        kind = "no image"
    elif {"LOCALIZER", "SCOUT"} & {str(word).upper() for word in tags.get("ImageType") or []}:
        kind = "localizer"
    elif sop.startswith(_SECONDARY_CAPTURE) or int(tags.get("SamplesPerPixel") or 1) > 1:
        kind = "secondary capture"
    else:
        kind = "slice"
    position, axes = _finite(tags, "ImagePositionPatient", 3), _finite(tags, "ImageOrientationPatient", 6)
    position, axes = (position, axes) if position and axes else (None, None)
    keywords = ("Rows", "Columns", "InstanceNumber", "AcquisitionNumber")
    rows, columns, instance, acquisition = (int(tags.get(keyword) or 0) for keyword in keywords)
    modality = str(tags.get("Modality") or "")
    return Place(kind, position, axes, _spacing(tags, 0), (rows, columns), instance, acquisition, modality, series)


def _finite(tags: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """A tag of `count` finite numbers, not all of them zero where they are directions; None for anything else."""
    values = _numbers(tags, 0, "", keyword)
    right = len(values) == count and bool(np.isfinite(values).all())
    directions = count != 6 or abs(np.linalg.norm(values) - 2**0.5) <= 0.1
    return tuple(values) if right and directions else None


def _flips(tags: Dataset, modality: str) -> tuple[bool, bool]:
    """Whether rows run to the front and columns to the right of the patient in an axial CT: against what is usual."""
    axes = _finite(tags, "ImageOrientationPatient", 6) if modality == "CT" else None
    if axes is None or abs(axes[0]) < AXIAL or abs(axes[4]) < AXIAL:
        return False, False
    return axes[4] < 0, axes[0] < 0


def _tags(path: Path, keywords: list[str]) -> Dataset:
    """The named tags of a file; one without preamble is taken for DICOM if it holds any of them."""
    tags = pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=list(keywords))
    if not is_dicom(path) and not any(keyword in tags for keyword in keywords):
        raise ReadError(f"{path}: not a DICOM file: rename it after what it is, or leave it out")
    return tags


def _frames(tags: Dataset) -> int:
    return max(1, int(tags.get("NumberOfFrames") or 1))


def _decoded(path: Path, tags: Dataset, frame: int) -> np.ndarray:
    """Stored values of one frame, colour spaces turned to RGB."""
    implicit, little = tags.original_encoding  # how the tags of a file without file meta information could be parsed
    explicit = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
    syntax = tags.file_meta.get("TransferSyntaxUID") or (uid.ImplicitVRLittleEndian if implicit else explicit)
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        text = f"{path}: the transfer syntax {syntax.name} ({syntax}) cannot be decoded"
        raise ReadError(f"{text}: convert it to Explicit VR Little Endian") from error
    if not decoder.is_available:
        raise ReadError(f"{path}: compressed as {syntax.name} ({syntax}), which needs a decoder: {_EXTRA}")
    try:
        if syntax == uid.DeflatedExplicitVRLittleEndian:
            return pixel_array(pydicom.dcmread(path), index=frame)
        return pixel_array(path, index=frame, transfer_syntax_uid=syntax)
    except Exception as error:  # the plug-ins raise what they like
        said = " ".join(str(error).split())
        text = f"the pixel data ({syntax.name}, {syntax}) is cut short or damaged ({said}): export it again"
        if "no 'Pixel Data'" in said:
            text = "a DICOM object without pixel data: leave it out, or export the image again"
        elif syntax.is_encapsulated:
            text += f", or {_EXTRA}"
        raise ReadError(f"{path}: {text}") from error


def _numbers(tags: Dataset, frame: int, group: str, keyword: str) -> list[float]:
    """All values of a numeric tag for one frame: from its functional group, the shared one, or the data set itself."""
    per_frame = tags.get("PerFrameFunctionalGroupsSequence") or []
    shared = tags.get("SharedFunctionalGroupsSequence") or []
    groups = [(item.get(group) or [])[:1] for item in (*per_frame[frame : frame + 1], *shared[:1])]
    for item in [*itertools.chain(*groups), tags]:
        value = item.get(keyword)
        if value is not None and value != "":
            return [float(v) for v in ([value] if isinstance(value, int | float | str) else value)]
    return []


def _modality_values(stored: np.ndarray, tags: Dataset, frame: int) -> tuple[np.ndarray, tuple[float, float]]:
    """Physical values ``(H, W)`` and the lowest and highest value they could take."""
    if tags.get("ModalityLUTSequence"):
        return _looked_up(stored, tags.ModalityLUTSequence[0], tags)
    bits, signed = int(tags.BitsStored), bool(tags.get("PixelRepresentation"))
    low, high = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
    rescale = "PixelValueTransformationSequence"
    slope = (_numbers(tags, frame, rescale, "RescaleSlope") or [1.0])[0]
    intercept = (_numbers(tags, frame, rescale, "RescaleIntercept") or [0.0])[0]
    ends = sorted((low * slope + intercept, high * slope + intercept))
    return stored.astype(np.float64) * slope + intercept, (ends[0], ends[1])


def _looked_up(values: np.ndarray, item: Dataset, tags: Dataset) -> tuple[np.ndarray, tuple[float, float]]:
    """Values through a Modality or VOI LUT (PS3.3 C.11.1.1), and the range of its output.

    Written out because pydicom's own wraps around where a table of 8-bit output has more than 256 entries.
    """
    entries, first, bits = (int(v) for v in item.LUTDescriptor)
    entries = entries or 2**16
    if first >= 2**15 and tags.get("PixelRepresentation"):
        first -= 2**16  # the sign is lost where the value representation had to be guessed
    table = item.LUTData
    if isinstance(table, bytes):
        wide = "<u2" if tags.original_encoding[1] else ">u2"
        table = np.frombuffer(table, wide if len(table) >= 2 * entries else np.uint8)
    table = np.asarray(table)
    index = np.clip(np.rint(values).astype(np.int64) - first, 0, min(entries, len(table)) - 1)
    return table[index].astype(np.float64), (0.0, 2.0**bits - 1)


def _padding(stored: np.ndarray, pixels: np.ndarray, tags: Dataset) -> np.ndarray | None:
    """Pixels that hold no measurement, bool ``(H, W)``, or None where all do."""
    missing = np.zeros(stored.shape, bool)
    stated = [tags.get(k) for k in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    if stated[0] is not None:
        ends = [_as_stored(value, tags) for value in stated if value is not None]
        missing |= (stored >= min(ends)) & (stored <= max(ends))
    # A CT whose Modality was removed still has its rescale.
    if tags.get("Modality") == "CT" or (not tags.get("Modality") and "RescaleIntercept" in tags):
        missing |= pixels <= CT_PADDING
    return missing if missing.any() else None


def _as_stored(value: int, tags: Dataset) -> int:
    """A padding value with the sign of the pixels, which is lost where its value representation had to be guessed."""
    if tags.get("PixelRepresentation"):
        return value - 2**16 if value >= 2**15 else value
    return value + 2**16 if value < 0 else value


def _window(tags: Dataset, frame: int) -> tuple[float, float] | None:
    """First and last value of the ramp of the first window that is stated."""
    centers = _numbers(tags, frame, "FrameVOILUTSequence", "WindowCenter")
    widths = _numbers(tags, frame, "FrameVOILUTSequence", "WindowWidth")
    if not centers or not widths or widths[0] < 1:
        return None
    center, width = centers[0], widths[0]
    if tags.get("VOILUTFunction", "LINEAR") == "LINEAR":
        center, width = center - 0.5, width - 1
    return (center - width / 2, center + width / 2) if width > 0 else None


def _spacing(tags: Dataset, frame: int) -> tuple[float, float] | None:
    """Millimetres between rows and between columns: in the patient, else at the detector."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        spacing = _numbers(tags, frame, "PixelMeasuresSequence", keyword)
        if len(spacing) == 2 and min(spacing) > 0:
            return spacing[0], spacing[1]
    return None
