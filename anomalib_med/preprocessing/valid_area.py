"""Which pixels may speak: not padding, not constant borders, and in CT not the air and the table outside the body."""

import cv2
import numpy as np

AIR_TISSUE_BOUNDARY = -500.0  # Hounsfield units, half way between air and water
MOST_OF_A_SIDE = 0.4  # a border wider than this is not a border
FLAT = 0.02  # a line whose values spread over less than this share of the image's range carries nothing
SMALLEST_BODY = 0.05  # of the image; below this the mask is not trusted


def valid_area(pixels: np.ndarray, *, hounsfield: bool) -> np.ndarray:
    """Find the pixels that show the patient.

    Parameters
    ----------
    pixels
        float ``(H, W)``; Hounsfield units where `hounsfield` is true.
    hounsfield
        Whether the body can be told from air by its value.

    Returns
    -------
    bool ``(H, W)``, never all False.
    """
    return body(pixels) if hounsfield else inside_borders(pixels)


def body(pixels: np.ndarray) -> np.ndarray:
    """The largest connected region denser than air, its holes (the lungs) filled; everything where there is none."""
    dense: np.ndarray = (pixels > AIR_TISSUE_BOUNDARY).astype(np.uint8)
    # Opening parts the body from the thin table below it.
    side = max(3, round(0.012 * max(pixels.shape)) | 1)
    dense = cv2.morphologyEx(dense, cv2.MORPH_OPEN, np.ones((side, side), np.uint8))
    count, components, stats, _ = cv2.connectedComponentsWithStats(dense, connectivity=4)
    if count < 2:
        return np.ones(pixels.shape, bool)
    largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    contours, _ = cv2.findContours((components == largest).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros(pixels.shape, np.uint8)
    cv2.drawContours(filled, contours, -1, 1, thickness=cv2.FILLED)
    mask: np.ndarray = filled > 0
    return mask if mask.mean() >= SMALLEST_BODY else np.ones(pixels.shape, bool)


def inside_borders(pixels: np.ndarray) -> np.ndarray:
    """Everything but the flat rows and columns at the edges: padding bars and closed collimators."""
    mask = np.ones(pixels.shape, bool)
    spread = float(np.ptp(pixels))
    if spread == 0:
        return mask
    for axis in (0, 1):
        low, high = np.percentile(pixels, (5, 95), axis=1 - axis)
        first, last = _flat_ends(high - low < FLAT * spread)
        if axis == 0:
            mask[:first] = mask[last:] = False
        else:
            mask[:, :first] = mask[:, last:] = False
    return mask


def _flat_ends(flat: np.ndarray) -> tuple[int, int]:
    """Start and end of what is left after the flat lines at either end; a side that is mostly flat is left alone."""
    lively = np.flatnonzero(~flat)
    if lively.size == 0:
        return 0, len(flat)
    first, last = int(lively[0]), int(lively[-1]) + 1
    limit = MOST_OF_A_SIDE * len(flat)
    return (first if first <= limit else 0), (last if len(flat) - last <= limit else len(flat))
