"""The exposed field of a radiograph: without collimated borders, whatever their angle, and without burned-in markers.

Both are found by thresholds and connected components. Every step is timid: what reaches into the middle of the image is
left in, so that lung apices and costophrenic angles stay.
"""

import cv2
import numpy as np

from anomalib_med.preprocessing.valid_area import at_edge, inside_borders

SIDE = 768  # of the picture looked at, at most; strokes of letters are lost in a smaller one
DARK = 0.03  # of the range of the image: a border lies no higher above its lowest value
EVEN = 0.012  # of that range: standard deviation within a border
LEAST_BORDER = 0.004  # of the image
MIDDLE = 0.22  # of each side: what lies farther inside is the middle of the field
LEFT = 0.35  # of the image: less must not remain
BRIGHT = 0.9  # of the range between the 1st and the highest percentile: letters reach it
RISE = 0.2  # of that range: how far a letter rises above what surrounds it
FRAME = 0.2  # of each side: markers are looked for in this frame only
GLYPH = (0.008, 0.16)  # of the longer side: smallest and largest extent of a letter, or of letters that touch
STROKE = 0.014  # of the longer side: half the width of the widest stroke
MOST_MARKED = 0.03  # of the image


def exposed_field(pixels: np.ndarray) -> tuple[np.ndarray, str]:
    """Find the exposed field of a radiograph, float ``(H, W)``, bright where dense.

    Returns bool ``(H, W)`` and "", or the mask of :func:`.valid_area.inside_borders` and why it is that.
    """
    borders = inside_borders(pixels)
    low, high = (float(v) for v in np.percentile(pixels, (0.5, 99.8)))
    if not low < high:
        return borders, "the image has no contrast"
    scaled = ((pixels - low) / (high - low)).astype(np.float32)
    field = borders & ~_collimated(scaled, borders)
    if field.mean() < LEFT:
        return borders, f"only {field.mean():.0%} of the image would be the exposed field"
    marks = _markers(scaled, field)
    if marks.mean() > MOST_MARKED:
        return field, f"{marks.mean():.0%} of the image look like markers, they are left in"
    return field & ~marks, ""


def _collimated(scaled: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Dark and even regions at the edge, unless they reach into the middle of what lies inside flat borders."""
    size = max(3, round(0.008 * max(scaled.shape)) | 1)
    mean = cv2.blur(scaled, (size, size))
    spread = np.sqrt(np.maximum(cv2.blur(scaled * scaled, (size, size)) - mean * mean, 0))
    dark = ((mean < DARK) & (spread < EVEN)) | ~inside
    # Opening parts a border from dark lung that a thin bridge leads to.
    side = max(3, round(0.015 * max(scaled.shape)) | 1)
    dark = cv2.morphologyEx(np.pad(dark.astype(np.uint8), side, mode="edge"), cv2.MORPH_OPEN, np.ones((side, side)))
    dark = dark[side:-side, side:-side]
    _, labels, stats, _ = cv2.connectedComponentsWithStats(dark, connectivity=4)
    border = at_edge(stats, scaled.shape) & (stats[:, cv2.CC_STAT_AREA] >= LEAST_BORDER * scaled.size)
    border[labels[_frame(inside, MIDDLE) == 0]] = False
    border[0] = False
    # The blur keeps a rim of the border out of it.
    grown: np.ndarray = cv2.dilate(border[labels].astype(np.uint8), np.ones((size, size))) > 0
    return grown


def _markers(scaled: np.ndarray, field: np.ndarray) -> np.ndarray:
    """Letters and signs in the outer frame of the field, with a margin."""
    longer = max(scaled.shape)
    bright = ((scaled > BRIGHT) & field).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(bright, connectivity=8)
    extent = stats[:, (cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT)].max(axis=1)
    extent[0] = 0  # what is not bright
    frame = _frame(field, FRAME)
    margin = max(2, round(0.01 * longer))
    marked = np.zeros(scaled.shape, bool)
    for i in np.flatnonzero((extent >= GLYPH[0] * longer) & (extent <= GLYPH[1] * longer)):
        left, top, wide, high, _ = stats[i].tolist()
        starts = ((top, high), (left, wide))
        rows, columns = (slice(max(0, at - 2 * margin), at + length + 2 * margin) for at, length in starts)
        glyph = (labels[rows, columns] == i).astype(np.uint8)
        stroke = float(cv2.distanceTransform(np.pad(glyph, 1), cv2.DIST_L2, 3).max())
        if stroke > max(1.5, STROKE * longer) or not frame[rows, columns][glyph > 0].all():
            continue
        near = cv2.dilate(glyph, np.ones((3, 3)), iterations=margin)
        around = scaled[rows, columns][(near > 0) & (cv2.dilate(glyph, np.ones((5, 5))) == 0)]
        inner = float(np.median(scaled[rows, columns][glyph > 0]))
        if around.size and inner - float(np.percentile(around, 75)) >= RISE:
            marked[rows, columns] |= near > 0
    return marked


def _frame(field: np.ndarray, share: float) -> np.ndarray:
    """1 in the outer `share` of the smallest rectangle around a field and outside of it, 0 in its middle."""
    frame = np.ones(field.shape, np.uint8)
    rows, columns = np.flatnonzero(field.any(axis=1)), np.flatnonzero(field.any(axis=0))
    if rows.size:
        (top, bottom), (left, right) = (rows[0], rows[-1] + 1), (columns[0], columns[-1] + 1)
        high, wide = round(share * (bottom - top)), round(share * (right - left))
        frame[top + high : bottom - high, left + wide : right - wide] = 0
    return frame
