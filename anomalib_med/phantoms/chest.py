"""Chest radiograph phantoms: anatomy summed along the beam, then exposed, blurred, and read out with noise.

The anatomy is drawn as attenuation, structure by structure, so that ribs are seen through the heart and vessels through
ribs, as in a projection. Every phantom differs in build, breathing, pose and exposure.
"""

import numpy as np

from anomalib_med.phantoms.drawing import Float, Pen, Phantom, check_arguments, pose, rounded, smooth_noise
from anomalib_med.phantoms.exposure import expose
from anomalib_med.phantoms.shapes import Points, curve, ellipse, ribbon, spline

SIDES = (-1, 1)  # the patient's right (image left), then the patient's left


class _Build:
    """What differs from patient to patient, in anatomical coordinates."""

    def __init__(self, rng: np.random.Generator) -> None:
        dome = rng.uniform(0.64, 0.76)
        angle = dome + rng.uniform(0.07, 0.12)
        self.chest = rng.uniform(0.29, 0.36)  # half width of the rib cage
        self.fat = rng.uniform(0.02, 0.09)  # soft tissue outside the rib cage
        self.apex = rng.uniform(0.09, 0.15)  # y of the lung tops
        self.domes = (dome - rng.uniform(0.0, 0.02), dome + rng.uniform(0.0, 0.03))  # y of the diaphragm, right, left
        self.angles = (angle, angle + rng.uniform(-0.01, 0.02))  # y of the costophrenic angles
        self.heart = rng.uniform(0.85, 1.2)  # relative size of the heart
        self.lean = rng.normal(0.0, 0.008)  # sideways shift of the mediastinum by a turned patient
        self.rib_gap = rng.uniform(0.058, 0.068)
        self.rib_drop = rng.uniform(0.05, 0.13)
        self.rib_density = rng.uniform(0.08, 0.2)
        self.vessels = rng.uniform(0.7, 1.3)  # calibre and density
        self.breasts = rng.uniform(0.05, 0.2) if rng.random() < 0.4 else 0.0  # 0 for none
        self.arm_out = rng.uniform(-0.02, 0.12)


def chest_phantom(seed: int, size: int = 256) -> Phantom:
    """Draw one healthy chest radiograph, frontal view: float32 ``(size, size)`` in [0, 1], bright is dense.

    The same seed and size give the same pixels. Raises ConfigError where the seed is negative, or the size, height and
    width in pixels, is below 64.
    """
    check_arguments(seed, size)
    rng = np.random.default_rng([0xC8E57, seed])
    build = _Build(rng)
    zoom, turn = rng.uniform(0.92, 1.14), float(np.clip(rng.normal(0, 2.2), -6, 6))
    scale = (zoom * rng.uniform(0.96, 1.04), zoom * rng.uniform(0.95, 1.06))
    shift = (float(rng.normal(0, 0.02)), float(rng.normal(0.01, 0.025)))
    pen = Pen(size, pose(angle=turn, scale=scale, shift=shift))
    body = pen.fill(*_body_outlines(build))
    lungs = pen.fill(*(_lung_outline(build, side) for side in SIDES))
    centre = _mediastinum(pen, build)
    attenuation = _soft_tissue(pen, build, body, rng) + centre
    attenuation -= 0.56 * pen.soften(rounded(lungs, 0.11), 0.003) * (1 - 0.55 * np.clip(centre / 0.4, 0, 1))
    attenuation += _bones(pen, build, rng)
    attenuation += _vessels(pen, build, rng) * lungs
    attenuation += _below_diaphragm(pen, build, lungs, rng)
    np.maximum(attenuation, 0, out=attenuation)
    pixels, open_field = expose(attenuation, pen, rng)
    free = (lungs > 0.5) & (centre < 0.13) & open_field
    return Phantom(pixels, free, (body > 0.5) & open_field)


def _mirror(points: Points, side: int) -> Points:
    return np.asarray(points * np.array([side, 1]))


def _body_outlines(build: _Build) -> list[Points]:
    flank = build.chest + build.fat
    x = [0.085, 0.088, 0.115, 0.24, *(flank + step for step in (0.03, 0.07, 0.03, 0.005, -0.01, 0.01))]
    half = curve(x, [-0.3, -0.05, 0.03, 0.07, 0.115, 0.22, 0.38, 0.5, 0.8, 1.4])
    torso = np.concatenate([half, _mirror(half, -1)[::-1]])
    return [torso, *(ribbon(_arm(build, side), 0.12 + build.fat) for side in SIDES)]


def _arm(build: _Build, side: int) -> Points:
    x = build.chest + build.fat
    return _mirror(curve([x - 0.01, x + 0.055, x + 0.1 + build.arm_out, x + 0.13], [0.185, 0.35, 0.75, 1.2]), side)


def _wall(build: _Build, side: int) -> Points:
    """Outer border of one lung, from the apex to the costophrenic angle."""
    a, c, angle = build.apex, build.chest, build.angles[side > 0]
    y = [a, a + 0.03, a + 0.13, a + 0.3, 0.5 * (a + 0.3 + angle), angle]
    return curve([0.36 * c, 0.56 * c, 0.78 * c, 0.93 * c, 0.99 * c, 1.0 * c], y)


def _lung_outline(build: _Build, side: int) -> Points:
    dome, angle, c = build.domes[side > 0], build.angles[side > 0], build.chest
    floor = curve([c, 0.88 * c, 0.6 * c, 0.3 * c, 0.13 * c], [angle, dome + 0.035, dome, dome + 0.02, dome + 0.06])
    x = [0.13 * c, 0.12 * c, 0.13 * c, 0.2 * c, 0.36 * c]
    inner = curve(x, [dome + 0.06, 0.5, 0.32, build.apex + 0.05, build.apex])
    outline = np.concatenate([_wall(build, side), floor[1:], inner[1:-1]])
    return np.asarray(_mirror(outline, side) + np.array([0.5 * build.lean, 0]))


def _soft_tissue(pen: Pen, build: _Build, body: Float, rng: np.random.Generator) -> Float:
    tissue = (0.82 + 1.6 * build.fat) * rounded(body, 0.2)
    muscle = smooth_noise(rng, body.shape, 5) * np.float32(0.025) + smooth_noise(rng, body.shape, 14) * np.float32(0.01)
    tissue += muscle * body
    if build.breasts:
        y = rng.uniform(0.6, 0.72)
        for side in SIDES:
            lobe = pen.fill(ellipse(side * 0.6 * build.chest, y, 0.55 * build.chest, 0.14, angle=side * 12))
            tissue += np.float32(build.breasts) * pen.soften(rounded(lobe, 0.14), 0.006)
    scapulae = []
    for side in SIDES:
        x = build.chest - rng.uniform(0.0, 0.06)
        blade = curve([x, x + 0.09, x + 0.06, x + 0.01, x - 0.01], [0.16, 0.15, 0.28, 0.43, 0.28], closed=True)
        scapulae.append(_mirror(blade, side))
    return tissue + np.float32(0.07) * pen.soften(pen.fill(*scapulae), 0.004)


def _mediastinum(pen: Pen, build: _Build) -> Float:
    """Attenuation of heart, great vessels and trachea; positive where they hide the lung."""
    c, h, lean = build.chest / 0.33, build.heart, np.array([build.lean, 0])
    bottom = max(build.domes) + 0.05
    right, left = [-0.03 * c, -0.075 * c * h, -0.085 * c * h, -0.05 * c], [0.08 * c, 0.165 * c * h, 0.175 * c * h]
    below = [bottom + step for step in (-0.2, -0.1, 0.01, 0.03, -0.01, -0.07, -0.2)]
    heart = curve([*right, *left, 0.125 * c * h, 0.07 * c, 0.03 * c], [0.4, *below, 0.41, 0.36], closed=True)
    vessels = ribbon(spline([(0.0, 0.02), (0.0, 0.2), (0.005, 0.32), (0.01, 0.5)]), np.linspace(0.085, 0.12, 25) * c)
    knob = ellipse(0.045 * c, 0.305, 0.034 * c, 0.036)
    trunk = ellipse(0.055 * c, 0.385, 0.032 * c, 0.04, angle=-20)
    shadow = 0.34 * pen.soften(rounded(pen.fill(heart + lean), 0.09), 0.005)
    shadow += 0.2 * pen.soften(rounded(pen.fill(vessels + lean), 0.04), 0.004)
    shadow += 0.13 * pen.soften(pen.fill(knob + lean, trunk + lean), 0.004)
    hila = [ellipse(side * 0.088 * c, 0.43 - 0.012 * side, 0.022, 0.045, angle=-side * 18) + lean for side in SIDES]
    shadow += 0.1 * pen.soften(pen.fill(*hila), 0.01)
    air = [ribbon(spline([(0.0, -0.1), (-0.002, 0.15), (0.004, 0.33)]), 0.032)]
    air += [ribbon(spline([(0.002, 0.325), (side * 0.03, 0.365), (side * 0.065, 0.4)]), 0.019) for side in SIDES]
    return shadow - 0.14 * pen.soften(pen.fill(*(tube + lean for tube in air)), 0.003)


def _ribs(build: _Build, side: int, rng: np.random.Generator) -> tuple[Points, Points]:
    """Centre lines ``(n, m, 2)`` of the posterior and of the anterior arcs of one side."""
    wall = _wall(build, side)
    posterior, anterior = [], []
    for number in range(10):
        y = build.apex + 0.015 + build.rib_gap * number + rng.normal(0, 0.002)
        drop = build.rib_drop * (0.7 + 0.06 * number)
        edge = y + drop
        if edge - wall[-1, 1] > 0.05:
            break
        reach = float(np.interp(edge, wall[:, 1], wall[:, 0])) + 0.004
        posterior.append(curve([0.03, 0.3 * reach, 0.72 * reach, reach], [y, y - 0.012, y + 0.3 * drop, edge]))
        if number < 7:
            slope = 0.07 + 0.006 * number
            y_front = [edge, edge + 0.4 * slope, edge + slope, edge + slope]
            anterior.append(curve([reach, 0.93 * reach, 0.7 * reach, 0.42 * reach], y_front))
    return _mirror(np.stack(posterior), side), _mirror(np.stack(anterior), side)


def _bones(pen: Pen, build: _Build, rng: np.random.Generator) -> Float:
    lean = np.array([0.3 * build.lean, 0])
    ribs = [_ribs(build, side, rng) for side in SIDES]
    width = rng.uniform(0.021, 0.027)
    bone = np.zeros((pen.size, pen.size), np.float32)
    for arcs, calibre, share in zip(zip(*ribs, strict=True), (width, 1.15 * width), (1.0, 0.6), strict=True):
        lines = np.concatenate(arcs) + lean
        # A rib is a tube: its walls are denser in projection than its middle.
        shell, core = (pen.fill(*ribbon(lines, part * calibre)) for part in (1, 0.55))
        bone += np.float32(build.rib_density * share) * pen.soften(shell - 0.35 * core, 0.0025)
    collar = [(0.022, 0.175), (0.075, 0.165), (0.15, 0.137), (0.24, 0.13), (build.chest + 0.03, 0.137)]
    tilt = np.array([0, 0.5 * (build.apex - 0.12) + abs(rng.normal(0, 0.012))])
    collars = [_mirror(spline(collar), side) + tilt for side in SIDES]
    calibres = np.interp(np.linspace(0, 1, len(collars[0])), [0, 0.12, 0.5, 0.9, 1], [0.018, 0.03, 0.019, 0.026, 0.016])
    arms = [_arm(build, side) for side in SIDES]
    heads = [ellipse(line[0, 0], line[0, 1] + 0.005, 0.035, 0.03) for line in arms]
    outer = pen.fill(*(ribbon(line, calibres) for line in collars), *(ribbon(line, 0.04) for line in arms), *heads)
    bone += np.float32(0.13 + 0.5 * build.rib_density) * pen.soften(outer, 0.003)
    return bone + _spine(pen, build, rng)


def _spine(pen: Pen, build: _Build, rng: np.random.Generator) -> Float:
    bend = rng.normal(0, 0.008)
    line = spline([(build.lean * 0.3, -0.1), (bend, 0.35), (-bend, 0.75), (0, 1.2)])
    column = pen.fill(ribbon(line, np.linspace(0.055, 0.085, len(line))))
    gap = rng.uniform(0.05, 0.06)
    discs, pedicles = [], []
    for y in np.arange(-0.05, 1.15, gap):
        x = float(np.interp(y, line[:, 1], line[:, 0]))
        half = 0.027 + 0.014 * y
        discs.append(ellipse(x, y, half, 0.007))
        pedicles += [ellipse(x + side * 0.62 * half, y + 0.4 * gap, 0.006, 0.01) for side in SIDES]
    spine = 0.17 * column - 0.09 * pen.fill(*discs) * column + 0.06 * pen.fill(*pedicles)
    return pen.soften(spine, 0.0035)


def _vessels(pen: Pen, build: _Build, rng: np.random.Generator) -> Float:
    """Pulmonary vessels: trees that leave the hila and divide three times."""
    density = np.zeros((pen.size, pen.size), np.float32)
    c = build.chest / 0.33
    for side in SIDES:
        heading = np.deg2rad(np.linspace(-78, 78, 9) + rng.normal(0, 9, 9))
        start = np.tile([side * 0.085 * c, 0.43], (9, 1)) + rng.normal(0, 0.008, (9, 2))
        width = 0.0135 * build.vessels * rng.uniform(0.6, 1.3, 9)
        for reach, share in ((0.075, 0.1), (0.07, 0.075), (0.06, 0.055), (0.05, 0.045)):
            length = reach * rng.uniform(0.7, 1.3, len(heading))
            curl = rng.normal(0, 0.45, len(heading))
            t = np.linspace(0, 1, 6)[None, :]
            angle = heading[:, None] + curl[:, None] * t
            step = np.stack([side * c * np.cos(angle), 1.15 * np.sin(angle)], -1) * (length[:, None, None] / 5)
            line = start[:, None] + np.cumsum(step, axis=1) - step[:, :1]
            bands = ribbon(line, width[:, None] * (1 - 0.35 * t))
            density += np.float32(share * build.vessels) * pen.fill(*bands)
            start = np.repeat(line[:, -1], 2, axis=0)
            fork = np.outer(rng.uniform(0.1, 0.7, len(heading)), (-1, 1))
            heading = (angle[:, -1:] + fork).ravel()
            width = np.repeat(width * 0.66, 2) * rng.uniform(0.75, 1.1, 2 * len(width))
    haze = smooth_noise(rng, density.shape, 40) * np.float32(0.012)
    haze += smooth_noise(rng, density.shape, 9) * np.float32(0.014)
    return pen.soften(density, 0.002) + haze


def _below_diaphragm(pen: Pen, build: _Build, lungs: Float, rng: np.random.Generator) -> Float:
    """Liver and stomach: denser than the chest wall, with gas under the left dome in some."""
    c = build.chest
    (right, left), (right_angle, left_angle) = build.domes, build.angles
    outline = curve([-c, -0.6 * c, 0, 0.6 * c, c], [right_angle, right, right + 0.06, left, left_angle])
    box = np.concatenate([outline, [(c, 1.4), (-c, 1.4)]])
    organs = np.float32(0.2) * pen.soften(pen.fill(box), 0.008) * (1 - lungs)
    if rng.random() < 0.5:
        wide, high = rng.uniform(0.03, 0.075), rng.uniform(0.018, 0.04)
        x, y = rng.uniform(0.35, 0.6) * c, build.domes[1] + 0.03 + high
        bubble = ellipse(x, y, wide, high, angle=rng.uniform(-15, 15))
        organs -= np.float32(rng.uniform(0.12, 0.32)) * pen.soften(pen.fill(bubble), 0.006)
    for _ in range(int(rng.integers(0, 4))):
        x, y = rng.uniform(-0.1, 0.9) * c, rng.uniform(0.88, 1.05)
        loop = ellipse(x, y, rng.uniform(0.02, 0.05), rng.uniform(0.012, 0.03))
        organs -= np.float32(rng.uniform(0.05, 0.16)) * pen.soften(pen.fill(loop), 0.008)
    return organs
