"""The records every other room speaks: Sample (what and whose), Image (its pixels), Geometry (the way back)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import cv2
import numpy as np

Box = tuple[float, float, float, float]


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
    meta
        Anything else that is known, as text by name.
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
