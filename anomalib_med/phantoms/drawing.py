"""Anti-aliased shapes, splines and smooth random fields: what the phantoms are drawn with.

Shapes are given in *anatomical coordinates*: x from -0.5 to 0.5 with 0 on the midline, y from 0 (top) to 1 (bottom) of
a square image. Image left is the patient's right, as radiographs and axial slices are shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
Mask = NDArray[np.bool_]
Points = NDArray[np.float64]

_SUPERSAMPLING = 2
_CIRCLE = np.array([np.cos(np.arange(48) * np.pi / 24), np.sin(np.arange(48) * np.pi / 24)])
_SHIFT = 4  # OpenCV's fixed-point bits: polygon corners at 1/16 of a pixel


@dataclass(frozen=True, slots=True)
class Phantom:
    """A synthetic radiograph or slice without findings."""

    pixels: Float
    """float32 ``(H, W)``: ``[0, 1]``, bright is dense, for a radiograph; Hounsfield units for a CT slice."""
    lungs: Mask
    """bool ``(H, W)``: lung that nothing dense covers, where lesions may lie."""
    body: Mask
    """bool ``(H, W)``: inside the patient."""


@dataclass(frozen=True, slots=True)
class Pen:
    """Draws shapes given in anatomical coordinates into a square image."""

    size: int
    """Height and width of the image in pixels."""
    pose: Points
    """``(2, 3)`` affine map from anatomical to image coordinates, both in units of the image."""

    def fill(self, *polygons: Points) -> Float:
        """Share of each pixel that the union of the polygons ``(n, 2)`` covers, float32 ``(size, size)`` in [0, 1]."""
        side = self.size * _SUPERSAMPLING
        canvas = np.zeros((side, side), np.uint8)
        corners = (np.concatenate(polygons) @ self.pose[:, :2].T + self.pose[:, 2]) * side - 0.5
        fixed = np.round(corners * (1 << _SHIFT)).astype(np.int32)
        start = 0
        for polygon in polygons:  # one call for all of them would leave holes where two overlap
            end = start + len(polygon)
            cv2.fillPoly(canvas, [fixed[start:end]], 255, cv2.LINE_AA, _SHIFT)
            start = end
        covered = cv2.resize(canvas, (self.size, self.size), interpolation=cv2.INTER_AREA)
        return covered.astype(np.float32) * np.float32(1 / 255)

    def soften(self, image: Float, sigma: float) -> Float:
        """Gaussian blur with `sigma` as a share of the image width."""
        return gaussian(image, sigma * self.size)


def gaussian(image: Float, sigma: float) -> Float:
    """Gaussian blur with `sigma` in pixels; the border is repeated outwards."""
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE), np.float32)


def pose(
    *, angle: float = 0.0, scale: tuple[float, float] = (1.0, 1.0), shift: tuple[float, float] = (0.0, 0.0)
) -> Points:
    """Affine map for `Pen`: scale, then rotate by `angle` degrees about the image centre, then shift.

    The angle is clockwise on the image, the scales are horizontal and vertical, and the shift goes right and down as a
    share of the image.
    """
    turn = np.deg2rad(angle)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    linear = rotation @ np.diag(scale)
    centre = np.array([0.5, 0.5]) + np.asarray(shift)
    return np.column_stack([linear, centre - linear @ np.array([0.0, 0.5])])


def spline(points: Sequence[tuple[float, float]] | Points, *, closed: bool = False, steps: int = 8) -> Points:
    """Catmull-Rom curve through the points ``(n, 2)``, with `steps` points for each stretch between two of them."""
    knots = np.asarray(points, np.float64)
    if closed:
        knots = np.concatenate([knots[-1:], knots, knots[:2]])
    else:
        knots = np.concatenate([2 * knots[:1] - knots[1:2], knots, 2 * knots[-1:] - knots[-2:-1]])
    t = np.linspace(0.0, 1.0, steps, endpoint=False)[None, :, None]
    a, b, c, d = knots[:-3, None], knots[1:-2, None], knots[2:-1, None], knots[3:, None]
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    curve = curve.reshape(-1, 2)
    return curve if closed else np.concatenate([curve, knots[-2:-1]])


def curve(x: Sequence[float], y: Sequence[float], *, closed: bool = False) -> Points:
    """The `spline` through points given as columns."""
    return spline(np.column_stack([x, y]), closed=closed)


def ribbon(centre: Points, width: float | Points) -> Points:
    """Outline ``(2 n, 2)`` or ``(m, 2 n, 2)`` of a band along one ``(n, 2)`` or many ``(m, n, 2)`` centre lines.

    The full width is one number or an array that is broadcast against ``centre.shape[:-1]``.
    """
    along = np.gradient(centre, axis=-2)
    length = np.linalg.norm(along, axis=-1, keepdims=True)
    normal = np.stack([-along[..., 1], along[..., 0]], axis=-1) / np.maximum(length, 1e-9)
    half = 0.5 * np.broadcast_to(np.asarray(width), centre.shape[:-1])[..., None]
    return np.concatenate([centre + half * normal, (centre - half * normal)[..., ::-1, :]], axis=-2)


def ellipse(x: float, y: float, half_width: float, half_height: float, *, angle: float = 0.0) -> Points:
    """Outline of an ellipse, ``(48, 2)``; `angle` in degrees, clockwise on the image."""
    turn = np.deg2rad(angle)
    u, v = half_width * _CIRCLE[0], half_height * _CIRCLE[1]
    return np.column_stack([x + u * np.cos(turn) - v * np.sin(turn), y + u * np.sin(turn) + v * np.cos(turn)])


def rounded(covered: Float, depth: float) -> Float:
    """Thickness of a body with an elliptic cross-section: 0 at its edge, 1 from `depth` inwards.

    The shape comes from `Pen.fill`; the depth is a share of the image width.
    """
    inside = np.pad((covered > 0.5).astype(np.uint8), 1, mode="edge")
    distance = cv2.distanceTransform(inside, cv2.DIST_L2, 5)[1:-1, 1:-1] / (depth * covered.shape[1])
    profile: Float = np.sqrt(np.clip(1.0 - (1.0 - np.minimum(distance, 1.0)) ** 2, 0.0, 1.0)).astype(np.float32)
    return profile * covered


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cells: int) -> Float:
    """Random field with nothing finer than ``1 / cells`` of the width, float32, mean about 0, deviation about 1."""
    grid = rng.standard_normal((cells + 3, cells + 3), dtype=np.float32)
    field = np.asarray(cv2.resize(grid, shape[::-1], interpolation=cv2.INTER_CUBIC), np.float32)
    return field * np.float32(1.4)


def lobed(x: float, y: float, radius: float, rng: np.random.Generator) -> Points:
    """Outline of a slightly irregular disc, ``(48, 2)``, in the units of the arguments."""
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    reach = np.full(48, radius)
    for waves in (2, 3, 4):
        reach += radius * rng.normal(0, 0.08) * np.cos(waves * angle + rng.uniform(0, 2 * np.pi))
    return np.column_stack([x + reach * np.cos(angle), y + reach * np.sin(angle)])


def fill_pixels(shape: tuple[int, int], *polygons: Points) -> Float:
    """Share of each pixel covered by polygons whose corners ``(x, y)`` are in pixels, float32 `shape` in [0, 1]."""
    side = max(shape)
    in_pixels = Pen(side, pose(shift=(-0.5, 0.0)))
    return in_pixels.fill(*(polygon / side for polygon in polygons))[: shape[0], : shape[1]]


def place(lungs: Mask, margin: float, rng: np.random.Generator) -> tuple[float, float]:
    """A random point ``(x, y)`` of the lungs, `margin` pixels from their border or as far in as there is."""
    depth = cv2.distanceTransform(np.pad(lungs.astype(np.uint8), 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    rows, columns = np.nonzero(depth >= min(margin, 0.8 * float(depth.max())))
    pick = int(rng.integers(len(rows)))
    return float(columns[pick]), float(rows[pick])
