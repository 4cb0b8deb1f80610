"""STFPM: a student of the teacher's kind learns its features at several scales on normal images.

Wang et al., "Student-Teacher Feature Pyramid Matching for Anomaly Detection", BMVC 2021,
https://arxiv.org/abs/2103.04257.
"""

from typing import Literal

import torch
from pydantic import Field
from torch.optim import Optimizer

from anomalib_med.features.extractor import CPU_BATCH
from anomalib_med.models.student_teacher.teaching import (
    Student,
    TeacherConfig,
    cosine_distance,
    distance_maps,
    fold,
    summed,
    teacher_layers,
    unfold,
)
from anomalib_med.models.training.normals import StepBatch
from anomalib_med.models.training.trainer import TrainedDetector

MOMENTUM = 0.9


class STFPM(TrainedDetector):
    """A student network, untrained at first, imitates a frozen teacher; on what is not normal it fails.

    The anomaly map is the product over the layers of the distance between the directions of their feature vectors.
    """

    name = "stfpm"
    title = "STFPM, student-teacher feature pyramid matching (Wang et al., BMVC 2021)"
    at_once = CPU_BATCH

    class Config(TeacherConfig):
        """Settings of STFPM."""

        learning_rate: float = Field(1.6, gt=0)
        weight_decay: float = Field(1e-4, ge=0)
        warmup: float = Field(0.05, ge=0, lt=1)
        combine: Literal["mul", "add"] = "mul"
        """How the maps of the layers become one: they are multiplied, as in the paper, or added."""

    config: Config

    def build(self, shape: tuple[int, ...]) -> None:
        """The student."""
        self.student = Student(self.extractor, self.config.seed)

    def prepare(self, x: torch.Tensor) -> torch.Tensor:
        """Images and the teacher's layers of them, see :func:`fold`."""
        return fold([x.to(self.device), *teacher_layers(self.extractor, x)])

    def optimizers(self) -> dict[str, Optimizer]:
        """Stochastic gradient descent with momentum."""
        c, weights = self.config, self.student.parameters()
        return {"all": torch.optim.SGD(weights, c.learning_rate, momentum=MOMENTUM, weight_decay=c.weight_decay)}

    def training_step(self, batch: StepBatch) -> dict[str, torch.Tensor]:
        """Mean distance over the positions of each layer, summed over the layers."""
        image, *given = unfold(batch.x, self.extractor)
        return {"distance": summed(lambda t, s: cosine_distance(t, s).mean(), given, self.student(image))}

    def compute_map(self, x: torch.Tensor) -> torch.Tensor:
        """Distances ``(B, h, w)`` on the grid of the finest layer, multiplied or summed."""
        image = x.half().float()  # as it was trained on
        maps = distance_maps(teacher_layers(self.extractor, x), self.student.score(image))
        return maps.prod(0) if self.config.combine == "mul" else maps.sum(0)
