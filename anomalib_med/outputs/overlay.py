"""The picture of one result: image | anomaly map | overlay, with a colour bar on a scale fixed for the run."""

from pathlib import Path

import cv2
import numpy as np

from anomalib_med.files import write_atomic

_LONGEST, _SHORTEST = 512, 256  # longest side of a panel; tiny images are enlarged to the second
_GAP = 8
_BAR, _BAR_MARGIN = 16, 96  # widths of the colour bar and of everything right of the panels
_LEAST_HEIGHT = 96  # below this the bar's numbers would touch
_BACKGROUND = 16  # grey
_INK = (225, 225, 225)
_STRONGEST = 0.75  # opacity of the overlay at the top of the scale
_JPEG_QUALITY = 90


def colours(map: np.ndarray, colour_range: tuple[float, float]) -> np.ndarray:
    """Colour a float map ``(H, W)`` with the perceptually uniform table "inferno": uint8 RGB ``(H, W, 3)``.

    `colour_range` are the values of the first and the last colour. NaN is drawn as the lowest value.
    """
    levels = np.rint(_relative(map, colour_range) * 255).astype(np.uint8)
    coloured: np.ndarray = cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)
    return np.ascontiguousarray(coloured[..., ::-1])


def triptych(display: np.ndarray, map: np.ndarray, colour_range: tuple[float, float]) -> np.ndarray:
    """Image, anomaly map and overlay side by side, and the colour bar with the numbers of its ends.

    The opacity of the map in the overlay grows with its value, so that what is normal stays grey.

    Parameters
    ----------
    display
        uint8 ``(H', W')`` or ``(H', W', 3)`` RGB, the image as a person looks at it, at any resolution.
    map
        float ``(H, W)``, its anomaly map.
    colour_range
        Values of the first and the last colour, fixed for the run.

    Returns
    -------
    uint8 RGB; the longest side of a panel is at most 512 pixels. Raises ValueError for an image that is not uint8.
    """
    if display.dtype != np.uint8:
        raise ValueError(f"display is {display.dtype}, it must be uint8")
    display, map = _resized(display if display.ndim == 3 else np.repeat(display[..., None], 3, axis=2), map)
    height, width = map.shape
    canvas = np.full((max(height, _LEAST_HEIGHT), 3 * width + 2 * _GAP + _BAR_MARGIN, 3), _BACKGROUND, np.uint8)
    top = (len(canvas) - height) // 2
    coloured, value = colours(map, colour_range), _relative(map, colour_range)[..., None]
    # Smoothstep: flat near zero, where the dark end of the table would only blacken the image.
    opacity = _STRONGEST * value * value * (3 - 2 * value)
    overlay = np.rint(display * (1 - opacity) + coloured * opacity).astype(np.uint8)
    for index, panel in enumerate((display, coloured, overlay)):
        left = index * (width + _GAP)
        canvas[top : top + height, left : left + width] = panel
    _draw_bar(canvas, 3 * (width + _GAP), colour_range)
    return canvas


def write_overlay(path: Path, display: np.ndarray, map: np.ndarray, colour_range: tuple[float, float]) -> None:
    """Write the `triptych` as a JPEG of quality 90; raises OutputError where it cannot be written."""
    picture = triptych(display, map, colour_range)[..., ::-1]
    encoded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1]
    write_atomic(path, encoded.tobytes())


def _relative(map: np.ndarray, colour_range: tuple[float, float]) -> np.ndarray:
    lo, hi = colour_range
    relative: np.ndarray = (np.nan_to_num(map.astype(np.float32), nan=lo) - lo) / (hi - lo)
    return relative.clip(0, 1)


def _resized(display: np.ndarray, map: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    longest = max(map.shape)
    scale = min(max(longest, _SHORTEST), _LONGEST) / longest
    size = (max(1, round(map.shape[1] * scale)), max(1, round(map.shape[0] * scale)))
    smaller = display.shape[0] > size[1]
    display = cv2.resize(display, size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_NEAREST)
    map = cv2.resize(map.astype(np.float32), size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    return display, map


def _draw_bar(canvas: np.ndarray, left: int, colour_range: tuple[float, float]) -> None:
    lo, hi = colour_range
    top, bottom = 6, canvas.shape[0] - 6
    ramp = np.linspace(hi, lo, bottom - top, dtype=np.float32)[:, None].repeat(_BAR, axis=1)
    canvas[top:bottom, left : left + _BAR] = colours(ramp, colour_range)
    cv2.rectangle(canvas, (left - 1, top - 1), (left + _BAR, bottom), (110, 110, 110), 1)
    for value, y in ((hi, top + 14), (lo, bottom - 2)):
        where = (left + _BAR + 5, y)
        cv2.putText(canvas, f"{value:.3g}", where, cv2.FONT_HERSHEY_SIMPLEX, 0.6, _INK, 1, cv2.LINE_AA)
