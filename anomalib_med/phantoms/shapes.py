"""Outlines ``(n, 2)`` of curves, bands, ellipses and lobed discs, as columns x and y."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]

_CIRCLE = np.array([np.cos(np.arange(48) * np.pi / 24), np.sin(np.arange(48) * np.pi / 24)])


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


def lobed(x: float, y: float, radius: float, rng: np.random.Generator) -> Points:
    """Outline of a slightly irregular disc, ``(48, 2)``, in the units of the arguments."""
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    reach = np.full(48, radius)
    for waves in (2, 3, 4):
        reach += radius * rng.normal(0, 0.08) * np.cos(waves * angle + rng.uniform(0, 2 * np.pi))
    return np.column_stack([x + reach * np.cos(angle), y + reach * np.sin(angle)])
