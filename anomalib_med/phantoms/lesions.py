"""Lesions planted into healthy images, phantoms or real ones, with the mask of what was changed.

A lesion changes the pixels by blending, in units of the image itself: the step from lung to the dense tissue around it.
So it never leaves the image's own range of values, and it works for any scale in which bright is dense.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from anomalib_med.errors import ConfigError
from anomalib_med.phantoms.ct import HU_RANGE
from anomalib_med.phantoms.drawing import Float, Mask, Pen, check_kinds, gaussian, pose, smooth_noise
from anomalib_med.phantoms.shapes import Points, curve, ellipse, lobed, ribbon, spline

MASK_SHARE = 0.2  # a pixel belongs to the lesion where it changed by more than this share of the largest change
_MIN_LUNG = 0.02  # of the image: below it there is no room for a lesion


@dataclass(frozen=True, slots=True)
class _Scene:
    """What a lesion needs to know of the image it is planted in."""

    pixels: Float
    lungs: Mask
    lung: float  # typical value of lung
    tissue: float  # typical value of the dense tissue beside it
    bright: float  # nearly the brightest value of the image
    contrast: float  # strength of the lesion
    size: float  # relative size of the lesion
    rng: np.random.Generator

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    def fill(self, *polygons: Points) -> Float:
        """Coverage of polygons given in pixels ``(x, y)``."""
        (height, width), side = self.pixels.shape, max(self.pixels.shape)
        pen = Pen(side, pose(shift=(-0.5, 0.0)))
        return pen.fill(*(polygon / side for polygon in polygons))[:height, :width]

    def blur(self, field: Float, sigma: float) -> Float:
        return gaussian(field, max(sigma, 0.3))

    def length(self, low: float, high: float) -> float:
        """A random length in pixels, from shares of the width for a lesion of size 1."""
        return self.rng.uniform(low, high) * self.width * self.size

    def place(self, margin: float) -> tuple[float, float]:
        """A random point ``(x, y)`` of the lungs, `margin` pixels from their border or as far in as there is."""
        depth = cv2.distanceTransform(np.pad(self.lungs.astype(np.uint8), 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
        rows, columns = np.nonzero(depth >= min(margin, 0.8 * float(depth.max())))
        pick = int(self.rng.integers(len(rows)))
        return float(columns[pick]), float(rows[pick])

    def one_lung(self) -> tuple[Mask, int]:
        """One lung, and the direction to its outer border: -1 left on the image, 1 right."""
        _, parts, stats, centres = cv2.connectedComponentsWithStats(self.lungs.astype(np.uint8))
        order = 1 + np.argsort(stats[1:, cv2.CC_STAT_AREA])[::-1][:2]
        large = [int(i) for i in order if stats[i, cv2.CC_STAT_AREA] * 4 >= stats[order[0], cv2.CC_STAT_AREA]]
        pick = large[int(self.rng.integers(len(large)))]
        middle = float(np.mean(np.nonzero(self.lungs)[1]))
        return parts == pick, 1 if float(centres[pick][0]) > middle else -1


def add_lesion(
    pixels: Float, lungs: Mask, kind: str, rng: np.random.Generator, *, contrast: float = 1.0, size: float = 1.0
) -> tuple[Float, Mask]:
    """Plant one lesion.

    Parameters
    ----------
    pixels
        ``(H, W)``, bright is dense, any unit and range without NaN; not changed.
    lungs
        bool ``(H, W)``: where lung is seen; a rough mask will do.
    kind
        One of `KINDS`.
    rng
        Source of place, shape and texture.
    contrast, size
        Factors of the strength and the extent, above 0; a contrast of 1 is plainly visible, 0.3 faint.

    Returns
    -------
    The image, float32 ``(H, W)`` within the range of the input, and the mask, bool ``(H, W)``: where the change exceeds
    `MASK_SHARE` of the largest change.

    Raises
    ------
    ConfigError
        The kind is unknown, contrast or size is not positive, the lungs are missing or of another shape, or the image
        is so flat that the lesion would not change it.
    """
    check_kinds([kind], KINDS)
    scene = _look(pixels, lungs, contrast, size, rng, _MIN_LUNG)
    changed, mask = _with_mask(_PLANT[kind](scene), scene)
    if not (changed != scene.pixels).any():
        remedy = "the lungs must be darker than the tissue"
        raise ConfigError(f"pixels: nothing in the image is darker than a {kind} would be; {remedy}")
    return changed, mask


def add_ct_lesion(
    pixels: Float, lungs: Mask, kind: str, rng: np.random.Generator, *, contrast: float = 1.0, size: float = 1.0
) -> tuple[Float, Mask]:
    """Plant one lesion into a CT slice, float32 ``(H, W)`` in Hounsfield units.

    The kinds are ``nodule`` (about 0 to 60 HU) and ``ground_glass`` (250 to 450 HU above the lung, vessels still seen).
    All else is as for `add_lesion`, except that any lung that is not empty will do.
    """
    check_kinds([kind], CT_KINDS)
    scene = _look(pixels, lungs, contrast, size, rng, 0.0)
    return _with_mask(np.clip(np.round(_CT_PLANT[kind](scene)), *HU_RANGE).astype(np.float32), scene)


def _look(pixels: Float, lungs: Mask, contrast: float, size: float, rng: np.random.Generator, least: float) -> _Scene:
    """The scene; raises ConfigError where nothing can be planted, `least` being the share of lung that is needed."""
    if not (contrast > 0 and size > 0):
        raise ConfigError(f"contrast and size: {contrast} and {size} must both be above 0")
    if pixels.ndim != 2 or lungs.shape != pixels.shape:
        raise ConfigError(f"lungs: mask {lungs.shape} for pixels {pixels.shape}; both must be the same (H, W)")
    if not lungs.any() or lungs.mean() < least:
        needed = f"at least {least:.0%}" if least else "more"
        raise ConfigError(f"lungs: the mask covers {lungs.mean():.1%} of the image; {needed} is needed")
    pixels, lungs = pixels.astype(np.float32), lungs.astype(np.bool_)
    around = _dilated(lungs, max(3, round(0.1 * pixels.shape[1])) | 1) & ~lungs
    lung = float(np.median(pixels[lungs]))
    tissue = float(np.percentile(pixels[around], 75)) if around.any() else float(pixels.max())
    bright = float(np.percentile(pixels, 99.8))
    return _Scene(pixels, lungs, lung, max(tissue, lung + 0.1 * (bright - lung)), bright, contrast, size, rng)


def _with_mask(changed: Float, scene: _Scene) -> tuple[Float, Mask]:
    change = np.abs(changed - scene.pixels)
    return changed, change > MASK_SHARE * change.max()


def _dilated(mask: Mask, side: int) -> Mask:
    """A mask grown by a square of `side` pixels."""
    return cv2.dilate(mask.astype(np.uint8), np.ones((side, side), np.uint8)).astype(np.bool_)


def _fill_up(scene: _Scene, share: Float, level: float) -> Float:
    """Blend towards `level`, which hides what is darker: fluid and consolidated lung take the place of air."""
    return np.asarray(scene.pixels + share * np.maximum(np.float32(level) - scene.pixels, 0), np.float32)


def _nodule(scene: _Scene) -> Float:
    radius = scene.length(0.02, 0.05)
    x, y = scene.place(1.2 * radius)
    field = scene.fill(lobed(x, y, radius, scene.rng))
    if scene.rng.random() < 0.35:
        spikes = []
        for turn in scene.rng.uniform(0, 2 * np.pi, 11):
            reach = radius * scene.rng.uniform(1.25, 1.7)
            along = np.linspace(0.7 * radius, reach, 5)
            line = np.column_stack([x + along * np.cos(turn), y + along * np.sin(turn)])
            spikes.append(ribbon(line, np.linspace(0.16, 0.03, 5) * radius))
        field = np.maximum(field, 0.6 * scene.fill(*spikes))
    field = scene.blur(field, scene.rng.uniform(0.12, 0.25) * radius)
    share = field * np.float32(scene.contrast * scene.rng.uniform(0.6, 0.95))
    # A share of the step from lung to tissue, less where little room is left below the brightest value.
    room = np.clip((scene.bright - scene.pixels) / max(scene.bright - scene.tissue, 1e-6), 0, 1)
    raised = scene.pixels + share * np.float32(scene.tissue - scene.lung) * room
    return np.asarray(np.minimum(raised, np.maximum(scene.pixels, scene.bright)), np.float32)


def _opacity(scene: _Scene) -> Float:
    rng = scene.rng
    radius = scene.length(0.07, 0.13)
    x, y = scene.place(0.6 * radius)
    blobs = []
    for _ in range(5):
        dx, dy = rng.normal(0, 0.45, 2) * radius
        wide, high = radius * rng.uniform(0.4, 0.8), radius * rng.uniform(0.4, 0.8)
        blobs.append(ellipse(x + dx, y + dy, wide, high, angle=rng.uniform(0, 180)))
    field = scene.blur(scene.fill(*blobs), 0.3 * radius)
    field *= scene.blur(scene.lungs.astype(np.float32), 0.012 * scene.width)
    cells = max(4, round(scene.width / radius * 2.5))
    patchy = 1 + 0.22 * smooth_noise(rng, field.shape, cells) + 0.1 * smooth_noise(rng, field.shape, 3 * cells)
    field *= np.clip(patchy, 0.2, 1.6)
    bronchi = []
    for _ in range(4):  # air stays in the bronchi that run through the filled lung
        turn, bend = rng.uniform(0, 2 * np.pi), rng.normal(0, 0.3, 4)
        along = np.column_stack([np.cos(turn + bend), np.sin(turn + bend)]) * (0.35 * radius)
        line = spline(np.array([x, y]) + rng.normal(0, 0.3, 2) * radius + np.cumsum(along, axis=0))
        bronchi.append(ribbon(line, 0.012 * scene.width))
    field *= 1 - 0.55 * scene.blur(scene.fill(*bronchi), 0.003 * scene.width)
    return _fill_up(scene, np.clip(field * np.float32(scene.contrast * rng.uniform(0.6, 0.9)), 0, 0.97), scene.tissue)


def _effusion(scene: _Scene) -> Float:
    lung, outward = scene.one_lung()
    rows, columns = np.nonzero(lung)
    top, bottom, left, right = rows.min(), rows.max(), columns.min(), columns.max()
    depth = scene.rng.uniform(0.16, 0.34) * scene.size * (bottom - top)
    across = np.arange(scene.width, dtype=np.float32)
    outer, inner = (right, left) if outward > 0 else (left, right)
    share = np.clip((across - inner) / (outer - inner), 0, 1)
    # The meniscus: fluid climbs along the chest wall.
    surface = bottom - depth * (0.5 + 0.25 * share + 0.55 * share**4)
    below = np.arange(scene.pixels.shape[0], dtype=np.float32)[:, None] - surface[None, :]
    soft = 0.012 * scene.width
    field = 1 / (1 + np.exp(np.clip(-below / soft, -30, 30)))
    near = _dilated(lung, max(3, round(0.02 * scene.width)) | 1).astype(np.float32)
    field = (field * scene.blur(near, 0.006 * scene.width)).astype(np.float32)
    level = scene.tissue + 0.1 * (scene.bright - scene.tissue)
    return _fill_up(scene, np.minimum(field * np.float32(0.85 * scene.contrast), 0.97), level)


def _pneumothorax(scene: _Scene) -> Float:
    lung, outward = scene.one_lung()
    rows, columns = np.nonzero(lung)
    gap = scene.rng.uniform(0.1, 0.22) * scene.size * (columns.max() - columns.min() + 1)
    fall = scene.rng.uniform(1.2, 2.2) * gap
    shift = np.array([[1, 0, -outward * gap], [0, 1, fall]], np.float32)
    height, width = scene.pixels.shape
    collapsed: Float = cv2.warpAffine(lung.astype(np.float32), shift, (width, height), flags=cv2.INTER_LINEAR)  # type: ignore[assignment]
    border = scene.blur(collapsed, 0.006 * width)
    fade = np.clip((rows.max() - np.arange(height, dtype=np.float32)) / (0.35 * (rows.max() - rows.min() + 1)), 0, 1)
    free = scene.blur(lung.astype(np.float32), 0.6) * (1 - scene.blur(collapsed, 0.003 * width)) * fade[:, None]
    # Not the mediastinal border: only air along the chest wall.
    share = (np.arange(width) - columns.mean()) * outward / (np.ptp(columns) / 2)
    free *= np.clip(1.2 + 1.5 * share, 0, 1)[None, :].astype(np.float32)
    edge = (4 * border * (1 - border)) ** 3  # the visceral pleura: a thin line where air meets the lung
    edge *= _dilated(free > 0.3, 5)
    # Subtracted, not replaced: the ribs stay visible in front of the air.
    step = scene.tissue - scene.lung
    fall_to = np.maximum(scene.pixels - np.float32(0.4 * scene.contrast * step), scene.pixels.min())
    emptied = scene.pixels + free * (fall_to - scene.pixels)
    line = np.float32(0.25 * scene.contrast * step) * edge
    return np.asarray(np.minimum(emptied + line, scene.pixels.max()), np.float32)


def _foreign(scene: _Scene) -> Float:
    kind = scene.rng.choice(["coin", "tube", "pacemaker"])
    field = {"coin": _coin, "tube": _tube, "pacemaker": _pacemaker}[str(kind)](scene)
    metal = scene.bright + 0.3 * (float(scene.pixels.max()) - scene.bright)
    return _fill_up(scene, np.minimum(field * np.float32(scene.contrast), 1), metal)


def _coin(scene: _Scene) -> Float:
    radius = scene.length(0.015, 0.035)
    x, y = scene.place(radius)
    return 0.9 * scene.fill(ellipse(x, y, radius, radius * scene.rng.uniform(0.35, 1), angle=scene.rng.uniform(0, 180)))


def _tube(scene: _Scene) -> Float:
    x, y = scene.place(0.03 * scene.width)
    step = scene.length(0.1, 0.16)
    heading = -np.pi / 2 + scene.rng.normal(0, 0.6) + np.cumsum(scene.rng.normal(0, 0.35, 4))
    steps = np.column_stack([np.cos(heading), np.sin(heading)]) * step
    line = spline(np.array([x, y]) + np.vstack([[0, 0], np.cumsum(steps, axis=0)]))
    calibre = scene.rng.uniform(0.012, 0.02) * scene.width
    wall = scene.fill(ribbon(line, calibre)) - 0.55 * scene.fill(ribbon(line, 0.45 * calibre))
    return 0.75 * scene.blur(np.maximum(wall, 0), 0.4)


def _pacemaker(scene: _Scene) -> Float:
    width = scene.length(0.045, 0.065)
    lung, outward = scene.one_lung()
    rows, columns = np.nonzero(lung)
    x = columns.mean() + outward * 0.2 * np.ptp(columns)
    y = rows.min() + scene.rng.uniform(0.12, 0.25) * np.ptp(rows)
    corners = np.array([(-1, -0.6), (0, -0.8), (1, -0.6), (1, 0.5), (0.2, 0.85), (-1, 0.6)])
    case = spline(corners * width + [x, y], closed=True)
    middle, end = (x - outward * share * np.ptp(columns) for share in (0.3, 0.75))
    bottom = rows.min() + 0.75 * np.ptp(rows)
    lead = curve([x, middle, end, end], [y - 0.7 * width, y - 1.1 * width, y + width, bottom])
    wire = scene.fill(ribbon(lead, 0.007 * scene.width))
    return np.asarray(np.maximum(0.9 * scene.fill(case), 0.8 * wire), np.float32)


def _ct_nodule(scene: _Scene) -> Float:
    radius = scene.length(0.012, 0.035)
    field = gaussian(_disc(scene, radius), 0.6 * scene.width / 256)
    return _fill_up(scene, field, scene.lung + scene.contrast * (scene.rng.uniform(0, 60) - scene.lung))


def _ground_glass(scene: _Scene) -> Float:
    radius = scene.length(0.05, 0.1)
    field = gaussian(_disc(scene, radius) * scene.lungs, 0.22 * radius)
    field *= 1 + 0.2 * smooth_noise(scene.rng, field.shape, 40)
    step = np.float32(scene.contrast * scene.rng.uniform(250, 450))
    return np.asarray(scene.pixels + np.clip(field, 0, 1.3) * step * (scene.pixels < -200), np.float32)


def _disc(scene: _Scene, radius: float) -> Float:
    """An irregular disc anywhere in the lungs."""
    return scene.fill(lobed(*scene.place(1.1 * radius), radius, scene.rng))


_PLANT = {
    "nodule": _nodule,
    "opacity": _opacity,
    "effusion": _effusion,
    "foreign": _foreign,
    "pneumothorax": _pneumothorax,
}
KINDS = tuple(_PLANT)
_CT_PLANT = {"nodule": _ct_nodule, "ground_glass": _ground_glass}
CT_KINDS = tuple(_CT_PLANT)
