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
from anomalib_med.records import Frame, Geometry, Image, Spacing, turned

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
    """Turn an image into a model input, with settings whose windows are resolved.

    `display` asks for the picture for the eye. `own`, bool ``(H, W)`` in the geometry of the image, is an area of the
    user's own that replaces the one of the settings. `around` holds the slice and its neighbours, whose channels follow
    one another, and nothing for the image alone. `height` is the relative height of the slice, which the frame carries.
    Raises ReadError where the image is constant, or as :func:`fit_geometry`.
    """
    if float(np.ptp(image.pixels)) == 0:
        same = f"every pixel has the value {image.pixels.flat[0]:g}"
        raise ReadError(f"{image.sample.id}: {same}; the image is empty, leave it out")
    geometry = replace(fit_geometry(image.shape, settings, image.spacing), flips=image.flips)
    shape, colour = geometry.content[2:], settings.colour
    planes = resize(_upright(image, colour=colour), shape)
    grey = planes if planes.ndim == 2 else planes @ LUMINANCE
    area = _area(image, grey, settings, own)
    valid = area.mask
    if image.missing is not None:
        valid = valid & (resize(turned(image.missing, image.flips), shape) < 0.5)
    if not valid.any():
        area = Area(np.ones_like(valid), f"all: nothing was measured in the area ({area.status})")
        valid = area.mask
    limits = [_limits(window, image, grey[valid]) for window in settings.windows]
    inputs = (planes if one is image else resize(_upright(one, colour=colour), shape) for one in around or [image])
    stack = np.moveaxis(np.dstack([apply_window(one, ends) for one in inputs for ends in limits]), 2, 0)
    top, left, rows, columns = geometry.content
    padding = ((top, geometry.input[0] - rows - top), (left, geometry.input[1] - columns - left))
    status = area.status
    if settings.height != "none" and np.isnan(height):
        name, colon, why = status.partition(":")
        status = f"{name} at unknown height{colon}{why}"
    # Padded with the image's own edge, which makes no false border for the backbone to see.
    pixels = np.ascontiguousarray(np.pad(stack, ((0, 0), *padding), mode="edge"))
    picture = None
    if display:
        picture = np.round(255 * apply_window(shrunk(image.pixels, LARGEST_DISPLAY), limits[0])).astype(np.uint8)
    return Frame(pixels, np.pad(valid, padding), geometry, image.sample, status, picture, height)


def is_hounsfield(image: Image, settings: Preprocessing) -> bool:
    """Whether the values of an image are taken for Hounsfield units."""
    return all(window in CT_WINDOWS for window in settings.windows) or image.modality == "CT"


def spacing_at(image: Image, shape: Sequence[int]) -> Spacing | None:
    """Millimetres between rows and between columns of the image resized to `shape`, or None."""
    if image.spacing is None:
        return None
    return image.spacing[0] * image.shape[0] / shape[0], image.spacing[1] * image.shape[1] / shape[1]


def fit_geometry(shape: tuple[int, int], settings: Preprocessing, spacing: Spacing | None = None) -> Geometry:
    """Rows and columns of the model input for an image of `shape`, and where the image lies in it.

    Raises ReadError where `settings.spacing` is given, and the image has no spacing or would become too large.
    """
    size = _rounded(settings.size, settings.multiple)
    if settings.spacing > 0:
        if spacing is None:
            wanted = f"the model wants {settings.spacing:g} mm: fit without spacing"
            raise ReadError(f"the file does not say how large a pixel is, and {wanted}")
        inner = _sides(*(side * mm / settings.spacing for side, mm in zip(shape, spacing, strict=True)))
        height, width = (-(-side // settings.multiple) * settings.multiple for side in inner)
        if max(height, width) > LARGEST_INPUT:
            pixels = f"{height} x {width} pixels at {settings.spacing:g} mm"
            raise ReadError(f"an input of {pixels} is too large: fit with a larger spacing")
    elif settings.aspect == "pad":
        scale = size / max(shape)
        inner = _sides(shape[0] * scale, shape[1] * scale)
        height = width = size
    elif settings.aspect == "stretch":
        inner = height, width = size, size
    else:
        inner = height, width = _nearest_shape(shape[0] / shape[1], size, settings.multiple)
    return Geometry(shape, (height, width), ((height - inner[0]) // 2, (width - inner[1]) // 2, *inner))


def _sides(rows: float, columns: float) -> tuple[int, int]:
    return max(1, round(rows)), max(1, round(columns))


def _rounded(value: float, multiple: int) -> int:
    return max(1, round(value / multiple)) * multiple


def _nearest_shape(aspect: float, size: int, multiple: int) -> tuple[int, int]:
    """Multiples of `multiple` that keep the aspect best, among those of about ``size * size`` pixels."""
    aspect = min(max(aspect, 0.25), 4.0)  # beyond 4 : 1 the image is squeezed: it would be all edge
    about = _rounded(size * aspect**0.5, multiple), _rounded(size / aspect**0.5, multiple)
    rows, columns = ([side + step for step in (-multiple, 0, multiple) if side + step > 0] for side in about)

    def cost(shape: tuple[int, int]) -> float:
        stretch = abs(float(np.log(shape[0] / shape[1] / aspect)))
        growth = abs(float(np.log(shape[0] * shape[1] / size**2)))
        return stretch + 0.25 * growth

    return min(product(rows, columns), key=cost)


def resize(pixels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The one resize of the package: area averages when shrinking, bilinear when enlarging. float32 in and out."""
    pixels = pixels.astype(np.float32, copy=False)
    if pixels.shape[:2] == shape:
        return pixels
    shrinking = shape[0] < pixels.shape[0] or shape[1] < pixels.shape[1]
    return cv2.resize(pixels, shape[::-1], interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR)


def shrunk(pixels: np.ndarray, longest: int) -> np.ndarray:
    """The same picture with no side longer than `longest`, float32."""
    scale = min(1.0, longest / max(pixels.shape[:2]))
    return resize(pixels, _sides(pixels.shape[0] * scale, pixels.shape[1] * scale))


def apply_window(pixels: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Map ``limits`` to 0 and 1 and clip. float32."""
    low, high = limits
    return np.clip((pixels - low) / (high - low), 0, 1).astype(np.float32, copy=False)


def _area(image: Image, grey: np.ndarray, settings: Preprocessing, own: np.ndarray | None) -> Area:
    """The area to be looked at in the resized image."""
    shape = grey.shape[0], grey.shape[1]
    if own is not None:
        inside = resize(turned(own, image.flips), shape) >= 0.5
        return Area(inside, "own") if inside.any() else Area(np.ones_like(inside), "all: the mask is empty")
    spacing, hounsfield = spacing_at(image, shape), is_hounsfield(image, settings)
    if settings.valid != EXPOSED:
        return find_area(settings.valid, grey, spacing, hounsfield=hounsfield)
    # Letters are found in a larger picture; a pixel that a quarter of one covers is left out.
    detailed = shrunk(_upright(image, colour=False), SIDE)
    area = find_area(settings.valid, detailed, spacing, hounsfield=hounsfield)
    return replace(area, mask=resize(~area.mask, shape) < 0.25)


def _upright(image: Image, *, colour: bool) -> np.ndarray:
    """The pixels turned as the model sees them, ``(H, W, 3)`` in colour and ``(H, W)`` otherwise."""
    pixels = image.pixels
    if colour != (pixels.ndim == 3):
        pixels = np.repeat(pixels[..., None], 3, axis=2) if colour else pixels @ LUMINANCE
    return turned(pixels, image.flips)


def _limits(window: Window, image: Image, values: np.ndarray) -> tuple[float, float]:
    """Lowest and highest value shown of a window; `values` are the valid pixels that percentiles are taken of."""
    if isinstance(window, tuple):
        return window
    if window in CT_WINDOWS:
        return CT_WINDOWS[window]
    if window == "voi" and image.window is not None and image.window[0] < image.window[1]:
        return image.window
    low, high = (float(v) for v in np.percentile(values, (0.5, 99.5)))
    return (low, high) if low < high else (float(image.pixels.min()), float(image.pixels.max()))
