"""Which pixels may speak: not padding, not constant borders, and in CT not the air and the table outside the body."""

import cv2
import numpy as np

AIR_TISSUE_BOUNDARY = -500.0  # Hounsfield units, half way between air and water
MOST_OF_A_SIDE = 0.4  # a border wider than this is not a border
FLAT = 0.02  # a line whose values spread over less than this share of the image's range carries nothing
SMALLEST_BODY = 0.05  # of the image; below this the mask is not trusted


def body(pixels: np.ndarray, boundary: float = AIR_TISSUE_BOUNDARY) -> np.ndarray:
    """The largest connected region above `boundary`, its holes (the lungs) filled; everything where there is none."""
    dense: np.ndarray = (pixels > boundary).astype(np.uint8)
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
    for lines, marks in ((pixels, mask), (pixels.T, mask.T)):
        first, last = _flat_lines(lines, FLAT * spread), _flat_lines(lines[::-1], FLAT * spread)
        marks[:first] = marks[len(lines) - last :] = False
    return mask


def _flat_lines(lines: np.ndarray, least: float) -> int:
    """How many lines carry nothing before the first that does; 0 where most of the image is flat."""
    limit = int(MOST_OF_A_SIDE * len(lines)) + 1
    done, step = 0, 2
    while done < limit:  # nearly always the first line is a lively one, so few are looked at
        low, high = np.percentile(lines[done : min(done + step, limit)], (5, 95), axis=1)
        lively = np.flatnonzero(high - low >= least)
        if lively.size:
            return done + int(lively[0])
        done, step = done + step, 2 * step
    return 0


def at_edge(stats: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Which connected components reach the edge of an image of `shape`; `stats` are OpenCV's, one row each."""
    left, top, wide, high, _ = stats.T
    edge: np.ndarray = (left == 0) | (top == 0) | (left + wide == shape[1]) | (top + high == shape[0])
    return edge
