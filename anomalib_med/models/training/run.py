"""What a training is given from outside, and what it tells: checkpoint, choice of an epoch, progress."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from pydantic import JsonValue

from anomalib_med.models.base import Detector
from anomalib_med.preprocessing import Preprocessing
from anomalib_med.records import Progress, Sample, silent

Description = Mapping[str, JsonValue]


class Checkpoint(Protocol):
    """Keeps the state of an unfinished training, see :class:`anomalib_med.checkpoints.CheckpointFile`."""

    def read(self) -> tuple[dict[str, torch.Tensor], dict[str, JsonValue]] | None:
        """The tensors and the description that were written last, or None."""

    def write(self, tensors: Mapping[str, torch.Tensor], description: Description) -> None:
        """Replace what was written before."""


@dataclass(frozen=True)
class Selection:
    """Keep the weights of the epoch with the highest value, the first of equals, in place of the last ones.

    A training goes the same way with it and without; only what is kept of it differs.
    """

    images: str
    """What tells the images that `value` looks at from others: an interrupted training continues with the same ones."""
    value: Callable[[], float]
    """Called after each epoch and at the end of the training, with the detector ready to score; higher is better."""


class EpochChoice(Protocol):
    """Chooses which epoch of a training is kept: the one with the highest value."""

    @property
    def name(self) -> str:
        """Name of the value, for the record of the training."""

    @property
    def images(self) -> Sequence[Sample]:
        """Images that it looks at beside the normals."""

    def value(self, detector: Detector, preprocessing: Preprocessing, normals: Sequence[Sample]) -> float:
        """Value of the epoch that a detector has just finished, from the normals it is trained on and `images`."""


@dataclass(frozen=True)
class TrainingRun:
    """What a training is given beside the normals and the settings of its detector."""

    checkpoint: Checkpoint | None = None
    """Keeps the unfinished training, which is continued from there; None for none."""
    replace_other: bool = False
    """Whether the checkpoint of another training may be replaced."""
    selection: Selection | None = None
    """How the weights of an epoch are chosen; None for those of the last step."""
    progress: Progress = silent
    """Called with the stage, the steps done, the steps in all and the loss."""
    weights: Mapping[str, Mapping[str, torch.Tensor]] = field(default_factory=dict)
    """Tensors of the weight files that settings in `TrainedDetector.reads` name, by setting."""
    images: Mapping[str, Sequence[torch.Tensor]] = field(default_factory=dict)
    """Images, float32 ``(N, C, H, W)``, that settings in `TrainedDetector.reads` name, by setting."""
    checkpoint_every: float = 60.0
    progress_every: float = 0.2
    """Least seconds between two checkpoints, and between two calls of `progress`; 0: after each step."""


@dataclass
class Training:
    """How far a training is; what a checkpoint holds beside weights."""

    steps: int
    step: int = 0
    """Steps of the whole training, and those done so far."""
    seconds: float = 0.0
    """Time spent on them."""
    losses: dict[str, float] = field(default_factory=dict)
    """Losses of the last step by name."""
    best: float = math.inf
    stale: int = 0
    """Lowest validation loss, and epochs since."""
    stopped: str = ""
    """Why it came to an end: "" while it has not, "finished", "time" or "plateau"."""
    selected_step: int = 0
    selected_value: float = -math.inf
    """Steps of the best weights so far where they are chosen by epoch, and their value; 0 and -inf: none."""
