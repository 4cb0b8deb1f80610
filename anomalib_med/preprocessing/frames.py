"""Frames: samples read, prepared and batched by threads, always in the order given."""

import os
from collections import OrderedDict, deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field, replace
from itertools import accumulate, groupby, islice

import numpy as np
import torch

from anomalib_med.datasets.masks import read_area
from anomalib_med.datasets.readers import read
from anomalib_med.errors import ReadError
from anomalib_med.preprocessing.context import VolumeContext
from anomalib_med.preprocessing.prepare import prepare
from anomalib_med.preprocessing.settings import Preprocessing
from anomalib_med.records import Frame, Image, Progress, Sample, silent

READ_AHEAD = 8

_Read = Future[Image | ReadError]
_Shared = OrderedDict[tuple[str, int | None], _Read]  # by file and frame


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Frames of one shape: `x`, float32 ``(B, C, H, W)`` in [0, 1] in the host's memory, and `valid`, ``(B, H, W)``."""

    x: torch.Tensor
    valid: torch.Tensor
    frames: tuple[Frame, ...]

    @property
    def patients(self) -> list[str]:
        """Whose images these are."""
        return [frame.sample.patient for frame in self.frames]

    @property
    def heights(self) -> torch.Tensor:
        """Relative heights of the slices, float32 ``(B,)``, NaN where they are not known."""
        return torch.tensor([frame.height for frame in self.frames])


@dataclass(eq=False)
class Frames:
    """Model inputs of a list of samples. They can be iterated again and again; each pass reads the files anew.

    Whoever works on the frames may report to `progress` too, under the name of another stage.
    """

    samples: Sequence[Sample]
    preprocessing: Preprocessing  # how images become inputs; its windows must be resolved
    _: KW_ONLY
    display: bool = False  # whether each frame carries its picture for the eye
    known_height: bool = False  # whether a slice fails whose height is asked for and not known
    stage: str = "reading images"
    progress: Progress = silent  # told after each image that was read or failed
    failures: dict[str, str] = field(default_factory=dict, init=False)  # why a sample was left out, by its id

    def __post_init__(self) -> None:
        self.context = VolumeContext(self.samples, self.preprocessing)

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Frame]:
        return (outcome for _, outcome in self.outcomes() if isinstance(outcome, Frame))

    def outcomes(self) -> Generator[tuple[Sample, Frame | ReadError], None, None]:
        """Every sample in order with its frame, or with the error that reading it gave."""
        pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="anomed-read")
        pending: deque[tuple[Sample, Future[Frame | ReadError]]] = deque()
        shared: _Shared = OrderedDict()  # slices that are neighbours of others
        left = iter(self.samples)
        try:
            for done in range(1, len(self) + 1):
                for sample in islice(left, READ_AHEAD - len(pending)):
                    pending.append((sample, pool.submit(self._load, sample, self._reads(sample, pool, shared))))
                sample, future = pending.popleft()
                outcome = future.result()
                if isinstance(outcome, ReadError):
                    self.failures[sample.id] = str(outcome)
                self.progress(self.stage, done, len(self))
                yield sample, outcome
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def batches(self, size: int) -> Iterator[Batch]:
        """Consecutive frames of one shape, at most `size` together."""
        for _, alike in groupby(self, key=lambda frame: frame.pixels.shape):
            while part := list(islice(alike, size)):
                yield collate(part)

    def _reads(self, sample: Sample, pool: ThreadPoolExecutor, shared: _Shared) -> list[_Read]:
        """The slice and its neighbours in 2.5-D, each file read once; empty where the sample is to be read alone."""
        if self.preprocessing.slices == 1:
            return []
        try:
            around = self.context.around(sample)
        except ReadError:  # no slice, or a file that cannot be opened: said when it is read
            return []
        reads = []
        for other in around:
            key = (str(other.path), other.frame)
            # Begun before the frame that waits for it, so no frame waits for one that cannot begin.
            if key not in shared:
                shared[key] = pool.submit(_read, other)
            shared.move_to_end(key)
            reads.append(shared[key])
        while len(shared) > READ_AHEAD + self.preprocessing.slices:
            shared.popitem(last=False)
        return reads

    def _load(self, sample: Sample, reads: Sequence[_Read]) -> Frame | ReadError:
        try:
            around = self._around(sample, reads)
            image = around[len(around) // 2]
            height = self.context.height(sample)
            if self.known_height and self.preprocessing.height != "none" and np.isnan(height):
                why = "its height is not known (no slice of a volume, or no lungs in it)"
                raise ReadError(f"{sample.id}: {why}: leave it out, or fit without height")
            own = None if self.preprocessing.valid == "all" else read_area(sample, image.shape)
            return prepare(image, self.preprocessing, display=self.display, own=own, around=around, height=height)
        except ReadError as error:
            told = str(error)
            return error if sample.id in told or str(sample.path) in told else ReadError(f"{sample.id}: {told}")

    def _around(self, sample: Sample, reads: Sequence[_Read]) -> list[Image]:
        """The image of a sample, in 2.5-D between its neighbours; for one that cannot be read the next inner one."""
        outcomes = [future.result() for future in reads] or [_read(sample)]
        middle = outcomes[len(outcomes) // 2]
        if isinstance(middle, ReadError):
            raise middle
        if not reads:
            self.context.around(sample)  # in 2.5-D it says that this is no slice
        image, half = replace(middle, sample=sample), len(outcomes) // 2
        below = accumulate(reversed(outcomes[:half]), _readable, initial=image)
        above = accumulate(outcomes[half + 1 :], _readable, initial=image)
        return [*list(below)[:0:-1], *above]


def _readable(inner: Image, outer: Image | ReadError) -> Image:
    return inner if isinstance(outer, ReadError) else outer


def _read(sample: Sample) -> Image | ReadError:
    try:
        return read(sample)
    except ReadError as error:
        return error


def collate(frames: Sequence[Frame]) -> Batch:
    """Stack frames of one shape."""
    x = torch.from_numpy(np.stack([frame.pixels for frame in frames]))
    valid = torch.from_numpy(np.stack([frame.valid for frame in frames]))
    return Batch(x, valid, tuple(frames))
