"""What the volume of a slice says of it: its relative height, and the slices beside it."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from threading import RLock
from typing import NamedTuple

import numpy as np

from anomalib_med.datasets.readers import header, read
from anomalib_med.datasets.scans import along_normal, slices_by_volume, volumes_of
from anomalib_med.errors import ReadError
from anomalib_med.preprocessing.lungs import lung_field
from anomalib_med.preprocessing.prepare import is_hounsfield, shrunk, spacing_at
from anomalib_med.preprocessing.settings import Preprocessing
from anomalib_med.records import Sample, Volume

LOOKED_AT = 5.0  # mm between the slices that the ends of the lungs are sought in
MOST_LOOKED_AT = 200  # slices of a volume
LOOKED_AT_SIDE = 192  # pixels
FEWEST = 3  # of these slices in a row must show lung, one missed among them allowed
FARTHEST = 1.0  # heights below -1 and above 2 are cut: far from the lungs all slices are alike


class _Stack(NamedTuple):
    """A volume: all slices from the feet to the head, their positions along it (mm where known), the row of each
    slice, and the positions that heights run between, which are equal where they are not known.
    """

    slices: list[Sample]
    at: np.ndarray
    rows: dict[str | int, int]
    ends: tuple[float, float]


class VolumeContext:
    """Looks up what the volumes among samples say of their slices; a volume is looked at once, when first asked for.

    A volume in one file has all frames of that file, whichever of them are among the samples; a DICOM series has the
    slices that are among them. The `height` and `slices` of the settings say what is asked for.
    """

    def __init__(self, samples: Sequence[Sample], settings: Preprocessing) -> None:
        self.settings = settings
        self._groups = slices_by_volume(samples)
        self._stacks: dict[str, _Stack] = {}
        self._lock = RLock()  # frames are made by several threads

    def knows(self, sample: Sample) -> bool:
        """Whether a sample is a slice of one of the volumes."""
        return sample.volume in self._groups and not sample.aside

    def height(self, sample: Sample) -> float:
        """Relative height of a slice, NaN where it is not known.

        "volume" counts from 0, the lowest slice, to 1; "lung" counts from 0, the lowest slice with a lung field, to 1,
        the highest, and goes below 0 and above 1 beyond them. Volumes of other planes are measured along their normal.
        """
        if self.settings.height == "none" or not self.knows(sample):
            return float("nan")
        stack = self._stack(sample.volume)
        low, high = stack.ends
        if low == high:
            return float("nan")
        height = (float(stack.at[stack.rows[_key(sample)]]) - low) / (high - low)
        return min(max(height, -FARTHEST), 1 + FARTHEST)

    def around(self, sample: Sample) -> list[Sample]:
        """The slice and its neighbours, `settings.slices` of them from the feet to the head.

        Where the volume ends or a slice is missing, the last one before it is repeated. Raises ReadError where the
        sample is no slice of a volume.
        """
        count = self.settings.slices
        if count == 1:
            return [sample]
        if not self.knows(sample):
            wanted = f"the model looks at {count} neighbouring slices of a volume: fit without slices"
            raise ReadError(f"{sample.id}: a single image, and {wanted}")
        slices, at, known, _ = self._stack(sample.volume)
        step = float(np.median(np.diff(at))) if len(at) > 1 else 0.0
        first = last = known[_key(sample)]
        rows = [first]
        for _ in range(count // 2):
            if first > 0 and at[first] - at[first - 1] < 1.5 * step:
                first -= 1
            if last + 1 < len(at) and at[last + 1] - at[last] < 1.5 * step:
                last += 1
            rows = [first, *rows, last]
        return [slices[row] for row in rows]

    def _stack(self, name: str) -> _Stack:
        with self._lock:
            if name not in self._stacks:
                slices, at = _sorted(name, self._groups[name])
                rows = {_key(sample): row for row, sample in enumerate(slices)}
                self._stacks[name] = _Stack(slices, at, rows, self._ends(slices, at))
            return self._stacks[name]

    def _ends(self, slices: list[Sample], at: np.ndarray) -> tuple[float, float]:
        """Positions of the lowest and the highest slice of the volume, or of the lungs; equal where there are none."""
        low, high = float(at[0]), float(at[-1])
        if self.settings.height != "lung":
            return low, high
        step = max(LOOKED_AT, (high - low) / MOST_LOOKED_AT)
        chosen = np.unique(np.searchsorted(at, np.arange(low, high + step / 2, step)))
        chosen = chosen[chosen < len(at)]
        shown = [i for i, row in enumerate(chosen) if self._shows_lung(slices[row])]
        longest = max(np.split(np.array(shown, int), np.flatnonzero(np.diff(shown) > 2) + 1), key=len)
        if len(longest) < FEWEST:
            return low, low
        return float(at[chosen[longest[0]]]), float(at[chosen[longest[-1]]])

    def _shows_lung(self, sample: Sample) -> bool:
        with suppress(ReadError):  # said when the slice itself is read
            image = read(sample)
            if image.pixels.ndim == 2:
                small, hounsfield = shrunk(image.pixels, LOOKED_AT_SIDE), is_hounsfield(image, self.settings)
                return lung_field(small, spacing_at(image, small.shape), hounsfield=hounsfield)[0] is not None
        return False


def _key(sample: Sample) -> str | int:
    return sample.id if sample.frame is None else sample.frame


def _sorted(name: str, samples: list[Sample]) -> tuple[list[Sample], np.ndarray]:
    """All slices of a volume from the feet to the head, and their positions."""
    first = samples[0]
    if first.frame is not None and first.path is not None:
        samples = [replace(first, id=f"{name}#{k}", frame=k) for k in range(header(first.path).frames)]
    else:
        samples = sorted(samples, key=along_normal)
    (volume,) = volumes_of(samples)
    at = _positions(volume)
    return (samples, at) if at[0] <= at[-1] else (samples[::-1], -at[::-1])


def _positions(volume: Volume) -> np.ndarray:
    """Position of each slice along the volume, growing to the head: mm, or numbers where places are not known."""
    if volume.places is None or len(volume.places) < 2:
        return np.array(volume.slots, float)
    way = volume.places[-1] - volume.places[0]
    mm: np.ndarray = (volume.places - volume.places[0]) @ (way / np.linalg.norm(way))
    axis = int(np.argmax(np.abs(way)))
    return mm if axis != 2 or way[2] > 0 else -mm
