"""What the volume of a slice says of it: its relative height, and the slices beside it."""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from threading import RLock

import numpy as np

from anomalib_med.datasets.readers import header, read
from anomalib_med.datasets.scans import along_normal, slices_by_volume, volumes_of
from anomalib_med.errors import ReadError
from anomalib_med.preprocessing.lungs import lung_field
from anomalib_med.preprocessing.prepare import is_hounsfield, resize
from anomalib_med.preprocessing.settings import Preprocessing
from anomalib_med.records import Sample, Volume

LOOKED_AT = 5.0  # mm between the slices that the ends of the lungs are sought in
MOST_LOOKED_AT = 200  # slices of a volume
LOOKED_AT_SIDE = 192  # pixels
FEWEST = 3  # of these slices in a row must show lung, one missed among them allowed
FARTHEST = 1.0  # heights below -1 and above 2 are cut: far from the lungs all is alike


@dataclasses.dataclass(eq=False)
class _Stack:
    """All slices of a volume, from the feet to the head, their ids and where they lie along it (mm where known)."""

    slices: list[Sample]
    at: np.ndarray

    def row(self, sample: Sample) -> int:
        """Which of the slices a sample is."""
        return self._rows[_key(sample)]

    @cached_property
    def _rows(self) -> dict[str | int, int]:
        return {_key(sample): row for row, sample in enumerate(self.slices)}


class VolumeContext:
    """Looks up what the volumes among samples say of their slices; a volume is looked at once, when first asked for.

    A volume in one file is all of that file, whichever of its frames are among the samples; a DICOM series is what of
    it is among them.

    Parameters
    ----------
    samples
        The slices, in any order, and other images.
    settings
        `height` and `slices` are what is asked for.
    """

    def __init__(self, samples: Sequence[Sample], settings: Preprocessing) -> None:
        self.settings = settings
        self._groups = slices_by_volume(samples)
        self._stacks: dict[str, _Stack] = {}
        self._ends: dict[str, tuple[float, float] | None] = {}
        self._lock = RLock()  # frames are made by several threads

    def knows(self, sample: Sample) -> bool:
        """Whether a sample is a slice of one of the volumes."""
        return sample.volume in self._groups and not sample.aside

    def height(self, sample: Sample) -> float:
        """Relative height of a slice, NaN where it is not known.

        Of the volume: from 0, its lowest slice, to 1. Of the lungs: from 0, the lowest slice with a lung field, to 1,
        the highest; beyond them below 0 and above 1. Of volumes in other planes along the slice normal.
        """
        if self.settings.height == "none" or not self.knows(sample):
            return float("nan")
        name = sample.volume
        stack = self._stack(name)
        with self._lock:
            if name not in self._ends:
                lungs = self.settings.height == "lung"
                self._ends[name] = self._lungs(stack) if lungs else (float(stack.at[0]), float(stack.at[-1]))
            ends = self._ends[name]
        if ends is None or ends[0] == ends[1]:
            return float("nan")
        height = (float(stack.at[stack.row(sample)]) - ends[0]) / (ends[1] - ends[0])
        return min(max(height, -FARTHEST), 1 + FARTHEST)

    def around(self, sample: Sample) -> list[Sample]:
        """The slice and its neighbours, `settings.slices` of them from the feet to the head.

        Where the volume ends or a slice is missing, the last one before stands again.

        Raises
        ------
        ReadError
            The sample is no slice of a volume.
        """
        count = self.settings.slices
        if count == 1:
            return [sample]
        if not self.knows(sample):
            raise ReadError(
                f"{sample.id}: a single image, and the model looks at {count} neighbouring slices of a volume: "
                "fit without slices"
            )
        stack = self._stack(sample.volume)
        step = float(np.median(np.diff(stack.at))) if len(stack.at) > 1 else 0.0
        first = last = stack.row(sample)
        rows = [first]
        for _ in range(count // 2):
            if first > 0 and stack.at[first] - stack.at[first - 1] < 1.5 * step:
                first -= 1
            if last + 1 < len(stack.at) and stack.at[last + 1] - stack.at[last] < 1.5 * step:
                last += 1
            rows = [first, *rows, last]
        return [stack.slices[row] for row in rows]

    def _stack(self, name: str) -> _Stack:
        with self._lock:
            if name not in self._stacks:
                self._stacks[name] = _stack(name, self._groups[name])
            return self._stacks[name]

    def _lungs(self, stack: _Stack) -> tuple[float, float] | None:
        """Where the lungs begin and end, or None where they are not found."""
        step = max(LOOKED_AT, float(stack.at[-1] - stack.at[0]) / MOST_LOOKED_AT)
        chosen = np.unique(np.searchsorted(stack.at, np.arange(stack.at[0], stack.at[-1] + step / 2, step)))
        chosen = chosen[chosen < len(stack.at)]
        shown = [i for i, row in enumerate(chosen) if self._shows_lung(stack.slices[row])]
        runs = np.split(np.array(shown, int), np.flatnonzero(np.diff(shown) > 2) + 1)
        longest = max(runs, key=len)
        if len(longest) < FEWEST:
            return None
        first, last = (float(stack.at[chosen[i]]) for i in (longest[0], longest[-1]))
        return first, last

    def _shows_lung(self, sample: Sample) -> bool:
        try:
            image = read(sample)
        except ReadError:
            return False  # said when the slice itself is read
        if image.pixels.ndim != 2:
            return False
        scale = min(1.0, LOOKED_AT_SIDE / max(image.shape))
        small = resize(image.pixels, (max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale))))
        spacing = image.spacing and (
            image.spacing[0] * image.shape[0] / small.shape[0],
            image.spacing[1] * image.shape[1] / small.shape[1],
        )
        return lung_field(small, spacing, hounsfield=is_hounsfield(image, self.settings))[0] is not None


def _key(sample: Sample) -> str | int:
    return sample.id if sample.frame is None else sample.frame


def _stack(name: str, samples: list[Sample]) -> _Stack:
    first = samples[0]
    if first.frame is not None and first.path is not None:
        count = header(first.path).frames
        samples = [dataclasses.replace(first, id=f"{name}#{k}", frame=k) for k in range(count)]
    else:
        samples = sorted(samples, key=along_normal)
    (volume,) = volumes_of(samples)
    at = _positions(volume)
    return _Stack(samples, at) if at[0] <= at[-1] else _Stack(samples[::-1], -at[::-1])


def _positions(volume: Volume) -> np.ndarray:
    """Of each slice along the volume, growing to the head: mm, or numbers where places are not known."""
    if volume.places is None or len(volume.places) < 2:
        return np.array(volume.slots, float)
    way = volume.places[-1] - volume.places[0]
    mm: np.ndarray = (volume.places - volume.places[0]) @ (way / np.linalg.norm(way))
    axis = int(np.argmax(np.abs(way)))
    return mm if axis != 2 or way[2] > 0 else -mm
