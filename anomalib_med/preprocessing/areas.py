"""Which part of an image is looked at: the body, the lung fields, everything, or what a function of the user's says."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from anomalib_med.errors import ConfigError, ReadError
from anomalib_med.preprocessing.exposed import exposed_field
from anomalib_med.preprocessing.lungs import lung_field
from anomalib_med.preprocessing.valid_area import body, inside_borders
from anomalib_med.records import Spacing

AreaFunction = Callable[[np.ndarray, Spacing | None], np.ndarray]
OWN_AREA = "one of your own is made known with register_area before the model is loaded"
EXPOSED = "exposed"
_BUILT_IN = ("auto", "body", "lung", EXPOSED, "all")
_own: dict[str, AreaFunction] = {}


@dataclass(frozen=True, slots=True, eq=False)
class Area:
    """The area to be looked at: a mask, bool ``(H, W)``, and what it is."""

    mask: np.ndarray
    status: str  # a name, "borders", or either with a colon and why this is not what was asked for


def area_names() -> list[str]:
    """Names that ``Preprocessing.valid`` takes."""
    return [*_BUILT_IN, *sorted(_own)]


def register_area(name: str, function: AreaFunction) -> None:
    """Make a function of your own known under a name, for ``Preprocessing(valid=name)``.

    It gets the pixels of the resized image, float32 ``(h, w)`` (Hounsfield units in CT), and the millimetres between
    its rows and between its columns (None where not known), and returns a mask ``(h, w)``, non-zero where to look.
    Where the mask is zero everywhere, the body is taken. A model that was fitted with it keeps the name: register it
    again before the model is loaded. Raises ConfigError where the name is a built-in one.
    """
    if name in _BUILT_IN:
        raise ConfigError(f'area "{name}" is built in: choose another name for your own')
    _own[name] = function


def find_area(name: str, pixels: np.ndarray, spacing: Spacing | None, *, hounsfield: bool) -> Area:
    """Find the area of one image, float ``(H, W)``, in Hounsfield units where `hounsfield` is true.

    The name is one of `area_names`; the spacing is in millimetres between rows and between columns. Raises ReadError
    where a function of the user's fails, or gives a mask of another shape.
    """
    if name == "all":
        return Area(np.ones(pixels.shape, bool), "all")
    fallback = Area(body(pixels), "body") if hounsfield or name == "body" else Area(inside_borders(pixels), "borders")
    if name == "lung":
        mask, problem = lung_field(pixels, spacing, hounsfield=hounsfield)
        return Area(mask, "lung") if mask is not None else Area(fallback.mask, f"{fallback.status}: {problem}")
    if name == EXPOSED and not hounsfield:
        mask, problem = exposed_field(pixels)
        return Area(mask, f"borders: {problem}" if problem else EXPOSED)
    if name not in _own:
        return fallback
    try:
        mask = np.asarray(_own[name](pixels, spacing) != 0)
    except Exception as error:  # whatever it raises concerns this image only
        raise ReadError(f"the area function {name} failed ({type(error).__name__}: {error})") from error
    if mask.shape != pixels.shape:
        raise ReadError(f"the area function {name} gave a mask of {mask.shape} for pixels of {pixels.shape}")
    return Area(mask, name) if mask.any() else Area(fallback.mask, f"{fallback.status}: {name} found nothing")
