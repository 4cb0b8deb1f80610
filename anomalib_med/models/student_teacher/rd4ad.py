"""RD4AD, reverse distillation: a decoder gives back the teacher's features from a narrow embedding of them.

Deng and Li, "Anomaly Detection via Reverse Distillation from One-Class Embedding", CVPR 2022,
https://arxiv.org/abs/2201.10703.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, cast

import torch
from pydantic import Field
from torch import nn
from torch.optim import Optimizer

from anomalib_med.features.extractor import CPU_BATCH
from anomalib_med.models.blocks import ConvBlock
from anomalib_med.models.student_teacher import teaching
from anomalib_med.models.training import StepBatch, TrainedDetector

BETAS = (0.5, 0.999)


class ReverseConfig(teaching.TeacherConfig):
    """Settings of every reverse distillation."""

    batch_size: int = Field(16, ge=2)
    learning_rate: float = Field(5e-3, gt=0)
    width: int = Field(0, ge=0)
    """Number of channels of the embedding; 0 stands for twice those of the coarsest layer, as in the paper."""


class ReverseDistillation(TrainedDetector):
    """What :class:`RD4AD` and RD++ have in common: networks and map."""

    at_once = CPU_BATCH
    config: ReverseConfig

    @property
    def multiple(self) -> int:
        """The embedding lies at twice the stride of the coarsest layer."""
        return 2 * self.extractor.multiple

    def build(self, shape: tuple[int, ...]) -> None:
        """The bottleneck and the decoder."""
        b = self.extractor.backbone
        width = self.config.width or 2 * b.channels[-1]
        self.bottleneck = Bottleneck(b.channels, b.strides, width)
        self.decoder = FeatureDecoder(b.channels, b.strides, width)

    def compute_map(self, x: torch.Tensor) -> torch.Tensor:
        """Summed distances ``(B, h, w)`` on the grid of the finest layer."""
        given = teaching.teacher_layers(self.extractor, x)
        return teaching.distance_maps(given, self.decoder.score(self.bottleneck.score(self.seen(given)))).sum(0)

    def seen(self, given: list[torch.Tensor]) -> list[torch.Tensor]:
        """What the bottleneck is given of the teacher's layers, ``(B, C_i, h_i, w_i)``, at scoring: all of it."""
        return given


class RD4AD(ReverseDistillation):
    """The teacher's features go through a bottleneck, and a decoder learns to give them back for normal images.

    The anomaly map is the sum over the layers of the distance between the directions of given and returned features.
    """

    name = "rd4ad"
    title = "RD4AD, reverse distillation (Deng and Li, CVPR 2022)"

    class Config(ReverseConfig):
        """Settings of RD4AD."""

        loss: Literal["flat", "pixel"] = "flat"
        """Distance that is minimised: that of each layer as one flat vector, as in the paper, or the mean of that of
        each pixel of a layer."""

    config: Config

    def prepare(self, x: torch.Tensor) -> torch.Tensor:
        """The teacher's layers, see :func:`.teaching.fold`: they are all that training needs."""
        return teaching.fold(teaching.teacher_layers(self.extractor, x))

    def optimizers(self) -> dict[str, Optimizer]:
        """One Adam with the paper's betas."""
        return {"all": self.adam(self.bottleneck, self.decoder, betas=BETAS)}

    def training_step(self, batch: StepBatch) -> dict[str, torch.Tensor]:
        """Distance of each layer, summed over the layers, mean over the images."""
        given = teaching.unfold(batch.x, self.extractor)
        distance = teaching.flat_cosine_distance if self.config.loss == "flat" else teaching.cosine_distance
        returned = self.decoder(self.bottleneck(given))
        return {"distance": teaching.summed(lambda t, s: distance(t, s).mean(), given, returned)}


class Bottleneck(teaching.ScoringNetwork[list[torch.Tensor], torch.Tensor]):
    """The paper's one-class bottleneck embedding: all layers brought to the coarsest grid, joined and halved once more.

    Layers come finest first, with strides that are each the one before times a power of two.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], width: int) -> None:
        super().__init__()
        self.down, inputs = nn.ModuleList(), 0
        for c, stride in zip(channels, strides, strict=True):
            halvings = (strides[-1] // stride).bit_length() - 1
            sizes = [c << i for i in range(halvings + 1)]
            self.down.append(nn.Sequential(*(ConvBlock(i, o, 3, 2, activation=nn.ReLU) for i, o in pairwise(sizes))))
            inputs += sizes[-1]
        self.stage = nn.Sequential(Residual(inputs, width, "down"), Residual(width, width))
        self.to(memory_format=torch.channels_last)

    def forward(self, layers: Sequence[torch.Tensor]) -> torch.Tensor:
        """``(B, C_i, h_i, w_i)`` to ``(B, width, h / 2, w / 2)`` of the coarsest."""
        joined = torch.cat([down(layer) for down, layer in zip(self.down, layers, strict=True)], 1)
        return cast(torch.Tensor, self.stage(joined))


class FeatureDecoder(teaching.ScoringNetwork[torch.Tensor, list[torch.Tensor]]):
    """The mirror image of a residual network: from the embedding to each of the layers, see :class:`Bottleneck`."""

    def __init__(self, channels: Sequence[int], strides: Sequence[int], width: int) -> None:
        super().__init__()
        self.stages, self.heads = nn.ModuleList(), nn.ModuleList()
        stride = 2 * strides[-1]
        for c, finer in zip(reversed(channels), reversed(strides), strict=True):
            blocks = []
            while stride > finer:
                stride //= 2
                blocks.append(Residual(width, c, "up"))
                width = c
            self.stages.append(nn.Sequential(*blocks, Residual(width, c)))
            self.heads.append(nn.Conv2d(c, c, 1))  # features may be negative, the output of a residual block may not
            width = c
        self.to(memory_format=torch.channels_last)

    def forward(self, embedding: torch.Tensor) -> list[torch.Tensor]:
        """``(B, width, h, w)`` to ``(B, C_i, h_i, w_i)``, finest layer first."""
        layers = []
        for stage, head in zip(self.stages, self.heads, strict=True):
            embedding = stage(embedding)
            layers.append(head(embedding))
        return layers[::-1]


class Residual(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut (He et al. 2016); the first halves the grid, doubles it or keeps it."""

    def __init__(self, inputs: int, outputs: int, change: Literal["down", "up", "keep"] = "keep") -> None:
        super().__init__()
        first, shortcut = (
            nn.ConvTranspose2d(inputs, outputs, 2, 2, bias=False)
            if change == "up"
            else nn.Conv2d(inputs, outputs, side, 2 if change == "down" else 1, side // 2, bias=False)
            for side in (3, 1)
        )
        plain = change == "keep" and inputs == outputs
        self.shortcut = nn.Identity() if plain else nn.Sequential(shortcut, nn.BatchNorm2d(outputs))
        second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        norms = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.convs = nn.Sequential(first, norms[0], nn.ReLU(inplace=True), second, norms[1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, inputs, h, w)`` to ``(B, outputs, ...)``, at least 0."""
        return torch.relu(self.shortcut(x) + self.convs(x))
