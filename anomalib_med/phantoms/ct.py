"""CT-like chest slices in Hounsfield units."""

import numpy as np

from anomalib_med.phantoms.chest import SIDES
from anomalib_med.phantoms.drawing import Float, Pen, Phantom, check_arguments, gaussian, pose, smooth_noise
from anomalib_med.phantoms.shapes import Points, curve, ellipse, ribbon, spline

AIR, FAT, MUSCLE, BONE = -1000.0, -100.0, 50.0, 550.0
HU_RANGE = (-1024.0, 3071.0)


def ct_slice_phantom(seed: int, size: int = 256) -> Phantom:
    """Draw one healthy axial chest slice, seen from the feet, lungs between the aortic arch and the diaphragm.

    The pixels are float32 ``(size, size)`` in whole Hounsfield units from -1024 to 3071. Arguments and errors are as
    for `chest_phantom`.
    """
    check_arguments(seed, size)
    rng = np.random.default_rng([0xC7, seed])
    zoom = rng.uniform(0.9, 1.1)
    shift = (float(rng.normal(0, 0.015)), float(rng.normal(0, 0.02)))
    pen = Pen(size, pose(angle=float(rng.normal(0, 3)), scale=(zoom, zoom * rng.uniform(0.9, 1.08)), shift=shift))
    level = rng.uniform(0, 1)  # 0 at the aortic arch, 1 at the heart
    wide, deep, fat = rng.uniform(0.4, 0.45), rng.uniform(0.29, 0.34), rng.uniform(0.012, 0.05)
    hu = np.full((size, size), AIR, np.float32)
    body = pen.fill(_round_box(wide, deep))
    table = curve([-0.45, -0.25, 0, 0.25, 0.45], [0.83, 0.865, 0.88, 0.865, 0.83])
    _paint(hu, pen.fill(ribbon(table, 0.012)), -300.0)
    _paint(hu, body, FAT)
    _paint(hu, pen.fill(_round_box(wide - fat, deep - fat)), MUSCLE)
    hu += smooth_noise(rng, hu.shape, 12) * np.float32(14) * body
    inner = (wide - fat - 0.045, deep - fat - 0.035)
    lungs = pen.fill(*(_lung(inner, side, level, rng) for side in SIDES))
    parenchyma = rng.uniform(-880, -800) + 35 * (np.linspace(-1, 1, size)[:, None])
    _paint(hu, lungs, (parenchyma + 14 * smooth_noise(rng, hu.shape, 24)).astype(np.float32))
    _paint(hu, _vessels(pen, inner, rng) * lungs, 20.0)
    centre = _mediastinum(pen, hu, inner, level, rng)
    _skeleton(pen, hu, inner, rng)
    hu = pen.soften(hu, rng.uniform(0.0015, 0.003))
    grain = rng.standard_normal(hu.shape, dtype=np.float32)
    hu += (grain - gaussian(grain, 2.0)) * np.float32(rng.uniform(10, 28))
    hu = np.clip(np.round(hu), *HU_RANGE).astype(np.float32)
    return Phantom(hu, (lungs > 0.5) & (centre < 0.5), body > 0.5)


def _paint(hu: Float, covered: Float, value: float | Float) -> None:
    """Put a tissue where `covered` says, with partial volume at its edge."""
    hu += covered * (np.asarray(value, np.float32) - hu)


def _round_box(half_width: float, half_height: float) -> Points:
    """Cross-section of a trunk: between an ellipse and a rectangle."""
    t = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    x = np.sign(np.cos(t)) * np.abs(np.cos(t)) ** 0.8 * half_width
    y = np.sign(np.sin(t)) * np.abs(np.sin(t)) ** 0.8 * half_height
    return np.column_stack([x, y + 0.47])


def _lung(inner: tuple[float, float], side: int, level: float, rng: np.random.Generator) -> Points:
    w, d = inner
    heart = 0.1 * level * (1.5 if side > 0 else 0.7)
    x = np.array([0.12 + 0.3 * heart, 0.45, 0.85, 1.0, 0.92, 0.6, 0.32, 0.25, 0.2 + 2.2 * heart, 0.14 + 2.5 * heart])
    y = np.array([-0.8, -0.97, -0.68, 0.0, 0.6, 0.93, 0.72, 0.3, 0.02, -0.42])
    knots = np.column_stack([side * w * x, d * y + 0.47]) + rng.normal(0, 0.005, (10, 2))
    return spline(knots, closed=True)


def _vessels(pen: Pen, inner: tuple[float, float], rng: np.random.Generator) -> Float:
    """Vessels that run in the slice, and round cuts through those that cross it."""
    shapes: list[Points] = []
    for side in SIDES:
        for heading in np.deg2rad(np.linspace(-75, 75, 6) + rng.normal(0, 9, 6)):
            length, bend = rng.uniform(0.06, 0.15), rng.normal(0, 0.7)
            t = np.linspace(0, 1, 5)
            along = np.column_stack([side * np.cos(heading + bend * t), np.sin(heading + bend * t)]) * (length / 4)
            line = np.array([side * 0.3 * inner[0], 0.47]) + np.cumsum(along, axis=0)
            shapes.append(ribbon(line, np.linspace(0.016, 0.004, 5) * rng.uniform(0.6, 1.2)))
    count = int(rng.integers(35, 70))
    places = np.column_stack([rng.uniform(-1, 1, count) * inner[0], 0.47 + rng.uniform(-0.9, 0.9, count) * inner[1]])
    for x, y in places:
        radius = rng.uniform(0.002, 0.006)
        shapes.append(ellipse(x, y, radius, radius * rng.uniform(1, 2.2), angle=rng.uniform(0, 180)))
    return pen.fill(*shapes)


def _mediastinum(pen: Pen, hu: Float, inner: tuple[float, float], level: float, rng: np.random.Generator) -> Float:
    w, d = inner
    x, front = [-0.2 * w, 0.2 * w, 0.24 * w, 0.2 * w, -0.2 * w, -0.24 * w], -0.75 * d + 0.47
    fat = pen.fill(curve(x, [front, front, 0.5, 0.62, 0.62, 0.47], closed=True))
    _paint(hu, fat, -60.0)
    blood = rng.uniform(35, 60) + (120 if rng.random() < 0.5 else 0)  # half of the scans with contrast medium
    grown = 0.6 + 0.6 * level
    heart = ellipse(0.1 * w * level, 0.42 + 0.02 * level, 0.3 * w * grown, 0.3 * d * grown + 0.02, angle=25)
    aorta = ellipse(0.13 * w, 0.47 + 0.45 * d, 0.034, 0.036)
    cava = ellipse(-0.17 * w, 0.4, 0.024, 0.028)
    hila = [ellipse(side * 0.26 * w, 0.475, 0.035, 0.022, angle=side * 20) for side in SIDES]
    vessels = pen.fill(heart, aorta, cava, *hila)
    _paint(hu, vessels, float(blood))
    split = 0.03 + 0.05 * level
    _paint(hu, pen.fill(*(ellipse(side * split, 0.47 + 0.1 * d, 0.016, 0.019) for side in SIDES)), -950.0)  # bronchi
    _paint(hu, pen.fill(ellipse(0.03, 0.47 + 0.32 * d, 0.014, 0.011)), 35.0)  # oesophagus
    return np.maximum(fat, vessels)


def _skeleton(pen: Pen, hu: Float, inner: tuple[float, float], rng: np.random.Generator) -> None:
    w, d = inner
    y = 0.47 + 0.72 * d
    transverse = [ribbon(curve([0, s * 0.06, s * 0.1], [y + 0.03, y + 0.05, y + 0.045]), 0.022) for s in SIDES]
    _paint(hu, pen.fill(*transverse), 350.0)
    _paint(hu, pen.fill(ribbon(spline([(0, y + 0.05), (0, y + 0.1)]), 0.02)), 350.0)
    _paint(hu, pen.fill(ellipse(0, y, 0.052, 0.044)), BONE)
    _paint(hu, pen.fill(ellipse(0, y, 0.044, 0.036)), np.float32(220) + 60 * smooth_noise(rng, hu.shape, 60))
    _paint(hu, pen.fill(ellipse(0, y + 0.052, 0.02, 0.016)), 25.0)
    _paint(hu, pen.fill(ellipse(0, 0.47 - 0.98 * d, 0.06, 0.014)), 400.0)
    turn = rng.uniform(0, 0.3)
    shells, cores = [], []
    for side in SIDES:
        for angle in np.arange(-1.15, 1.2, 0.42) + turn * 0.4:
            x, top = side * (w + 0.022) * np.cos(angle), 0.47 + (d + 0.02) * np.sin(angle)
            lean = np.rad2deg(np.arctan2(d * np.cos(angle), -side * w * np.sin(angle)))
            shells.append(ellipse(x, top, 0.036, 0.013, angle=lean))
            cores.append(ellipse(x, top, 0.028, 0.006, angle=lean))
    _paint(hu, pen.fill(*shells), BONE)
    _paint(hu, pen.fill(*cores), 180.0)
