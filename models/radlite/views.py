"""What radlite looks at while it learns: crops of medical images, phantoms and textures, disturbed in many ways.

View i depends on the seed and on i alone, so views can be made in any order and by any number of processes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from anomalib_med.phantoms import (
    add_ct_lesion,
    add_lesion,
    chest_phantom,
    ct_slice_phantom,
    digit_anatomy,
)
from anomalib_med.preprocessing.prepare import resize

PHANTOMS = 240  # of each kind
FIRST_PHANTOM = 70_000_000  # no data set of phantoms comes near these seeds
CHEST_LESIONS = ("nodule", "opacity", "effusion", "pneumothorax", "foreign")
CT_LESIONS = ("nodule", "ground_glass")


@dataclass(frozen=True)
class Source:
    """Images to be drawn from: uint8 ``(H, W)`` each; none of them where textures are drawn anew for every view."""

    group: str
    weight: float
    images: tuple[np.ndarray, ...]


def load_source(root: Path, group: str, weight: float, paths: str = "", share: float = 1.0) -> Source:
    """Read the images of a source, or draw its phantoms.

    Raises
    ------
    FileNotFoundError
        No file matches.
    """
    if group == "texture":
        return Source(group, weight, ())
    if group == "phantom":
        return Source(group, weight, tuple(_phantoms()))
    files = sorted(root.glob(paths))
    files = files[: math.ceil(share * len(files))]
    images = [cv2.imread(str(file), cv2.IMREAD_GRAYSCALE) for file in files]
    if not images or any(image is None for image in images):
        raise FileNotFoundError(f"{root / paths}: no images there, or some that cannot be read")
    return Source(group, weight, tuple(images))


def view(sources: Sequence[Source], seed: int, index: int, size: int, surround: float = 0.0) -> np.ndarray:
    """One view, uint8 ``(size, size)``; a share `surround` of them lies on an empty background."""
    rng = np.random.default_rng([seed, index])
    image = _crop(_draw(sources, rng), size, rng)
    if rng.random() < 0.25:
        other = _crop(_draw(sources, rng), size, rng)
        image = _paste(image, other, rng)
    image = _expose(image, rng)
    return _surround(image, rng) if surround and rng.random() < surround else image


def _draw(sources: Sequence[Source], rng: np.random.Generator) -> np.ndarray:
    weights = np.array([source.weight for source in sources])
    source = sources[int(rng.choice(len(sources), p=weights / weights.sum()))]
    if source.images:
        return source.images[int(rng.integers(len(source.images)))]
    return texture(rng, 288)


def _crop(image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A window of the image, mirrored, turned and stretched a little, resized to a square. float32 in [0, 1]."""
    height, width = image.shape
    side = min(height, width)
    # From the whole image down to a window that is shown at about its own resolution.
    least = min(1.0, max(0.3, 0.7 * size / side))
    scale = rng.uniform(least, 1.0) if rng.random() < 0.6 else 1.0
    rows = max(8, round(height * scale * rng.uniform(0.9, 1.0)))
    columns = max(8, round(width * scale * rng.uniform(0.9, 1.0)))
    top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    window = image[top : top + rows, left : left + columns].astype(np.float32) / 255
    window = resize(window, (size, size))
    if rng.random() < 0.5:
        window = window[:, ::-1]
    if rng.random() < 0.1:
        window = np.rot90(window, int(rng.integers(1, 4)))
    if rng.random() < 0.3:
        turn = cv2.getRotationMatrix2D((size / 2, size / 2), rng.uniform(-15, 15), rng.uniform(0.9, 1.2))
        window = cv2.warpAffine(np.ascontiguousarray(window), turn, (size, size), borderMode=cv2.BORDER_REFLECT_101)
    return np.ascontiguousarray(window)


def _paste(image: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Put a soft- or sharp-edged piece of another view into this one, so that the odd is met while learning."""
    size = len(image)
    mask = np.zeros((size, size), np.float32)
    for _ in range(int(rng.integers(1, 4))):
        centre = tuple(int(v) for v in rng.integers(0, size, 2))
        axes = tuple(int(v) for v in rng.integers(4, size // 3, 2))
        if rng.random() < 0.7:
            cv2.ellipse(mask, centre, axes, float(rng.uniform(0, 180)), 0, 360, 1.0, -1)
        else:
            cv2.rectangle(mask, centre, (centre[0] + axes[0], centre[1] + axes[1]), 1.0, -1)
    if rng.random() < 0.6:
        mask = cv2.GaussianBlur(mask, (0, 0), float(rng.uniform(1, 8)))
    mask *= float(rng.uniform(0.3, 1.0))
    if rng.random() < 0.5:
        level = float(rng.uniform(0, 1)) if rng.random() < 0.5 else image.mean() + float(rng.uniform(-0.4, 0.4))
        other = np.clip(level + 0.3 * (other - other.mean()), 0, 1)
    return image * (1 - mask) + other * mask


def _expose(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Contrast, brightness, gamma, blur and noise; uint8 out."""
    if rng.random() < 0.7:
        image = np.clip(image, 0, 1) ** float(np.exp(rng.uniform(-0.5, 0.5)))
    if rng.random() < 0.7:
        middle = float(image.mean())
        image = middle + (image - middle) * float(rng.uniform(0.5, 1.5)) + float(rng.uniform(-0.15, 0.15))
    if rng.random() < 0.03:
        image = 1 - image
    if rng.random() < 0.15:
        image = cv2.GaussianBlur(image.astype(np.float32), (0, 0), float(rng.uniform(0.4, 1.8)))
    if rng.random() < 0.3:
        image = image + rng.normal(0, float(rng.uniform(0.005, 0.06)), image.shape)
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _surround(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shrink the image, cut it to a round or angular outline, and put it on one level of grey, mostly black."""
    size = len(image)
    rows, columns = (int(v) for v in size * rng.uniform(0.4, 1.0, 2))
    level = 0 if rng.random() < 0.7 else int(rng.integers(0, 256))
    canvas = np.full((size, size), level, np.uint8)
    top, left = int(rng.integers(size - rows + 1)), int(rng.integers(size - columns + 1))
    small = np.round(resize(image, (rows, columns))).astype(np.uint8)
    outline = np.ones((rows, columns), np.uint8)
    if rng.random() < 0.8:
        angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(5, 40))))
        radii = rng.uniform(0.75, 1.0, len(angles))[:, None]
        points = (0.5 + 0.5 * radii * np.stack([np.cos(angles), np.sin(angles)], 1)) * (columns, rows)
        outline = np.zeros((rows, columns), np.uint8)
        cv2.fillPoly(outline, [points.astype(np.int32)], 1)
    place = canvas[top : top + rows, left : left + columns]
    place[outline > 0] = small[outline > 0]
    return canvas


def texture(rng: np.random.Generator, size: int) -> np.ndarray:
    """Noise of a random spectrum, or shapes that cover one another ("dead leaves"), filled with it. uint8."""
    image = _noise(rng, size)
    if rng.random() < 0.6:
        grain = _noise(rng, size)
        for radius in np.sort(size * 0.3 * rng.random(int(rng.integers(10, 120))) ** 3 + 2)[::-1]:
            centre = tuple(int(v) for v in rng.integers(0, size, 2))
            mask = np.zeros((size, size), np.uint8)
            axes = (int(radius) + 1, int(radius * rng.uniform(0.3, 1)) + 1)
            if rng.random() < 0.6:
                cv2.ellipse(mask, centre, axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
            else:
                corners = np.array(centre) + rng.normal(0, radius, (int(rng.integers(3, 6)), 2))
                cv2.fillPoly(mask, [corners.astype(np.int32)], 1)
            inside = mask > 0
            image[inside] = rng.random() + 0.3 * rng.random() * (grain[inside] - 0.5)
    if rng.random() < 0.3:
        for _ in range(int(rng.integers(1, 15))):
            ends = [tuple(int(v) for v in rng.integers(0, size, 2)) for _ in range(2)]
            cv2.line(image, ends[0], ends[1], float(rng.random()), int(rng.integers(1, 6)), cv2.LINE_AA)
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _noise(rng: np.random.Generator, size: int) -> np.ndarray:
    """Gaussian noise whose amplitude falls with a random power of the frequency, in a random direction more."""
    frequency = np.fft.fftfreq(size)
    across, along = np.meshgrid(frequency, frequency)
    angle, stretch = rng.uniform(0, np.pi), float(np.exp(rng.uniform(0, 1.5)))
    u = (across * np.cos(angle) + along * np.sin(angle)) * stretch
    v = -across * np.sin(angle) + along * np.cos(angle)
    amplitude = 1 / np.maximum(np.hypot(u, v), 1 / size) ** rng.uniform(0.5, 2.2)
    spectrum = np.fft.fft2(rng.normal(size=(size, size))) * amplitude
    image = np.fft.ifft2(spectrum).real
    low, high = np.percentile(image, (1, 99))
    return np.clip((image - low) / (high - low), 0, 1).astype(np.float32)


def _phantoms() -> list[np.ndarray]:
    """Chest radiographs, CT slices and grids of digits; half of them with a lesion."""
    images = []
    for i in range(PHANTOMS):
        seed = FIRST_PHANTOM + i
        rng = np.random.default_rng(seed)
        chest, slice_ = chest_phantom(seed, 288), ct_slice_phantom(seed, 288)
        pixels, hounsfield = chest.pixels, slice_.pixels
        if i % 2:
            pixels, _ = add_lesion(pixels, chest.lungs, CHEST_LESIONS[i // 2 % len(CHEST_LESIONS)], rng)
            hounsfield, _ = add_ct_lesion(hounsfield, slice_.lungs, CT_LESIONS[i // 2 % len(CT_LESIONS)], rng)
        low, high = (-1350, 150) if rng.random() < 0.7 else (-160, 240)
        images += [pixels, (hounsfield - low) / (high - low)]
        if i % 4 == 0:
            images.append(digit_anatomy(seed)[0])
    return [np.round(255 * np.clip(image, 0, 1)).astype(np.uint8) for image in images]
