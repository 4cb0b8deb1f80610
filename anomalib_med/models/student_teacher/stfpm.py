"""STFPM: a student of the teacher's kind learns its features at several scales on normal images.

Wang et al., "Student-Teacher Feature Pyramid Matching for Anomaly Detection", BMVC 2021,
https://arxiv.org/abs/2103.04257.
"""

from typing import Literal

import torch
from pydantic import Field
from torch.optim import Optimizer

from anomalib_med.features.extractor import CPU_BATCH
from anomalib_med.models.student_teacher import teaching
from anomalib_med.models.training import StepBatch

MOMENTUM = 0.9


class STFPM(teaching.TaughtDetector):
    """A student network, untrained at first, imitates a frozen teacher; on what is not normal it fails.

    The anomaly map is the product over the layers of the distance between the directions of their feature vectors.
    """

    name = "stfpm"
    title = "STFPM, student-teacher feature pyramid matching (Wang et al., BMVC 2021)"
    at_once = CPU_BATCH

    class Config(teaching.TeacherConfig):
        """Settings of STFPM."""

        learning_rate: float = Field(1.6, gt=0)
        weight_decay: float = Field(1e-4, ge=0)
        warmup: float = Field(0.05, ge=0, lt=1)
        combine: Literal["mul", "add"] = "mul"
        """How the maps of the layers become one: they are multiplied, as in the paper, or added."""

    config: Config

    def build(self, shape: tuple[int, ...]) -> None:
        """The student."""
        self.student = teaching.Student(self.extractor, self.config.seed)

    def optimizers(self) -> dict[str, Optimizer]:
        """Stochastic gradient descent with momentum."""
        c, weights = self.config, self.student.parameters()
        return {"all": torch.optim.SGD(weights, c.learning_rate, momentum=MOMENTUM, weight_decay=c.weight_decay)}

    def training_step(self, batch: StepBatch) -> dict[str, torch.Tensor]:
        """Mean distance over the positions of each layer, summed over the layers."""
        image, *given = teaching.unfold(batch.x, self.extractor)
        distances = teaching.summed(lambda t, s: teaching.cosine_distance(t, s).mean(), given, self.student(image))
        return {"distance": distances}

    def compute_map(self, x: torch.Tensor) -> torch.Tensor:
        """Distances ``(B, h, w)`` on the grid of the finest layer, multiplied or summed."""
        returned = self.student.score(x.half().float())  # images as it was trained on
        maps = teaching.distance_maps(teaching.teacher_layers(self.extractor, x), returned)
        return maps.prod(0) if self.config.combine == "mul" else maps.sum(0)
