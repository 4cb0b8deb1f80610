"""MKD: a much smaller network clones several layers of a frozen teacher on normal images.

Salehi et al., "Multiresolution Knowledge Distillation for Anomaly Detection", CVPR 2021,
https://arxiv.org/abs/2011.11108.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from anomalib_med.models.losses import squared_error
from anomalib_med.models.pooling import valid_cells
from anomalib_med.models.student_teacher.teaching import (
    ScoringNetwork,
    cosine_distance,
    flat_cosine_distance,
    fold,
    joined,
    teacher_layers,
    unfold,
)
from anomalib_med.models.training.normals import StepBatch
from anomalib_med.models.training.schedule import FeatureTrainingConfig
from anomalib_med.models.training.trainer import TrainedDetector

MEAN, STD = 0.5, 0.25  # of the cloner's input
Pair = tuple[torch.Tensor, torch.Tensor]  # a layer of the teacher and of the cloner


class MKD(TrainedDetector):
    """A narrow network clones the teacher: values and, as one vector a layer, direction of its features.

    The image score is the distance between the two: that of the directions, and a little of that of the values. The
    anomaly map is the distance of the directions at each position, summed over the layers.
    """

    name = "mkd"
    title = "MKD, multiresolution knowledge distillation (Salehi et al., CVPR 2021)"
    at_once = 0

    class Config(FeatureTrainingConfig):
        """Settings of MKD. `neighbourhood` is 1: the features are compared as they are.

        Parameters
        ----------
        value_weight
            Of the mean squared difference, beside the distance of the directions.
        width
            Channels of the cloner between the layers that it clones.
        score
            "flat", the paper's: the loss of the image; or "map": the map pooled as `pooling` says.
        """

        neighbourhood: int = Field(1, ge=1, le=1)
        steps: int = Field(1000, ge=0)
        batch_size: int = Field(32, ge=2)
        learning_rate: float = Field(1e-3, gt=0)
        value_weight: float = Field(0.01, ge=0)
        width: int = Field(16, ge=1)
        score: Literal["flat", "map"] = "flat"

    config: Config

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings)
        self._compared: tuple[torch.Tensor, list[list[Pair]]] | None = None  # inputs, and their features

    def build(self, shape: tuple[int, ...]) -> None:
        """The cloner."""
        b = self.extractor.backbone
        folded = sum(c * (b.strides[-1] // s) ** 2 for c, s in zip(b.channels, b.strides, strict=True))
        image = (shape[0] - folded) // b.strides[-1] ** 2
        self.cloner = Cloner(image, b.channels, b.strides, self.config.width)

    def prepare(self, x: torch.Tensor) -> torch.Tensor:
        """Images and the teacher's features of them, see :func:`fold`."""
        return fold([x.to(self.device).half(), *teacher_layers(self.extractor, x)], self.extractor.multiple)

    def training_step(self, batch: StepBatch) -> dict[str, torch.Tensor]:
        """Distance of the directions and of the values, summed over the layers, mean over the images."""
        b = self.extractor.backbone
        image, *given = unfold(batch.x, b.channels, b.strides)
        cloned = self.cloner(image)
        return {key: loss.mean() for key, loss in self._losses(given, cloned).items()}

    def compute_map(self, x: torch.Tensor) -> torch.Tensor:
        """Summed distances ``(B, h, w)`` of the directions, on the grid of the finest layer."""
        maps = [joined([cosine_distance(t, s) for t, s in pairs], lambda m: m.sum(0)) for pairs in self._pairs(x)]
        return torch.cat(maps)

    def image_score(self, x: torch.Tensor, maps: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """The loss ``(B,)`` of each image over its valid cells, or the pooled map."""
        if self.config.score == "map":
            return super().image_score(x, maps, valid)
        scores = []
        for pairs, area in zip(self._pairs(x), valid, strict=True):
            cells = [valid_cells(area[None], (t.shape[2], t.shape[3]))[:, None].to(t.device) for t, _ in pairs]
            masked = [(t * c, s * c) for (t, s), c in zip(pairs, cells, strict=True)]
            losses = self._losses([t for t, _ in masked], [s for _, s in masked])
            scores.append(torch.stack(list(losses.values())).sum(0))
        return torch.cat(scores)

    def to(self, device: torch.device) -> "MKD":
        """Move the networks."""
        super().to(device)
        self._compared = None
        return self

    def _losses(self, given: Sequence[torch.Tensor], cloned: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Of each image ``(B,)``, summed over the layers."""
        layers = list(zip(given, cloned, strict=True))
        return {
            "direction": torch.stack([flat_cosine_distance(t, s) for t, s in layers]).sum(0),
            "value": self.config.value_weight
            * torch.stack([squared_error(t, s).mean((1, 2, 3)) for t, s in layers]).sum(0),
        }

    def _pairs(self, x: torch.Tensor) -> list[list[Pair]]:
        """Features of teacher and cloner for each image; map and score of one batch cost one pass."""
        if self._compared is None or self._compared[0] is not x:
            parts = [x.to(self.device).half(), *teacher_layers(self.extractor, x)]
            found = []
            for one in zip(*parts, strict=True):
                image, *given = (part[None].float() for part in one)
                found.append(list(zip(given, self.cloner.score(image), strict=True)))
            self._compared = (x, found)
        return self._compared[1]


class Cloner(ScoringNetwork[torch.Tensor, list[torch.Tensor]]):
    """A plain convolutional network with an output for each layer of the teacher and few channels between.

    Parameters
    ----------
    inputs
        Channels of the image.
    channels, strides
        Of the teacher's layers, finest first.
    width
        Channels of the hidden layers.
    """

    def __init__(self, inputs: int, channels: Sequence[int], strides: Sequence[int], width: int) -> None:
        super().__init__()
        self.stages, self.after = nn.ModuleList(), nn.ModuleList()
        stride = 1
        for c, coarser in zip(channels, strides, strict=True):
            blocks: list[nn.Module] = []
            while stride < coarser:
                stride *= 2
                blocks += [*_conv(inputs, width), *_conv(width, width), nn.MaxPool2d(2)]
                inputs = width
            self.stages.append(nn.Sequential(*blocks, *_conv(inputs, width), nn.Conv2d(width, c, 3, padding=1)))
            self.after.append(nn.Sequential(nn.BatchNorm2d(c), nn.ReLU(inplace=True)))
            inputs = c
        self.after[-1] = nn.Identity()
        self.to(memory_format=torch.channels_last)  # three quarters of the time on a CPU

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Images ``(B, inputs, H, W)`` in [0, 1] to ``(B, C_i, h_i, w_i)``."""
        x = (x - MEAN) / STD
        outputs = []
        for stage, after in zip(self.stages, self.after, strict=True):
            outputs.append(stage(x))
            x = after(outputs[-1].clone())
        return outputs


def _conv(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
