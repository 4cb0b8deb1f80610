"""Lung fields of an axial CT slice by thresholds and connected components: no network, about a millisecond.

Of the air inside the body bowel gas and airways are taken away, vessels and nodules are filled, and a closing takes in
what lies at the pleura (as in Hu, Hoffman and Reinhardt, "Automatic lung segmentation for accurate quantitation of
volumetric X-ray CT images", IEEE TMI 20, 2001). A lung without air is not found; the checks at the end then say so.
"""

import cv2
import numpy as np

from anomalib_med.preprocessing.valid_area import at_edge, body
from anomalib_med.records import Spacing

LUNG_BOUNDARY = -400.0  # HU: the lung with its small vessels lies below
GAS = -960.0  # HU: the median of trachea and bowel lies below, of lungs and emphysema above
FIELD_OF_VIEW = 380.0  # mm of the longer side where the file does not say
LEAST_LUNG = 150.0  # mm2 of a single region
LARGEST_AIRWAY = 900.0  # mm2
MIDDLE = 0.12  # of the width of the body: how far from its middle an airway may lie
CLOSING = 8.0  # mm, radius
LARGEST_HOLE = 2500.0  # mm2: larger ones are heart and mediastinum between joined lungs
SHARE_OF_BODY = (0.02, 0.8)
LEAST_OF_GREY = 0.15  # where values are no Hounsfield units, a small field is as likely an airway
DENSITY = (-970.0, -450.0)  # HU, mean of the field
LOPSIDED, LARGE = 12.0, 5000.0  # one side this many times the other, and above this many mm2


def lung_field(pixels: np.ndarray, spacing: Spacing | None, *, hounsfield: bool) -> tuple[np.ndarray | None, str]:
    """Find the lung fields of a slice, float ``(H, W)``, from its mm between rows and columns, or None.

    The pixels are Hounsfield units where `hounsfield` is true; otherwise grey values with dark lungs, whose boundary is
    Otsu's threshold. Returns bool ``(H, W)`` and "", or None and why there is no field to be trusted.
    """
    mm = spacing or (FIELD_OF_VIEW / max(pixels.shape),) * 2
    smooth = cv2.GaussianBlur(pixels.astype(np.float32), (0, 0), max(0.3, 1.0 / float(np.mean(mm))))
    boundary = LUNG_BOUNDARY if hounsfield else _otsu(smooth)
    outline = body(smooth, boundary)
    regions = _regions((outline & (smooth < boundary)).astype(np.uint8), outline, mm)
    kept = [region for region in regions if not hounsfield or float(np.median(smooth[region])) >= GAS]
    if not kept:
        return None, "no lung field found"
    field = np.any([_closed(region, mm) for region in kept], axis=0) & outline
    problem = _problem(field, smooth, outline, mm, hounsfield=hounsfield)
    return (None, problem) if problem else (field, "")


def _regions(air: np.ndarray, outline: np.ndarray, mm: Spacing) -> list[np.ndarray]:
    """Regions of air that may be lung: large enough, no airway, and not open to the outside."""
    _, labels, stats, centres = cv2.connectedComponentsWithStats(air, connectivity=4)
    columns = np.flatnonzero(outline.any(axis=0))
    middle, across = (columns[0] + columns[-1]) / 2, columns[-1] - columns[0] + 1
    area = stats[:, cv2.CC_STAT_AREA] * mm[0] * mm[1]
    airway = (area < LARGEST_AIRWAY) & (np.abs(centres[:, 0] - middle) < MIDDLE * across)
    chosen = (area >= LEAST_LUNG) & ~at_edge(stats, air.shape) & ~airway
    return [labels == i for i in np.flatnonzero(chosen) if i > 0]


def _closed(region: np.ndarray, mm: Spacing) -> np.ndarray:
    """One region with its dents (nodules at the pleura, vessels at the hilum) and small holes filled."""
    radii = [max(1, round(CLOSING / side)) for side in mm]
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radii[1] + 1, 2 * radii[0] + 1))
    (top, bottom), (left, right) = ((int(at.min()), int(at.max()) + 1) for at in np.nonzero(region))
    pad = [radii[0] + 1, radii[1] + 1]
    cut: np.ndarray = np.pad(region[top:bottom, left:right].astype(np.uint8), ((pad[0],) * 2, (pad[1],) * 2))
    cut = cv2.morphologyEx(cut, cv2.MORPH_CLOSE, kernel)
    _, holes, stats, _ = cv2.connectedComponentsWithStats(1 - cut, connectivity=4)
    small = stats[:, cv2.CC_STAT_AREA] * mm[0] * mm[1] <= LARGEST_HOLE
    small[[0, holes[0, 0]]] = False  # the region itself and what lies around it
    cut[small[holes]] = 1
    closed = np.zeros(region.shape, bool)
    closed[top:bottom, left:right] = cut[pad[0] : -pad[0], pad[1] : -pad[1]] > 0
    return closed


def _problem(field: np.ndarray, pixels: np.ndarray, outline: np.ndarray, mm: Spacing, *, hounsfield: bool) -> str:
    """Why a field is not to be trusted, or ""."""
    share = float(field.sum() / max(1, outline.sum()))
    least = SHARE_OF_BODY[0] if hounsfield else LEAST_OF_GREY
    if not least <= share <= SHARE_OF_BODY[1]:
        return f"the lung field would be {share:.1%} of the body"
    density = float(pixels[field].mean())
    if hounsfield and not DENSITY[0] <= density <= DENSITY[1]:
        return f"the lung field would have a mean of {density:.0f} HU"
    columns = np.flatnonzero(outline.any(axis=0))
    middle = int(columns[0] + columns[-1]) // 2
    sides = sorted((float(field[:, :middle].sum()) * mm[0] * mm[1], float(field[:, middle:].sum()) * mm[0] * mm[1]))
    if sides[1] > LARGE and sides[1] > LOPSIDED * sides[0]:
        return f"one side only: {sides[1] / 100:.0f} cm2 against {sides[0] / 100:.0f} cm2"
    return ""


def _otsu(pixels: np.ndarray) -> float:
    """Otsu's threshold between dark and bright, in the units of the pixels."""
    low, high = float(pixels.min()), float(pixels.max())
    if not low < high:
        return low
    grey = np.round(255 * (pixels - low) / (high - low)).astype(np.uint8)
    level, _ = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    return low + (float(level) + 0.5) / 255 * (high - low)
