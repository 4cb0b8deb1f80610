"""Where lung is seen in a real image, roughly: good enough to plant a lesion in it, not to measure it."""

import cv2
import numpy as np

from anomalib_med.phantoms.drawing import Float, Mask

_AIR = -500.0  # Hounsfield units, half way between air and soft tissue
_GAS = -960.0  # in Hounsfield units: the median of stomach, bowel and trachea is below, that of lung tissue above
_SMALLEST_LUNG = 0.005  # of a CT slice
_DARK_ENOUGH = 0.3  # of the place where lungs are expected in a radiograph
# Where the two lungs lie on an upright frontal radiograph: centre and radius, as shares of width and height.
_PLACES = ((0.29, 0.45), (0.71, 0.45))
_RADII = (0.15, 0.29)


def lungs_of_radiograph(pixels: Float) -> Mask:
    """Dark places, bool ``(H, W)``, where the lungs of a frontal chest radiograph lie.

    Bright is dense in the pixels, in any unit. Where little of the expected place is dark (a white lung, a lateral
    view), all of that place is returned.
    """
    height, width = pixels.shape
    place = np.zeros((height, width), np.uint8)
    for x, y in _PLACES:
        centre, axes = (round(x * width), round(y * height)), (round(_RADII[0] * width), round(_RADII[1] * height))
        cv2.ellipse(place, centre, axes, 0, 0, 360, (1,), -1)
    expected = place > 0
    smooth = cv2.GaussianBlur(pixels.astype(np.float32), (0, 0), max(0.01 * width, 0.5))
    middle = smooth[round(0.2 * height) : round(0.75 * height), round(0.46 * width) : round(0.56 * width)]
    # Between the median of the expected lungs and that of spine, heart and great vessels.
    border = (float(np.median(smooth[expected])) + float(np.median(middle))) / 2
    dark = (expected & (smooth < border)).astype(np.uint8)
    _, parts, stats, _ = cv2.connectedComponentsWithStats(dark, connectivity=4)
    # The two largest parts, without the slivers above the shoulders and beside the chest.
    lungs = np.isin(parts, 1 + np.argsort(stats[1:, cv2.CC_STAT_AREA])[::-1][:2])
    return lungs if lungs.sum() >= _DARK_ENOUGH * expected.sum() else expected


def lungs_of_ct(hounsfield: Float) -> Mask:
    """Lung, bool ``(H, W)``, in an axial chest CT slice: air inside the body that is not pure gas as in the stomach."""
    air = (hounsfield < _AIR).astype(np.uint8)
    count, parts, stats, _ = cv2.connectedComponentsWithStats(air, connectivity=4)
    edge = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
    large = stats[:, cv2.CC_STAT_AREA] >= _SMALLEST_LUNG * air.size
    inside = [part for part in range(1, count) if large[part] and part not in edge]
    return np.isin(parts, [part for part in inside if np.median(hounsfield[parts == part]) > _GAS])
