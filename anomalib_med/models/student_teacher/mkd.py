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
from anomalib_med.models.student_teacher import teaching
from anomalib_med.models.training import Schedule, StepBatch

MEAN, STD = 0.5, 0.25  # of the cloner's input
Pair = tuple[list[torch.Tensor], list[torch.Tensor]]  # layers of the teacher and of the cloner


class MKD(teaching.TaughtDetector):
    """A narrow network clones the teacher: values and, as one vector a layer, direction of its features.

    The image score is the distance between the two: that of the directions, and a little of that of the values. The
    anomaly map is the distance of the directions at each position, summed over the layers.
    """

    name = "mkd"
    title = "MKD, multiresolution knowledge distillation (Salehi et al., CVPR 2021)"
    at_once = 0

    class Config(teaching.TeacherConfig):
        """Settings of MKD."""

        pooling: str = "power8"
        """How the map becomes the image score where `score` is map: max, mean, top<q>% or power<p>."""
        batch_size: int = Field(32, ge=2)
        schedule: Schedule = "constant"
        value_weight: float = Field(0.01, ge=0)
        """Weight of the mean squared difference of the values beside the distance of the directions (official code)."""
        width: int = Field(16, ge=1)
        """Number of channels of the cloner between the layers that it clones, that of the small official cloner."""
        score: Literal["flat", "map"] = "flat"
        """What the image score is: the loss of the image over its valid cells, each layer as one flat vector, as in the
        paper, or the pooled map."""

    config: Config
    _last_pairs: tuple[torch.Tensor, list[Pair]] | None = None  # maps, and what they were made from

    def build(self, shape: tuple[int, ...]) -> None:
        """The cloner."""
        b, image = self.extractor.backbone, teaching.unfold(torch.empty(1, *shape), self.extractor)[0]
        self.cloner = Cloner(image.shape[1], b.channels, b.strides, self.config.width)

    def training_step(self, batch: StepBatch) -> dict[str, torch.Tensor]:
        """Distances of the directions and of the values, mean over the images."""
        image, *given = teaching.unfold(batch.x, self.extractor)
        return {key: loss.mean() for key, loss in self.losses(given, self.cloner(image)).items()}

    def compute_map(self, x: torch.Tensor) -> torch.Tensor:
        """Summed distances ``(B, h, w)`` of the directions, on the grid of the finest layer."""
        pairs = self.pairs(x)
        maps = torch.cat([teaching.distance_maps(*pair).sum(0) for pair in pairs])
        self._last_pairs = maps, pairs
        return maps

    def image_score(self, x: torch.Tensor, maps: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """The loss ``(B,)`` of each image over its valid cells, or the pooled map."""
        if self.config.score == "map":
            return super().image_score(x, maps, valid)
        kept = self._last_pairs  # map and score of one batch cost one pass
        pairs = kept[1] if kept is not None and kept[0] is maps else self.pairs(x.to(self.device))
        masked = [[inside(layers, area) for layers in pair] for pair, area in zip(pairs, valid, strict=True)]
        return torch.cat([torch.stack(list(self.losses(*pair).values())).sum(0) for pair in masked])

    def losses(self, given: Sequence[torch.Tensor], cloned: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Distances of the directions and of the values of each image ``(B,)``, summed over the layers."""
        values = teaching.summed(lambda t, s: squared_error(t, s).mean((1, 2, 3)), given, cloned)
        return {
            "direction": teaching.summed(teaching.flat_cosine_distance, given, cloned),
            "value": self.config.value_weight * values,
        }

    def pairs(self, x: torch.Tensor) -> list[Pair]:
        """Layers of teacher and cloner for each of the images ``(B, C, H, W)``, computed alone."""
        parts = [x.half().float(), *teaching.teacher_layers(self.extractor, x)]
        each = zip(*(torch.split(part, 1) for part in parts), strict=True)
        return [(given, self.cloner.score(image)) for image, *given in each]


def inside(layers: Sequence[torch.Tensor], valid: torch.Tensor) -> list[torch.Tensor]:
    """Layers ``(1, C, h, w)`` of one image with 0 in the cells outside its valid area, bool ``(H, W)``."""
    return [t * valid_cells(valid[None], (t.shape[2], t.shape[3]))[:, None].to(t.device) for t in layers]


class Cloner(teaching.ScoringNetwork[torch.Tensor, list[torch.Tensor]]):
    """A plain convolutional network with an output for each of the teacher's layers, finest first."""

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
