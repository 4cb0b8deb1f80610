"""Preprocessing: every choice between a file's pixels and the model's input, one frozen object saved with the model."""

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from pydantic import Field, field_validator

from anomalib_med.config import Settings
from anomalib_med.preprocessing.areas import OWN_AREA, area_names
from anomalib_med.records import Image

# Lowest and highest Hounsfield unit shown. Width / level as radiologists quote them: 1500 / -600, 400 / 40, 1800 / 400.
CT_WINDOWS = {"lung": (-1350.0, 150.0), "mediastinum": (-160.0, 240.0), "bone": (-500.0, 1300.0)}

Window = Literal["auto", "percentile", "voi", "lung", "mediastinum", "bone"] | tuple[float, float]


class Preprocessing(Settings):
    """How an image becomes a model input."""

    size: int = Field(224, ge=32, le=4096)
    """Side in pixels of a square that has the area of the input, from 32 to 4096. Where it is not given, fit takes the
    size that the detector asks for."""

    aspect: Literal["keep", "pad", "stretch"] = "keep"
    """What becomes of the image's aspect. "keep", the default, shows anatomy undistorted and without padding, so inputs
    of different images may differ in shape; "pad" makes a square whose rest is filled with the image's edge and marked
    invalid; "stretch" makes a square and loses the aspect."""

    multiple: int = Field(16, ge=1, le=64)
    """Number of pixels that rows and columns of the input are multiples of, from 1 to 64. It is the coarsest stride of
    the backbone; fit takes another where the detector needs one."""

    windows: tuple[Window, ...] = Field(("auto",), min_length=1, max_length=3)
    """One to three windows, each of which becomes a channel of the input. A pair holds the lowest and the highest value
    shown; "lung", "mediastinum" and "bone" are CT windows in Hounsfield units; "voi" is the window that the file states
    (percentiles where it states none); "percentile" runs from the 0.5th to the 99.5th percentile of the image's valid
    pixels. "auto" is replaced at fit by the window that suits the normals, so that every later image is treated like
    them."""

    colour: bool = False
    """Whether red, green and blue of colour images are kept as channels. Otherwise their luminance is taken."""

    valid: str = "auto"
    """Part of the image that banks, maps and scores are taken from. "auto" leaves out padding, constant borders and, in
    CT, everything outside the body; "body" leaves out the same, as in CT, whatever the file says; "lung" takes the lung
    fields of a CT slice, and the body where they cannot be found; "exposed" leaves out collimated borders and burned-in
    markers of radiographs too; "all" takes every pixel. A name given to register_area takes a function of your
    own. "auto" is the default because it leaves out only what shows no patient."""

    spacing: float = Field(0.0, ge=0, le=10)
    """Millimetres of a pixel of the input, above 0 to 10, so that anatomy keeps its size whatever the field of view;
    `size` and `aspect` then have no effect. 0 resizes to `size`, as many files do not say how large a pixel is."""

    slices: int = Field(1, ge=1, le=15)
    """Odd number of slices, from 1 to 15: a slice of a volume and its neighbours on both sides become channels, the
    lowest slice first (2.5-D). Where the volume ends or a slice is missing, the last one is repeated. 1, the default,
    takes the slice alone and so any kind of image; with more, images that are no slices are refused."""

    height: Literal["none", "volume", "lung"] = "none"
    """What the relative height of a slice is measured by, for detectors that compare slices of one height. "volume"
    measures it from the first slice of the volume to its last; "lung" measures it from the lowest slice with a lung
    field to the highest, whatever the scan covers. Where it is not known (no volume, no lungs found) a slice is
    compared with those of all heights. "none" is the default because most detectors do not use it."""

    @field_validator("windows")
    @classmethod
    def _increasing(cls, windows: tuple[Window, ...]) -> tuple[Window, ...]:
        for window in windows:
            if isinstance(window, tuple) and not window[0] < window[1]:
                raise ValueError(f"window {window}: the first value must be below the second")
        return windows

    @field_validator("slices")
    @classmethod
    def _odd(cls, slices: int) -> int:
        if slices % 2 == 0:
            raise ValueError(f"{slices} slices: take an odd number, the slice and as many on both sides")
        return slices

    @field_validator("valid")
    @classmethod
    def _known_area(cls, valid: str) -> str:
        if valid not in area_names():
            raise ValueError(f"area {valid!r} is not known: there are {', '.join(area_names())}; {OWN_AREA}")
        return valid

    def resolved(self, images: Iterable[Image]) -> "Preprocessing":
        """Replace "auto" by the window that suits these images, so that every later image is treated like them.

        CT in Hounsfield units gets the lung window, images that state a window their own, 8-bit images their full
        range, anything else its percentiles. The images are looked at only where a window is "auto".
        """
        if "auto" not in self.windows:
            return self
        window = _suitable_window(list(images))
        return self.model_copy(update={"windows": tuple(window if w == "auto" else w for w in self.windows)})


def _suitable_window(images: Sequence[Image]) -> Window:
    if not images:
        return "percentile"
    if all(map(_is_hounsfield, images)):
        return "lung"
    if all(image.window is not None for image in images):
        return "voi"
    return (0.0, 255.0) if all(map(_is_8_bit, images)) else "percentile"


def _is_hounsfield(image: Image) -> bool:
    present = image.pixels if image.missing is None else image.pixels[~image.missing]
    return image.modality == "CT" or (image.modality == "" and present.size > 0 and float(present.min()) <= -500.0)


def _is_8_bit(image: Image) -> bool:
    low, high = float(image.pixels.min()), float(image.pixels.max())
    # A dark 16-bit image may stay below 256 by chance, but not be spread over most of that range.
    return low >= 0 and 64 < high <= 255 and bool(np.all(image.pixels == np.round(image.pixels)))
