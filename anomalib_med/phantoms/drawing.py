"""Anti-aliased shapes and smooth random fields: what the phantoms are drawn with.

Shapes are given in *anatomical coordinates*: x from -0.5 to 0.5 with 0 on the midline, y from 0 (top) to 1 (bottom) of
a square image. Image left is the patient's right, as radiographs and axial slices are shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from anomalib_med.errors import ConfigError
from anomalib_med.phantoms.shapes import Points

Float = NDArray[np.float32]
Mask = NDArray[np.bool_]

MIN_SIZE = 64  # pixels
_SUPERSAMPLING = 2
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
        for polygon in polygons:  # one call for all of them would leave holes where two overlap
            corners = (polygon @ self.pose[:, :2].T + self.pose[:, 2]) * side - 0.5
            cv2.fillPoly(canvas, [np.round(corners * (1 << _SHIFT)).astype(np.int32)], 255, cv2.LINE_AA, _SHIFT)
        covered = cv2.resize(canvas, (self.size, self.size), interpolation=cv2.INTER_AREA)
        return covered.astype(np.float32) * np.float32(1 / 255)

    def soften(self, image: Float, sigma: float) -> Float:
        """Gaussian blur with `sigma` as a share of the image width."""
        return gaussian(image, sigma * self.size)


def check_arguments(seed: int, size: int = MIN_SIZE) -> None:
    """Raise ConfigError where the seed is negative or the size below 64 pixels."""
    if seed < 0:
        raise ConfigError(f"seed: {seed} is negative; give 0 or more")
    if size < MIN_SIZE:
        raise ConfigError(f"size: {size} pixels are too few to draw anatomy; give {MIN_SIZE} or more")


def check_kinds(kinds: Sequence[str], known: Sequence[str]) -> None:
    """Raise ConfigError where `kinds` is empty or holds one that is not known."""
    unknown = [kind for kind in kinds if kind not in known]
    if unknown or not kinds:
        raise ConfigError(f"kinds: {', '.join(unknown) or 'none given'}; choose from {', '.join(known)}")


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
