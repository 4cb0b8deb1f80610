"""The records that the rooms share: what one room knows of an image and hands to the next."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import cv2
import numpy as np
from pydantic import JsonValue

Json = dict[str, JsonValue]
Box = tuple[float, float, float, float]  # x, y, width, height in pixels
Spacing = tuple[float, float]  # mm between rows and between columns


class Progress(Protocol):
    """Called with what is being done, how much of it is done, how much there is, and a note such as the loss."""

    def __call__(self, stage: str, done: int, total: int, note: str = "", /) -> None: ...  # noqa: D102


def silent(stage: str, done: int, total: int, note: str = "", /) -> None:
    """The progress callback that shows nothing."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a slice lies in the patient and in its series."""

    kind: str  # "slice", "localizer", "secondary capture", or "no image" for an object without pixels
    position: tuple[float, ...] | None  # centre of the first pixel in mm (LPS)
    axes: tuple[float, ...] | None  # directions along a row and down a column, six cosines (LPS)
    spacing: Spacing | None
    shape: tuple[int, int]  # rows and columns
    instance: int  # InstanceNumber, 0 where the file has none
    acquisition: int  # AcquisitionNumber, 0 where the file has none
    modality: str = ""  # DICOM's code
    series: str = ""  # pseudonym of the series
    note: str = ""  # what a reader must know of the series


@dataclass(frozen=True, slots=True)
class Lesion:
    """What a data set says of the place of a lesion beside a mask file or boxes."""

    values: tuple[int, ...] = ()  # values of the mask file that mean lesion; empty: all but zero
    runs: tuple[str, ...] = ()  # run lengths down the columns, one text a part, see `datasets.masks.decode_rle`
    relative: bool = False  # whether the starts of `runs` are gaps since the end of the last run
    polygons: tuple[tuple[tuple[float, float], ...], ...] = ()  # outlines ((x, y), ...) in pixels


@dataclass(frozen=True, slots=True)
class Sample:
    """One image to be read: a file, one frame of a file, or an array in memory."""

    id: str  # unique and stable: the path below the root of the data set, with #<frame> for a frame of a volume
    path: Path | None = None  # the file; None for an array in memory
    frame: int | None = None  # index of the slice or frame inside the file, from 0; None where the file is one image
    patient: str = ""  # the unit of every split and of calibration; by default the file, or the id without one
    study: str | None = None  # study or acquisition within the patient
    label: int | None = None  # 0 normal, 1 abnormal, None unknown
    mask: Path | None = None  # file with the lesion mask, non-zero where abnormal
    boxes: tuple[Box, ...] = ()  # lesion boxes in pixels of the original image
    place: Place | None = None  # where a DICOM slice lies
    volume: str = ""  # id of the volume that a slice belongs to; "" for an image of its own
    aside: str = ""  # why the image is no slice of the scan that it lies beside: reading it fails with this reason
    crop: tuple[int, int, int, int] | None = None  # top, left, height, width in pixels of the part that the sample is
    area: Path | None = None  # file with the area that is to be looked at, non-zero inside
    lesion: Lesion | None = None  # where the lesion is, beside `mask` and `boxes`
    meta: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), hash=False)  # user's columns, unread
    array: np.ndarray | None = field(default=None, repr=False, compare=False)  # (H, W) or (H, W, 3), image in memory

    def __post_init__(self) -> None:
        if not self.patient:
            object.__setattr__(self, "patient", self.id if self.frame is None else self.id.rpartition("#")[0])


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """The pixels of one sample in physical units where the file knows them.

    `pixels` are float32, ``(H, W)`` or ``(H, W, 3)``, without NaN or infinity: Hounsfield units for CT, the stored
    values elsewhere (16 bits kept, MONOCHROME1 already inverted so that bright is dense).
    """

    pixels: np.ndarray
    sample: Sample
    spacing: Spacing | None = None
    modality: str = ""  # DICOM's code (CT, CR, DX, MR), or ""
    window: tuple[float, float] | None = None  # lowest and highest value to be shown, as the file states it (VOI)
    missing: np.ndarray | None = None  # bool (H, W), True where nothing was measured (pixel padding value, NaN)
    # Whether rows and columns run against the common frame (row 0 anterior, column 0 the patient's right), as in a
    # prone patient or one entered feet first. The model input is turned, maps come back as stored.
    flips: tuple[bool, bool] = (False, False)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.pixels.shape[0], self.pixels.shape[1]


def turned(grid: np.ndarray, flips: tuple[bool, bool]) -> np.ndarray:
    """A grid ``(H, W, ...)`` with rows and columns reversed where asked for."""
    return np.ascontiguousarray(grid[:: -1 if flips[0] else 1, :: -1 if flips[1] else 1]) if any(flips) else grid


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where the pixels of a model input lie in the original image, and how to bring a map back."""

    original: tuple[int, int]  # rows and columns of the image as read
    input: tuple[int, int]  # rows and columns of the model input
    content: tuple[int, int, int, int]  # top, left, height, width of the image inside the input; the rest is padding
    flips: tuple[bool, bool] = (False, False)  # whether rows and columns run against those of the original image

    def to_original(self, grid: np.ndarray, smoothing: float = 0.0) -> np.ndarray:
        """Bring an anomaly map ``(h, w)`` that spans the input back to the original pixels: float32 ``original``.

        `smoothing` is the standard deviation of a Gaussian in pixels of the input; 0 for none.
        """
        height, width = self.input
        full = cv2.resize(grid.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
        if smoothing > 0:
            full = cv2.GaussianBlur(full, (0, 0), smoothing, borderType=cv2.BORDER_REFLECT_101)
        top, left, rows, columns = self.content
        full = np.ascontiguousarray(turned(full[top : top + rows, left : left + columns], self.flips))
        if full.shape == self.original:
            return full
        return cv2.resize(full, self.original[::-1], interpolation=cv2.INTER_LINEAR)


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """A model input.

    `area` is what `valid` shows: "all", "borders", "exposed", "body", "lung", "own" or the name of a user's function;
    after a colon why it is not what was asked for, as in "body: no lung field found". It is "lung at unknown height"
    where the height is asked for and not known.
    """

    pixels: np.ndarray  # float32 (C, H, W) in [0, 1]
    valid: np.ndarray  # bool (H, W); False in padding, constant borders and outside the body
    geometry: Geometry  # the way back to the original pixels
    sample: Sample
    area: str = ""
    display: np.ndarray | None = None  # uint8 (H', W') or (H', W', 3), windowed for the eye, at most 1024 pixels a side
    height: float = float("nan")  # relative height of the slice; NaN where it is not known or not asked for


@dataclass(frozen=True, slots=True)
class Result:
    """Score, decision and map of one image."""

    id: str
    path: str  # "" for an array in memory
    frame: int | None
    patient: str
    score: float  # image-level score, higher is more anomalous; NaN where the image could not be scored
    p_value: float | None = None  # conformal, against the held-out normals, in (0, 1]; None without calibration
    flagged: bool | None = None  # whether p_value <= false_alarm_rate; None without calibration
    status: str = "ok"  # or why the image could not be scored
    grid: np.ndarray | None = field(default=None, repr=False, compare=False)  # float32 (h, w), the detector's own map
    geometry: Geometry | None = field(default=None, repr=False)  # brings `grid` back to the original pixels
    smoothing: float = 0.0  # standard deviation of the map's Gaussian, in pixels of the model input
    area: str = ""  # what was looked at, see Frame
    map: str = ""  # where the map was written, relative to the output folder

    @property
    def ok(self) -> bool:
        """Whether the image was scored."""
        return self.status == "ok"

    def anomaly_map(self) -> np.ndarray:
        """The anomaly map in the geometry of the original image, float32 ``(H, W)``.

        Raises
        ------
        ValueError
            The image could not be scored.
        """
        if self.grid is None or self.geometry is None:
            raise ValueError(f"{self.id} has no anomaly map: {self.status}")
        return self.geometry.to_original(self.grid, self.smoothing)


@dataclass(frozen=True, eq=False)
class Volume:
    """The slices of one scan, in the order of their samples."""

    id: str  # of a file its id, of a DICOM series its folder and series
    patient: str
    study: str
    samples: tuple[Sample, ...]  # its slices; some of a scan may have been asked for alone
    slots: tuple[int, ...]  # place of each sample on the grid of slices, ascending from 0; a missing slice is a gap
    length: int  # slices of the grid
    places: np.ndarray | None  # float64 (n, 3): centre of the first pixel of each sample in mm (RAS)
    steps: np.ndarray | None  # float64 (3, 2): mm (RAS) from one column to the next, and from one row to the next
    thickness: float | None  # mm from slice to slice
    affine: np.ndarray | None  # (column, row, slot) to mm (RAS); None where slices are not even or places not known
    note: str  # what a reader must know

    @property
    def path(self) -> Path | None:
        """The file, or None where every slice has its own."""
        paths = {sample.path for sample in self.samples}
        return next(iter(paths)) if len(paths) == 1 else None

    @property
    def pixel_ml(self) -> float | None:
        """Millilitres of one pixel of one slice, or None."""
        if self.steps is None or self.thickness is None:
            return None
        area = float(np.linalg.norm(np.cross(self.steps[:, 0], self.steps[:, 1])))
        return area * self.thickness / 1000


@dataclass(frozen=True, slots=True)
class Candidate:
    """One region of a volume's anomaly map.

    `centre` is that of its core, the part around the peak above a threshold three quarters of the way up, weighted by
    how far the map lies above that: x, y, z in mm (RAS: to the right, front and head of the patient). `ml` is the
    volume of what lies above the middle between the lowest threshold and the peak, as maps are blurred. Both are None
    where the volume does not know places.
    """

    volume: str
    patient: str
    rank: int  # 1 for the region with the highest peak of its volume
    centre: tuple[float, float, float] | None
    ml: float | None
    peak: float  # highest value of the map
    p_value: float | None  # about the share of normal patients whose maps rise as high; None without held-out volumes
    at: tuple[str, int, int]  # sample id of the slice with the peak, and row and column in it
    slices: int  # how many it reaches through


@dataclass(frozen=True, slots=True)
class VolumeResult:
    """Score and decision of one volume."""

    id: str
    patient: str
    study: str
    slices: int
    scored: int  # slices that could be scored
    score: float  # under the volume rule of the model; NaN where no slice could be scored
    p_value: float | None  # against the held-out normal volumes; None where there were none
    flagged: bool | None
    candidates: tuple[Candidate, ...]  # regions of its map, the highest peak first
    area: str = ""  # what was looked at: each kind of area and in how many slices, the most frequent first
    map: str = ""  # where the map was written, relative to the output folder
    note: str = ""  # what a reader must know


@dataclass(frozen=True, slots=True)
class PatientResult:
    """The decision on one patient, from the highest score of the patient's volumes; fields as in `VolumeResult`."""

    patient: str
    volumes: int
    score: float
    p_value: float | None
    flagged: bool | None


@dataclass(frozen=True, slots=True, eq=False)
class RunInfo:
    """What is told of a run beside its results."""

    title: str  # name of the detector in words
    model: Mapping[str, object]  # description of the model, without its notes
    notes: tuple[str, ...]  # what a reader of the scores must know
    fingerprint: str  # SHA-256 of all that a score depends on
    false_alarm_rate: float  # share of normal images that may be flagged
    threshold: float | None  # images above are flagged; infinite with too few held-out normals, None without any
    normal_scores: np.ndarray  # float64 (n,): scores of the held-out normals
    colour_range: tuple[float, float]  # lowest and highest value of the colour scale of every map
