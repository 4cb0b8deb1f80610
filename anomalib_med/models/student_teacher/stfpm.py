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
    cosine_distance,
    fold,
    joined,
    teacher_layers,
    unfold,
)
from anomalib_med.models.training.normals import StepBatch
from anomalib_med.models.training.schedule import FeatureTrainingConfig
from anomalib_med.models.training.trainer import TrainedDetector

MOMENTUM = 0.9


class STFPM(TrainedDetector):
    """A student network, untrained at first, imitates a frozen teacher; on what is not normal it fails.

    The anomaly map is the product over the layers of the distance between the directions of their feature vectors.
    """

    name = "stfpm"
    title = "STFPM, student-teacher feature pyramid matching (Wang et al., BMVC 2021)"
    at_once = CPU_BATCH

    class Config(FeatureTrainingConfig):
        """Settings of STFPM. `neighbourhood` is 1: the features are compared as they are.

        Parameters
        ----------
        combine
            How the maps of the layers are joined: "mul", the paper's product, or "add".
        """

        neighbourhood: int = Field(1, ge=1, le=1)
        pooling: str = "mean"
        steps: int = Field(1000, ge=0)
        batch_size: int = Field(32, ge=1)
        learning_rate: float = Field(1.6, gt=0)
        weight_decay: float = Field(1e-4, ge=0)
        schedule: Literal["constant", "cosine"] = "cosine"
        warmup: float = Field(0.05, ge=0, lt=1)
        combine: Literal["mul", "add"] = "mul"

    config: Config

    def build(self, shape: tuple[int, ...]) -> None:
        """The student."""
        self.student = Student(self.extractor, self.config.seed)

    def prepare(self, x: torch.Tensor) -> torch.Tensor:
        """Images and the teacher's features of them, see :func:`fold`."""
        return fold([x.to(self.device).half(), *teacher_layers(self.extractor, x)], self.extractor.multiple)

    def optimisers(self) -> dict[str, Optimizer]:
        """Stochastic gradient descent with momentum."""
        c = self.config
        return {
            "all": torch.optim.SGD(
                self.student.parameters(), c.learning_rate, momentum=MOMENTUM, weight_decay=c.weight_decay
            )
        }

    def training_step(self, batch: StepBatch) -> dict[str, torch.Tensor]:
        """Mean distance over the positions of each layer, summed over the layers."""
        b = self.extractor.backbone
        image, *teacher = unfold(batch.x, b.channels, b.strides)
        maps = [cosine_distance(t, s) for t, s in zip(teacher, self.student(image), strict=True)]
        return {"distance": torch.stack([map.mean() for map in maps]).sum()}

    def compute_map(self, x: torch.Tensor) -> torch.Tensor:
        """Joined distances ``(B, h, w)`` on the grid of the finest layer."""
        image = x.half().float()  # as it was trained on
        teacher = [layer.float() for layer in teacher_layers(self.extractor, x)]
        maps = [cosine_distance(t, s) for t, s in zip(teacher, self.student.score(image), strict=True)]
        return joined(maps, lambda maps: maps.prod(0) if self.config.combine == "mul" else maps.sum(0))
