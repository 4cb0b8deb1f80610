"""EfficientAD: a patch-wise student and an autoencoder imitate a teacher; both fail, in their ways, on what is odd.

Batzner et al., "EfficientAD: Accurate Visual Anomaly Detection at Millisecond-Level Latencies", WACV 2024,
https://arxiv.org/abs/2303.14535.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, JsonValue, field_serializer
from torch import nn

from anomalib_med.models.standard import Standard
from anomalib_med.models.student_teacher import pdn
from anomalib_med.models.training import Content, FeatureTrainingConfig, Schedule, StepBatch, TrainedDetector
from anomalib_med.models.training.run import TrainingRun
from anomalib_med.models.training.trainee import named

BACKBONE = "backbone"
LOW, HIGH = 0.9, 0.995  # quantiles of the maps of normals that become 0 and 0.1


class EfficientAD(TrainedDetector):
    """A student that sees small patches and an autoencoder that sees the whole image imitate a frozen teacher.

    The student also imitates the autoencoder. The anomaly map is the mean of where student and teacher differ (a patch
    never seen) and where student and autoencoder differ (a wrong arrangement), each on a scale from held-out normals.
    """

    name = "efficientad"
    title = "EfficientAD (Batzner et al., WACV 2024)"
    input_size = 256
    holds_out = True

    class Config(FeatureTrainingConfig):
        """Settings of EfficientAD; the defaults are for a training on a CPU, those of the paper are in the card."""

        pooling: str = "mean"
        """How the map becomes the image score: max, mean, top<q>% or power<p>. The default was chosen on a development
        set of chest X-rays; the paper takes the maximum, and top1% follows small findings."""
        network: pdn.Network = "T"
        """Patch description network of the student: "S" or "M" of the paper, or "T" of a quarter of S's width, for a
        training on a CPU."""
        teacher: str = BACKBONE
        """Teacher of the student: "backbone" for the frozen features themselves, or a safetensors file of a distilled
        patch description network, see ``models/efficientad/distil.py``."""
        hard: float = Field(0.9, ge=0, lt=1)
        """Share of the squared differences between student and teacher that is not learnt from: only the largest are.
        The default was chosen on a development set of chest X-rays; the paper has 0.999."""
        penalty: str = ""
        """Folder of other images, on up to 1,000 of which the student must not imitate the teacher; empty for none."""
        steps: int = Field(2000, ge=0)
        batch_size: int = Field(1, ge=1)
        weight_decay: float = Field(1e-5, ge=0)
        schedule: Schedule = "cosine"

        @field_serializer("teacher", "penalty")
        def _without_folder(self, path: str) -> str:
            return Path(path).name  # where files lie is nobody's business, and a teacher is saved with the model

        @property
        def multiple(self) -> int:
            """The autoencoder halves the sides five times."""
            return 32

    config: Config
    _teacher_weights: Mapping[str, torch.Tensor]
    _penalty: Sequence[torch.Tensor] = ()  # images (C, H, W)

    @property
    def uses_features(self) -> bool:
        """Whether the teacher is the frozen backbone and not a network from a file."""
        return self.config.teacher == BACKBONE

    @property
    def reads(self) -> Mapping[str, Content]:
        """A teacher from a file, and the penalty images."""
        contents: dict[str, Content] = {} if self.uses_features else {"teacher": "weights"}
        return contents | ({"penalty": "images"} if self.config.penalty else {})

    def take_inputs(self, run: TrainingRun) -> None:
        """Take the weights of a teacher from a file, and the penalty images."""
        self._teacher_weights, self._penalty = run.weights.get("teacher", {}), run.images.get("penalty", ())

    def build(self, shape: tuple[int, ...]) -> None:
        """Teacher, student and autoencoder."""
        c = self.config
        self.grid = pdn.grid_of(shape[1], shape[2])
        if not self.uses_features:
            self.teacher = pdn.Teacher(self._teacher_weights, Path(c.teacher).name)
        channels = self.extractor.channels if self.uses_features else self.teacher.channels
        self.standard = Standard((channels, 1, 1))
        self.student = pdn.PDN(c.network, shape[0], 2 * channels)
        self.autoencoder = pdn.Autoencoder(shape[0], channels, shape[1:], self.grid)
        self.scale = Scale()

    def before_training(self, batches: Iterator[StepBatch]) -> None:
        """Standardise the teacher's channels by the normals, and bring the penalty images to their size."""
        self.standard.learn(self.taught(batch.x) for batch in batches)
        channels, *sides = self.shape
        self._penalty = [F.interpolate(i[None], sides)[0].expand(channels, -1, -1).half() for i in self._penalty]

    def training_step(self, batch: StepBatch) -> dict[str, torch.Tensor]:
        """The paper's losses: student from teacher, autoencoder from teacher, student from autoencoder, penalty."""
        x, exposed = batch.x, with_exposure(batch.x)
        taught, taught_exposed = self.standard(self.taught(torch.cat([x, exposed]), kept=False)).chunk(2)
        student, student_exposed = self.student(pdn.normalised(torch.cat([x, exposed]))).chunk(2)
        coded = self.autoencoder(pdn.normalised(exposed))
        losses = {
            "student": mean_of_hardest((taught - student.chunk(2, 1)[0]) ** 2, self.config.hard),
            "autoencoder": ((taught_exposed - coded) ** 2).mean(),
            "student from autoencoder": ((coded - student_exposed.chunk(2, 1)[1]) ** 2).mean(),
        }
        if self._penalty:
            rows = torch.randint(len(self._penalty), (len(x),)).tolist()
            other = torch.stack([self._penalty[row] for row in rows]).to(x.device).float()
            losses["penalty"] = (self.student(pdn.normalised(other)).chunk(2, 1)[0] ** 2).mean()
        return losses

    def after_training(self, batches: Iterator[StepBatch]) -> None:
        """Quantiles of both maps over the normals held out."""
        pairs = [self._differences(image[None]) for batch in batches for image in batch.x]
        for index, maps in enumerate(zip(*pairs, strict=True)):
            self.scale.set(index, *np.quantile(torch.cat(maps).cpu().numpy(), [LOW, HIGH]))

    def compute_map(self, x: torch.Tensor) -> torch.Tensor:
        """Mean ``(B, H / 4, W / 4)`` of the two scaled maps: 0 at their 90 % quantile of normals, 0.1 at 99.5 %."""
        (top, bottom), (left, right) = map(pdn.margins, x.shape[2:], self.grid)
        local, whole = self._differences(x)
        scaled = (self.scale(0, local) + self.scale(1, whole)) / 2
        return F.pad(scaled[:, None], (left, right, top, bottom), "replicate")[:, 0]

    def load_state(self, tensors: Mapping[str, torch.Tensor], extra: Mapping[str, JsonValue]) -> None:
        """Take what :meth:`state` gave, the teacher from there too."""
        self._teacher_weights = named("teacher.network.", tensors)
        super().load_state(tensors, extra)

    def _differences(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Student against teacher and student against autoencoder, ``(B, h, w)`` each: squared, mean over channels."""
        of_teacher, of_autoencoder = self.student(pdn.normalised(x)).chunk(2, 1)
        local = (self.standard(self.taught(x)) - of_teacher) ** 2
        whole = (self.autoencoder(pdn.normalised(x)) - of_autoencoder) ** 2
        return local.mean(1), whole.mean(1)

    def taught(self, x: torch.Tensor, *, kept: bool = True) -> torch.Tensor:
        """Features ``(B, D, h, w)`` of the teacher, float32; of exposed images none are `kept` in a cache."""
        with torch.no_grad():
            if not self.uses_features:
                return cast(torch.Tensor, self.teacher(x))
            features = self.extractor(x) if kept else self.extractor.extract(x)
            return pdn.on_pdn_grid(features, x.shape[2], x.shape[3]).clone()


class Scale(nn.Module):
    """Two maps on one scale: 0 at the lower quantile of normals, 0.1 at the upper."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: torch.Tensor
        self.register_buffer("ends", torch.tensor([[0.0, 1.0], [0.0, 1.0]]))

    def set(self, index: int, low: float, high: float) -> None:
        """Quantiles of one of the maps; where they are equal the map is only shifted."""
        self.ends[index] = torch.tensor([low, high if high > low else low + 0.1])

    def forward(self, index: int, map: torch.Tensor) -> torch.Tensor:
        """The map on that scale."""
        low, high = self.ends[index].unbind()
        return 0.1 * (map - low) / (high - low)


def mean_of_hardest(differences: torch.Tensor, share: float) -> torch.Tensor:
    """Mean of the differences at or above their quantile; ``torch.quantile`` refuses tensors of this size."""
    values = differences.flatten()
    return values.topk(max(1, round((1 - share) * values.numel()))).values.mean()


def with_exposure(x: torch.Tensor) -> torch.Tensor:
    """Brightness or contrast of each image changed by up to a fifth."""
    factor = torch.empty(len(x), 1, 1, 1).uniform_(0.8, 1.2).to(x.device)
    brighter = torch.rand(len(x), 1, 1, 1).to(x.device) < 0.5
    centre = torch.where(brighter, 0.0, x.mean((1, 2, 3), keepdim=True))
    return (centre + factor * (x - centre)).clamp(0, 1)
