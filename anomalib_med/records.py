"""The records that the rooms share: what one room knows of an image and hands to the next.

Sample says what and whose an image is, Image holds its pixels, Frame is the input of a model with the Geometry that
leads back, Result is what came of it. A Volume joins slices, VolumeResult and PatientResult are the decisions on it and
on its patient, and a Candidate is a region of its map. RunInfo says what a run was made with.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import cv2
import numpy as np

Box = tuple[float, float, float, float]


class Progress(Protocol):
    """Called with what is being done, how much of it is done, how much there is, and a note such as the loss."""

    def __call__(self, stage: str, done: int, total: int, note: str = "", /) -> None: ...  # noqa: D102


def silent(stage: str, done: int, total: int, note: str = "", /) -> None:
    """The progress callback that shows nothing."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a slice lies in the patient and in its series.

    Parameters
    ----------
    kind
        "slice", "localizer", "secondary capture", or "no image" for an object without pixels.
    position
        Centre of the first pixel, mm (LPS), or None.
    axes
        Directions along a row and down a column, six cosines (LPS), or None.
    spacing
        Millimetres between rows and between columns, or None.
    shape
        Rows and columns.
    instance, acquisition
        InstanceNumber and AcquisitionNumber, 0 where the file has none.
    modality, series
        DICOM's code of the modality, and the pseudonym of the series.
    note
        What a reader must know of the series that the slice was sorted into, or "".
    """

    kind: str
    position: tuple[float, ...] | None
    axes: tuple[float, ...] | None
    spacing: tuple[float, float] | None
    shape: tuple[int, int]
    instance: int
    acquisition: int
    modality: str = ""
    series: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Lesion:
    """What a data set says of the place of a lesion beside a mask file or boxes.

    Parameters
    ----------
    values
        Values of the mask file that mean lesion; empty: all but zero.
    runs
        Run lengths down the columns, one text for each part of the lesion, see :func:`.masks.decode_rle`.
    relative
        Whether the starts of `runs` are gaps since the end of the last run.
    polygons
        Outlines ``((x, y), ...)`` in pixels.
    """

    values: tuple[int, ...] = ()
    runs: tuple[str, ...] = ()
    relative: bool = False
    polygons: tuple[tuple[tuple[float, float], ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """One image to be read: a file, one frame of a file, or an array in memory.

    Parameters
    ----------
    id
        Unique and stable within a data set: the path below its root, with ``#<frame>`` for a frame of a volume.
    path
        The file; None for an array in memory.
    frame
        Index of the slice or frame inside the file, from 0; None where the file is one image.
    patient
        Whose image it is; the unit of every split and of calibration. Defaults to the file (or the id without one).
    study
        Study or acquisition within the patient.
    label
        0 normal, 1 abnormal, None unknown.
    mask
        File with the lesion mask, non-zero where abnormal.
    boxes
        Lesion boxes ``(x, y, width, height)`` in pixels of the original image.
    place
        Where a DICOM slice lies in the patient and in its series.
    volume
        Id of the volume that a slice belongs to; "" for an image of its own.
    aside
        Why the image is no slice of the scan that it lies beside, or "". Reading such a sample fails with this reason.
    crop
        Top, left, height and width in pixels of the part of the file that the sample is.
    area
        File with the area that is to be looked at, non-zero inside.
    lesion
        Where the lesion is, beside `mask` and `boxes`.
    meta
        The user's own columns as text by name. They are carried through and never read.
    array
        The pixels ``(H, W)`` or ``(H, W, 3)`` of an image in memory.
    """

    id: str
    path: Path | None = None
    frame: int | None = None
    patient: str = ""
    study: str | None = None
    label: int | None = None
    mask: Path | None = None
    boxes: tuple[Box, ...] = ()
    place: Place | None = None
    volume: str = ""
    aside: str = ""
    crop: tuple[int, int, int, int] | None = None
    area: Path | None = None
    lesion: Lesion | None = None
    meta: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    array: np.ndarray | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.patient:
            object.__setattr__(self, "patient", self.id if self.frame is None else self.id.rpartition("#")[0])


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """The pixels of one sample in physical units where the file knows them.

    Parameters
    ----------
    pixels
        float32, ``(H, W)`` or ``(H, W, 3)``: Hounsfield units for CT, the stored values elsewhere (16 bits kept,
        MONOCHROME1 already inverted so that bright is dense). No NaN, no infinity.
    sample
        Where it came from.
    spacing
        Millimetres between rows and between columns, or None.
    modality
        DICOM's code (``CT``, ``CR``, ``DX``, ``MR``), or "" where the file does not say.
    window
        Lowest and highest value to be shown, as the file states it (VOI), or None.
    missing
        bool ``(H, W)``, True where the file holds no measurement (pixel padding value, NaN), or None.
    flips
        Whether rows and columns run against the common frame (row 0 anterior, column 0 the patient's right): an axial
        CT of a prone patient, or one entered feet first. The model input is turned, maps come back as stored.
    """

    pixels: np.ndarray
    sample: Sample
    spacing: tuple[float, float] | None = None
    modality: str = ""
    window: tuple[float, float] | None = None
    missing: np.ndarray | None = None
    flips: tuple[bool, bool] = (False, False)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.pixels.shape[0], self.pixels.shape[1]


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where the pixels of a model input lie in the original image, and how to bring a map back.

    Parameters
    ----------
    original
        Rows and columns of the image as read.
    input
        Rows and columns of the model input.
    content
        ``(top, left, height, width)`` of the resized image inside the input; the rest of the input is padding.
    flips
        Whether rows and columns of the input run against those of the original image.
    """

    original: tuple[int, int]
    input: tuple[int, int]
    content: tuple[int, int, int, int]
    flips: tuple[bool, bool] = (False, False)

    def to_original(self, grid: np.ndarray, smoothing: float = 0.0) -> np.ndarray:
        """Bring an anomaly map of any resolution that spans the input back to the original pixels.

        Parameters
        ----------
        grid
            float ``(h, w)``.
        smoothing
            Standard deviation of a Gaussian, in pixels of the input; 0 for none.

        Returns
        -------
        float32 ``original``, in the units of `grid`.
        """
        height, width = self.input
        full = cv2.resize(grid.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
        if smoothing > 0:
            full = cv2.GaussianBlur(full, (0, 0), smoothing, borderType=cv2.BORDER_REFLECT_101)
        top, left, rows, columns = self.content
        full = full[top : top + rows, left : left + columns]
        if any(self.flips):
            full = full[:: -1 if self.flips[0] else 1, :: -1 if self.flips[1] else 1]
        if full.shape == self.original:
            return np.ascontiguousarray(full)
        return cv2.resize(np.ascontiguousarray(full), self.original[::-1], interpolation=cv2.INTER_LINEAR)


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """A model input.

    Parameters
    ----------
    pixels
        float32 ``(C, H, W)`` in [0, 1].
    valid
        bool ``(H, W)``; False in padding, constant borders and outside the body.
    geometry
        The way back to the original pixels.
    sample
        Where it came from.
    area
        What `valid` shows: "all", "borders", "exposed", "body", "lung", "own" or the name of a user's function; after a
        colon why it is not what was asked for, as in "body: no lung field found". "lung at unknown height" where the
        height is asked for and not known.
    height
        Relative height of the slice, see :class:`.context.VolumeContext`; NaN where it is not known or not asked for.
    display
        uint8 ``(H', W')`` or ``(H', W', 3)``: the original image windowed for the eye, at most 1024 pixels a side;
        None unless asked for.
    """

    pixels: np.ndarray
    valid: np.ndarray
    geometry: Geometry
    sample: Sample
    area: str = ""
    display: np.ndarray | None = None
    height: float = float("nan")


@dataclass(frozen=True, slots=True)
class Result:
    """Score, decision and map of one image.

    Parameters
    ----------
    id, path, frame, patient
        From the sample; `path` is text, "" for an array in memory.
    score
        Image-level score, higher is more anomalous; NaN where the image could not be scored.
    p_value
        Conformal p-value against the held-out normals, in (0, 1]; None without calibration.
    flagged
        True where ``p_value <= false_alarm_rate``; None without calibration.
    status
        "ok", or why the image could not be scored.
    grid
        float32 ``(h, w)``, the anomaly map at the resolution of the detector; None for a failure.
    geometry
        Brings `grid` back to the original pixels.
    smoothing
        Standard deviation of the Gaussian applied to the map, in pixels of the model input.
    area
        What was looked at, see :class:`Frame`.
    map
        Where the map was written, relative to the output folder, or "".
    """

    id: str
    path: str
    frame: int | None
    patient: str
    score: float
    p_value: float | None = None
    flagged: bool | None = None
    status: str = "ok"
    grid: np.ndarray | None = field(default=None, repr=False, compare=False)
    geometry: Geometry | None = field(default=None, repr=False)
    smoothing: float = 0.0
    area: str = ""
    map: str = ""

    @property
    def ok(self) -> bool:
        """Whether the image was scored."""
        return self.status == "ok"

    def anomaly_map(self) -> np.ndarray:
        """The anomaly map in the geometry of the original image, float32 ``(H, W)``.

        Raises
        ------
        ValueError
            Where the image could not be scored.
        """
        if self.grid is None or self.geometry is None:
            raise ValueError(f"{self.id} has no anomaly map: {self.status}")
        return self.geometry.to_original(self.grid, self.smoothing)


@dataclass(frozen=True, eq=False)
class Volume:
    """The slices of one scan, in the order of their samples.

    Parameters
    ----------
    id
        Of a file its id, of a DICOM series its folder and series.
    patient, study
        From the samples.
    samples
        Its slices; of some of them a scan may have been asked for alone.
    slots
        Place of each sample on the grid of slices, ascending from 0; a slice that is missing leaves a gap.
    length
        Slices of the grid.
    places
        float64 ``(n, 3)``: centre of the first pixel of each sample in mm (RAS), or None where it is not known.
    steps
        float64 ``(3, 2)``: mm (RAS) from one column to the next, and from one row to the next.
    thickness
        Millimetres from slice to slice, or None.
    affine
        From ``(column, row, slot)`` to mm (RAS), or None where slices are not evenly spaced or places not known.
    note
        What a reader must know, "" for nothing.
    """

    id: str
    patient: str
    study: str
    samples: tuple[Sample, ...]
    slots: tuple[int, ...]
    length: int
    places: np.ndarray | None
    steps: np.ndarray | None
    thickness: float | None
    affine: np.ndarray | None
    note: str

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

    Parameters
    ----------
    volume, patient
        Whose map it lies in.
    rank
        1 for the region with the highest peak of its volume.
    centre
        x, y, z in mm (RAS: to the right, front and head of the patient) of its core, the part around the peak that lies
        above a threshold three quarters of the way up, weighted by how far the map lies above that; None where the
        volume does not know places.
    ml
        Volume in millilitres of what lies above the middle between the lowest threshold and the peak, as maps are
        blurred; or None.
    peak
        Highest value of the map.
    p_value
        About the share of normal patients whose maps rise as high anywhere; None without held-out volumes.
    at
        Sample id of the slice with the peak, and row and column in it.
    slices
        Number of slices it reaches through.
    """

    volume: str
    patient: str
    rank: int
    centre: tuple[float, float, float] | None
    ml: float | None
    peak: float
    p_value: float | None
    at: tuple[str, int, int]
    slices: int


@dataclass(frozen=True, slots=True)
class VolumeResult:
    """Score and decision of one volume.

    Parameters
    ----------
    id, patient, study
        From the volume.
    slices, scored
        How many slices there are, and how many of them could be scored.
    score
        Score under the volume rule of the model; NaN where no slice could be scored.
    p_value, flagged
        As in `Result`, against the held-out normal volumes; None where there were none.
    candidates
        Regions of its map, the highest peak first.
    area
        What was looked at: each kind of area and in how many slices, the most frequent first.
    map
        Where the map of the volume was written, relative to the output folder, or "".
    note
        What a reader must know, "" for nothing.
    """

    id: str
    patient: str
    study: str
    slices: int
    scored: int
    score: float
    p_value: float | None
    flagged: bool | None
    candidates: tuple[Candidate, ...]
    area: str = ""
    map: str = ""
    note: str = ""


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
    """What is told of a run beside its results.

    Parameters
    ----------
    title
        Name of the detector in words.
    model
        Description of the model, without its notes.
    notes
        What a reader of the scores must know.
    fingerprint
        SHA-256 of all that a score depends on.
    false_alarm_rate
        Share of normal images that may be flagged.
    threshold
        Score above which an image is flagged; infinite with too few held-out normals, None without any.
    normal_scores
        float64 ``(n,)``: scores of the held-out normals.
    colour_range
        Lowest and highest value of the colour scale of every map.
    """

    title: str
    model: Mapping[str, object]
    notes: tuple[str, ...]
    fingerprint: str
    false_alarm_rate: float
    threshold: float | None
    normal_scores: np.ndarray
    colour_range: tuple[float, float]
