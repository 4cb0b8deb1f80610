"""How a radiograph is taken: scatter, detector response, noise, collimation and side marker."""

import cv2
import numpy as np

from anomalib_med.phantoms.drawing import Float, Mask, Pen, gaussian, pose


def expose(attenuation: Float, pen: Pen, rng: np.random.Generator) -> tuple[Float, Mask]:
    """Turn attenuation into displayed values, with the exposure, blur, noise and collimation of one acquisition.

    The attenuation, float32 ``(H, W)``, is 0 in air and about 1 through soft tissue. The values returned lie in [0, 1],
    bright is dense; the mask beside them is False outside the collimation.
    """
    size = pen.size
    grid = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    heel = np.float32(rng.normal(0, 0.05)) * grid[:, None] + np.float32(rng.normal(0, 0.05)) * grid[None, :]
    small = np.asarray(cv2.resize(attenuation, (32, 32), interpolation=cv2.INTER_AREA), np.float32)
    scatter = cv2.resize(gaussian(small, 3.0), (size, size), interpolation=cv2.INTER_LINEAR)
    share = np.float32(rng.uniform(0.1, 0.3))
    signal = pen.soften((1 - share) * attenuation + share * scatter + heel, rng.uniform(0.0012, 0.0032))
    shown = 1 - np.exp(-np.float32(rng.uniform(1.3, 2.1)) * np.maximum(signal, 0))
    shown = shown ** np.float32(rng.uniform(0.8, 1.5))
    grain = rng.standard_normal((size, size), dtype=np.float32)
    grain += gaussian(rng.standard_normal((size, size), dtype=np.float32), 0.8) * 2
    # Fewer photons reach the detector behind dense tissue: relative noise grows with attenuation.
    shown += grain * np.float32(rng.uniform(0.002, 0.005)) * np.exp(0.5 * np.minimum(signal, 1.6))
    low, high = rng.uniform(-0.04, 0.08), rng.uniform(0.88, 1.04)
    shown = (shown - np.float32(low)) / np.float32(high - low)
    open_field = _collimate(shown, pen, rng)
    _mark(shown, rng)
    return np.clip(shown, 0, 1).astype(np.float32), open_field


def _collimate(shown: Float, pen: Pen, rng: np.random.Generator) -> Mask:
    """Darken what lies outside the beam in a third of the images; returns where the beam was."""
    if rng.random() > 0.35:
        return np.ones(shown.shape, np.bool_)
    left, right, top, bottom = rng.uniform(-0.03, 0.07, 4)
    square = np.array([(left - 0.5, top), (0.5 - right, top), (0.5 - right, 1 - bottom), (left - 0.5, 1 - bottom)])
    beam = Pen(pen.size, pose(angle=rng.normal(0, 2))).fill(square)
    shown *= beam
    shown += (1 - beam) * np.float32(rng.uniform(0, 0.05))
    return beam > 0.5


def _mark(shown: Float, rng: np.random.Generator) -> None:
    """Burn in a side marker in half of the images."""
    if rng.random() > 0.5:
        return
    size = shown.shape[0]
    letter, x = ("L", rng.uniform(0.84, 0.92)) if rng.random() < 0.5 else ("R", rng.uniform(0.04, 0.1))
    where = (int(x * size), int(rng.uniform(0.07, 0.3) * size))
    stamp = np.zeros(shown.shape, np.uint8)
    scale = rng.uniform(0.4, 0.65) * size / 256
    stroke = max(1, round(1.6 * size / 256))
    cv2.putText(stamp, letter, where, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, stroke, cv2.LINE_AA)
    np.maximum(shown, stamp.astype(np.float32) * np.float32(rng.uniform(0.8, 1.0) / 255), out=shown)
