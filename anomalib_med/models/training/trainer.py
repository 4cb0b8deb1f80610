"""The one trainer: what every trained detector shares. The steps of a training are those of :class:`.loop.Loop`."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal, cast, final

import numpy as np
import torch
from pydantic import JsonValue
from torch import nn

from anomalib_med import processes
from anomalib_med.errors import FitError
from anomalib_med.models.training.loop import Loop, reproducible, step_size
from anomalib_med.models.training.normals import Normals
from anomalib_med.models.training.run import Training, TrainingRun
from anomalib_med.models.training.trainee import Trainee
from anomalib_med.preprocessing import Frames

NO_RUN = TrainingRun()
Content = Literal["weights", "images"]  # of a file or folder that a setting names


class TrainedDetector(Trainee):
    """A detector that is trained by gradient descent.

    A subclass gives `title`, a `Config` that is a :class:`TrainingConfig` (or :class:`FeatureTrainingConfig`),
    :meth:`build`, :meth:`training_step` and :meth:`compute_map`. Every ``nn.Module`` that :meth:`build` assigns to an
    attribute is trained, moved, saved and loaded; at scoring it is in evaluation mode. Optimizers, and what is taken
    of the normals before and after the training, are those of :class:`.trainee.Trainee`.
    """

    square = True
    at_once: ClassVar[int] = 1
    """How many images :meth:`compute_map` is given together on a CPU, where rounding depends on it; 0: the whole batch,
    of which it computes each image alike."""
    training: Training | None = None
    """How the training went; None before it, and in a loaded model."""

    @property
    def fitted(self) -> bool:
        """Whether the networks are built and trained."""
        return bool(self.shape)

    @abstractmethod
    def build(self, shape: tuple[int, ...]) -> None:
        """Assign the networks for inputs of this shape, ``(C, H, W)`` as :meth:`prepare` gives them, on the CPU."""

    @abstractmethod
    def compute_map(self, x: torch.Tensor) -> torch.Tensor:
        """Anomaly maps ``(B, h, w)`` of images ``(B, C, H, W)`` on the detector's device; the networks are trained."""

    def prepare(self, x: torch.Tensor) -> torch.Tensor:
        """What training sees of images ``(B, C, H, W)``, such as frozen features; by default the images.

        It is made once for each image, or at each use where images are augmented.
        """
        return x

    @property
    def reads(self) -> Mapping[str, Content]:
        """Settings that name a file of weights or a folder of images, whose content `fit` is given with its run."""
        return {}

    def take_inputs(self, run: TrainingRun) -> None:
        """Take the weights and images that the settings in `reads` name, before the networks are built."""

    def fit(self, frames: Frames, run: TrainingRun = NO_RUN) -> None:
        """Train on normals, continuing from the checkpoint where there is one of this training.

        Raises
        ------
        FitError
            No image; a loss that is not finite; a setting names a file whose content was not given with the run.
        ConfigError
            Inputs that differ in shape; too few images in a batch for several processes.
        OutputError
            A checkpoint that cannot be written, or one of another training.
        """
        c = self.config
        for setting, kind in self.reads.items():
            if setting not in {**run.weights, **run.images}:
                raise FitError(
                    f'{self.name}: {setting} names "{getattr(c, setting)}", which a detector does not read itself: fit '
                    f'with anomalib_med.fit, or give its content as TrainingRun({kind}={{"{setting}": ...}})'
                )
        size = self.extractor.batch_size if self.uses_features else c.batch_size
        normals = Normals(frames, self.prepare, size, augment=c.augment, memory_mb=c.memory_mb)
        step_size(c, len(normals))  # before the processes wait for one another
        with reproducible(self.device), processes.joined(self.device):
            self.take_inputs(run)
            self.initialise(tuple(normals.batch(np.arange(1), self.device).x.shape[1:]))
            self.training = Loop(self, normals, run).run()

    @final
    def anomaly_map(self, x: torch.Tensor) -> torch.Tensor:
        """Anomaly maps ``(B, h, w)`` of inputs ``(B, C, H, W)``, see :meth:`compute_map`; a FitError before `fit`."""
        self.check_fitted()
        return self.each(self.compute_map, x, self.at_once)

    def each(self, function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, at_once: int = 1) -> torch.Tensor:
        """`function` of images on the detector's device; on a CPU of `at_once` at a time, 0 for all."""
        x = x.to(self.device)
        if self.device.type != "cpu" or not at_once:
            return function(x)
        # Where several images are computed together, one alone would take another path, which rounds differently.
        alone = 2 if at_once > 1 else 1
        parts = torch.split(x, at_once)
        return torch.cat([function(p.expand(max(len(p), alone), -1, -1, -1))[: len(p)] for p in parts])

    def load_state(self, tensors: Mapping[str, torch.Tensor], extra: Mapping[str, JsonValue]) -> None:
        """Take what :meth:`state` gave."""
        with torch.random.fork_rng(devices=[]):
            self.initialise(tuple(cast(list[int], extra["shape"])))
        self.load_weights(tensors)
        nn.ModuleList(self.modules().values()).eval()

    def to(self, device: torch.device) -> "TrainedDetector":
        """Move the networks and the extractor."""
        super().to(device)
        nn.ModuleList(self.modules().values()).to(device)
        return self

    def initialise(self, shape: tuple[int, ...]) -> None:
        """Build the networks for inputs of this shape, see :meth:`build`, with weights that follow from the seed."""
        torch.manual_seed(self.config.seed)
        self.shape = shape
        self.build(shape)
        self.to(self.device)
