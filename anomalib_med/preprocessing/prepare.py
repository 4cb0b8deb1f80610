"""Image -> Frame: resize, window, mark the valid area. The only way from pixels to a model, at fit and at score."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import cv2
import numpy as np

from anomalib_med.errors import ReadError
from anomalib_med.preprocessing.areas import EXPOSED, Area, find_area
from anomalib_med.preprocessing.exposed import SIDE
from anomalib_med.preprocessing.settings import CT_WINDOWS, Preprocessing, Window
from anomalib_med.records import Frame, Geometry, Image

LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
LARGEST_DISPLAY = 1024
LARGEST_INPUT = 2048


def prepare(
    image: Image,
    settings: Preprocessing,
    *,
    display: bool = False,
    own: np.ndarray | None = None,
    around: Sequence[Image] = (),
    height: float = float("nan"),
) -> Frame:
    """Turn an image into a model input.

    Parameters
    ----------
    image
        As read.
    settings
        How; its windows must be resolved.
    display
        Whether the picture for the eye is made.
    own
        bool ``(H, W)``, an area of the user's own in the geometry of the image; it replaces the one of `settings`.
    around
        The slice and its neighbours, whose channels follow one another; nothing for the image alone.
    height
        Goes into the frame.

    Raises
    ------
    ReadError
        Where the image is constant: it holds nothing to score. Where `settings.spacing` is given and the image has
        none.
    """
    if float(np.ptp(image.pixels)) == 0:
        raise ReadError(
            f"{image.sample.id}: every pixel has the value {image.pixels.flat[0]:g}; the image is empty, leave it out"
        )
    geometry = replace(fit_geometry(image.shape, settings, image.spacing), flips=image.flips)
    rows, columns = geometry.content[2:]
    planes = _resized(image, settings, (rows, columns))
    present = (
        np.ones((rows, columns), bool)
        if image.missing is None
        else resize(_turned(image.missing, image.flips).astype(np.float32), (rows, columns)) < 0.5
    )
    grey = planes if planes.ndim == 2 else planes @ LUMINANCE
    if own is None:
        looked_at = grey if settings.valid != EXPOSED else _detailed(image)
        hounsfield = is_hounsfield(image, settings)
        area = find_area(settings.valid, looked_at, _pixel_size(image, geometry), hounsfield=hounsfield)
        if area.mask.shape != grey.shape:
            area = replace(area, mask=resize((~area.mask).astype(np.float32), (rows, columns)) < 0.25)
    else:
        inside = resize(_turned(own, image.flips).astype(np.float32), (rows, columns)) >= 0.5
        area = Area(inside, "own") if inside.any() else Area(np.ones_like(inside), "all: the mask is empty")
    valid = present & area.mask
    if not valid.any():
        area = Area(np.ones_like(valid), f"all: nothing was measured in the area ({area.status})")
        valid = area.mask
    limits = [_limits(window, image, grey[valid]) for window in settings.windows]
    every = [planes if other is image else _resized(other, settings, (rows, columns)) for other in around or (image,)]
    channels = [apply_window(one, ends) for one in every for ends in limits]
    stack = np.concatenate([c[None] if c.ndim == 2 else np.moveaxis(c, 2, 0) for c in channels])
    shown = _display(image, limits[0]) if display else None
    status = _at_unknown_height(area.status) if settings.height != "none" and np.isnan(height) else area.status
    return Frame(_pad(stack, geometry), _pad_mask(valid, geometry), geometry, image.sample, status, shown, height)


def _at_unknown_height(status: str) -> str:
    name, colon, why = status.partition(":")
    return f"{name} at unknown height{colon}{why}"


def is_hounsfield(image: Image, settings: Preprocessing) -> bool:
    """Whether the values of an image are taken for Hounsfield units."""
    return all(window in CT_WINDOWS for window in settings.windows) or image.modality == "CT"


def _resized(image: Image, settings: Preprocessing, shape: tuple[int, int]) -> np.ndarray:
    return resize(_turned(_planes(image.pixels, colour=settings.colour), image.flips), shape)


def _detailed(image: Image) -> np.ndarray:
    """The image as markers are sought in it: finer than most inputs."""
    scale = min(1.0, SIDE / max(image.shape))
    shape = (max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale)))
    return resize(_turned(_planes(image.pixels, colour=False), image.flips), shape)


def _turned(grid: np.ndarray, flips: tuple[bool, bool]) -> np.ndarray:
    """A grid ``(H, W, ...)`` with rows and columns reversed where asked for."""
    return np.ascontiguousarray(grid[:: -1 if flips[0] else 1, :: -1 if flips[1] else 1]) if any(flips) else grid


def _pixel_size(image: Image, geometry: Geometry) -> tuple[float, float] | None:
    """Millimetres between rows and between columns of the resized image, or None."""
    if image.spacing is None:
        return None
    rows, columns = geometry.content[2:]
    return image.spacing[0] * image.shape[0] / rows, image.spacing[1] * image.shape[1] / columns


def fit_geometry(
    shape: tuple[int, int], settings: Preprocessing, spacing: tuple[float, float] | None = None
) -> Geometry:
    """Rows and columns of the model input for an image of `shape`, and where the image lies in it.

    Raises
    ------
    ReadError
        `settings.spacing` is given, and the image has no spacing or would become too large.
    """
    if settings.spacing > 0:
        return _of_spacing(shape, settings.spacing, settings.multiple, spacing)
    size = _rounded(settings.size, settings.multiple)
    if settings.aspect == "stretch":
        return Geometry(shape, (size, size), (0, 0, size, size))
    if settings.aspect == "pad":
        scale = size / max(shape)
        rows, columns = (max(1, round(side * scale)) for side in shape)
        return Geometry(shape, (size, size), ((size - rows) // 2, (size - columns) // 2, rows, columns))
    rows, columns = _nearest_shape(shape[0] / shape[1], size, settings.multiple)
    return Geometry(shape, (rows, columns), (0, 0, rows, columns))


def _of_spacing(shape: tuple[int, int], wanted: float, multiple: int, spacing: tuple[float, float] | None) -> Geometry:
    if spacing is None:
        raise ReadError(
            f"the file does not say how large a pixel is, and the model wants {wanted:g} mm: fit without spacing"
        )
    rows, columns = (max(1, round(side * mm / wanted)) for side, mm in zip(shape, spacing, strict=True))
    height, width = (-(-side // multiple) * multiple for side in (rows, columns))
    if max(height, width) > LARGEST_INPUT:
        raise ReadError(
            f"an input of {height} x {width} pixels at {wanted:g} mm is too large: fit with a larger spacing"
        )
    return Geometry(shape, (height, width), ((height - rows) // 2, (width - columns) // 2, rows, columns))


def _rounded(value: float, multiple: int) -> int:
    return max(1, round(value / multiple)) * multiple


def _nearest_shape(aspect: float, size: int, multiple: int) -> tuple[int, int]:
    """Multiples of `multiple` that keep the aspect best, among those of about ``size * size`` pixels."""
    aspect = min(max(aspect, 0.25), 4.0)  # beyond 4 : 1 the image is squeezed: it would be all edge
    around = [_rounded(size * aspect**0.5, multiple), _rounded(size / aspect**0.5, multiple)]
    steps = (-multiple, 0, multiple)
    shapes = [
        (r + i, c + j) for (r, c), i, j in product([tuple(around)], steps, steps) if min(r + i, c + j) >= multiple
    ]

    def cost(shape: tuple[int, int]) -> float:
        stretch = abs(float(np.log(shape[0] / shape[1] / aspect)))
        growth = abs(float(np.log(shape[0] * shape[1] / size**2)))
        return stretch + 0.25 * growth

    return min(shapes, key=cost)


def resize(pixels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The one resize of the package: area averages when shrinking, bilinear when enlarging. float32 in and out."""
    if pixels.shape[:2] == shape:
        return pixels.astype(np.float32, copy=False)
    shrinking = shape[0] < pixels.shape[0] or shape[1] < pixels.shape[1]
    method = cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR
    return cv2.resize(pixels.astype(np.float32, copy=False), shape[::-1], interpolation=method)


def apply_window(pixels: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Map ``limits`` to 0 and 1 and clip. float32."""
    low, high = limits
    return np.clip((pixels - low) / (high - low), 0, 1).astype(np.float32, copy=False)


def _planes(pixels: np.ndarray, *, colour: bool) -> np.ndarray:
    if colour:
        return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
    return pixels if pixels.ndim == 2 else pixels @ LUMINANCE


def _limits(window: Window, image: Image, values: np.ndarray) -> tuple[float, float]:
    """Lowest and highest value shown of a window; `values` are the valid pixels that percentiles are taken of."""
    if isinstance(window, tuple):
        return window
    if window in CT_WINDOWS:
        return CT_WINDOWS[window]
    if window == "voi" and image.window is not None and image.window[0] < image.window[1]:
        return image.window
    low, high = (float(v) for v in np.percentile(values, (0.5, 99.5)))
    if low < high:
        return low, high
    low, high = float(image.pixels.min()), float(image.pixels.max())
    return low, high


def _display(image: Image, limits: tuple[float, float]) -> np.ndarray:
    pixels = image.pixels
    scale = LARGEST_DISPLAY / max(image.shape)
    if scale < 1:
        pixels = resize(pixels, (max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale))))
    return np.round(255 * apply_window(pixels, limits)).astype(np.uint8)


def _pad(stack: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Fill the padding with the image's own edge, which makes no false border for the backbone to see."""
    top, left, rows, columns = geometry.content
    height, width = geometry.input
    if (rows, columns) == (height, width):
        return np.ascontiguousarray(stack)
    return np.pad(stack, ((0, 0), (top, height - rows - top), (left, width - columns - left)), mode="edge")


def _pad_mask(valid: np.ndarray, geometry: Geometry) -> np.ndarray:
    top, left, rows, columns = geometry.content
    mask = np.zeros(geometry.input, bool)
    mask[top : top + rows, left : left + columns] = valid
    return mask
