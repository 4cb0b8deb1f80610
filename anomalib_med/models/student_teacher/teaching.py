"""What the detectors with a teacher share: its answers as one array, a student of its kind, distances of features."""

from collections.abc import Callable, Iterable, Sequence
from typing import Generic, Self, TypeVar, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from anomalib_med.features import FeatureExtractor
from anomalib_med.features.backbones import create_untrained
from anomalib_med.features.fusion import inference_copy
from anomalib_med.features.grid import to_grid
from anomalib_med.models.base import BackboneConfig
from anomalib_med.models.training import Schedule, TrainedDetector, TrainingConfig

Distance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class TeacherConfig(BackboneConfig, TrainingConfig):
    """Settings of a detector that compares the layers of a frozen network as they are with those of one it trains."""

    pooling: str = "mean"
    """How the map becomes the image score: max, mean, top<q>% or power<p>. The mean follows disease of a whole lung,
    top1% small findings. The default was chosen on a development set of chest X-rays; papers often take the maximum."""
    steps: int = Field(1000, ge=0)
    schedule: Schedule = "cosine"


def teacher_layers(teacher: FeatureExtractor, x: torch.Tensor) -> list[torch.Tensor]:
    """Outputs ``(B, C_i, h_i, w_i)`` of each layer of the teacher for images ``(B, C, H, W)``.

    They are float32, rounded to half precision as training keeps them, and do not depend on the batch.
    """
    with torch.inference_mode():
        parts = [teacher.layers(part) for part in torch.split(x, teacher.batch_size)]
    # Outside inference mode: what is made within it cannot be trained on.
    return [torch.cat(layer).half().float() for layer in zip(*parts, strict=True)]


class TaughtDetector(TrainedDetector):
    """A detector that is trained on images and the layers of its teacher, see :func:`fold`."""

    def prepare(self, x: torch.Tensor) -> torch.Tensor:
        """Images and the teacher's layers of them as one array."""
        return fold([x.to(self.device), *teacher_layers(self.extractor, x)])


def fold(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Arrays ``(B, C_i, H / s_i, W / s_i)`` as one of the coarsest grid, by moving blocks of cells to channels.

    It is float16 ``(B, sum of C_i (s / s_i)^2, H / s, W / s)``, where ``s`` is the largest of the strides ``s_i``.
    """
    rows = min(part.shape[2] for part in parts)
    return torch.cat([F.pixel_unshuffle(part.half(), part.shape[2] // rows) for part in parts], 1)


def unfold(folded: torch.Tensor, teacher: FeatureExtractor) -> list[torch.Tensor]:
    """What :func:`fold` was given: the layers of the teacher, and before them the image where there was one."""
    b = teacher.backbone
    factors = [teacher.multiple // stride for stride in b.strides]
    sizes = [c * f * f for c, f in zip(b.channels, factors, strict=True)]
    if image := folded.shape[1] - sum(sizes):
        sizes, factors = [image, *sizes], [teacher.multiple, *factors]
    parts = torch.split(folded, sizes, 1)
    return [F.pixel_shuffle(part, factor) for part, factor in zip(parts, factors, strict=True)]


Input = TypeVar("Input", torch.Tensor, list[torch.Tensor])
Output = TypeVar("Output", torch.Tensor, list[torch.Tensor])


class ScoringNetwork(nn.Module, Generic[Input, Output]):
    """A network with a second, faster form for scoring, made when it is first asked for after a training."""

    def __init__(self) -> None:
        super().__init__()
        self._fast: list[nn.Module] = []  # a list: it is no part of the network, and is not saved

    def train(self, mode: bool = True) -> Self:
        """Change the mode; the form for scoring is made anew."""
        self._fast.clear()
        return super().train(mode)

    @torch.inference_mode()
    def score(self, x: Input) -> Output:
        """What the trained network gives, with its batch norms folded into its convolutions."""
        if not self._fast or next(self._fast[0].parameters()).device != next(self.parameters()).device:
            self._fast[:] = [inference_copy(self, x)]
        return cast(Output, self._fast[0](x))


class Student(ScoringNetwork[torch.Tensor, list[torch.Tensor]]):
    """The network of the teacher, its layers and its normalisation, with random weights that follow from the seed."""

    def __init__(self, teacher: FeatureExtractor, seed: int) -> None:
        super().__init__()
        self._backbone = create_untrained(teacher.backbone.name, teacher.backbone.layers, seed)
        self.network = self._backbone.network.to(memory_format=torch.channels_last)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Outputs ``(B, C_i, h_i, w_i)`` of each layer for images ``(B, C, H, W)`` in [0, 1]."""
        x = normalised(x, self._backbone.mean, self._backbone.std)
        return self._backbone.intermediates(x.contiguous(memory_format=torch.channels_last))


def normalised(x: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Images ``(B, C, H, W)`` as a network sees them, given mean and deviation of its channels: one sees mean grey."""
    x = x.mean(1, keepdim=True) if len(mean) < x.shape[1] else x
    m, s = (torch.tensor(values, device=x.device)[:, None, None] for values in (mean, std))
    return (x - m) / s


def cosine_distance(t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """``1 - cos`` of the feature vectors of each position, ``(B, h, w)`` in float32, of two ``(B, C, h, w)``."""
    return 1 - F.cosine_similarity(t.float(), s.float(), dim=1)


def flat_cosine_distance(t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """``1 - cos`` of two whole feature maps as one vector an image, ``(B,)`` in float32."""
    return 1 - F.cosine_similarity(t.float().flatten(1), s.float().flatten(1), dim=1)


def summed(distance: Distance, given: Iterable[torch.Tensor], returned: Iterable[torch.Tensor]) -> torch.Tensor:
    """Distances of two networks in each of their layers, summed over the layers."""
    return torch.stack([distance(t, s) for t, s in zip(given, returned, strict=True)]).sum(0)


def distance_maps(given: Iterable[torch.Tensor], returned: Iterable[torch.Tensor]) -> torch.Tensor:
    """Distances of the directions in each layer, brought to the finest grid: ``(layers, B, h, w)``."""
    maps = [cosine_distance(t, s) for t, s in zip(given, returned, strict=True)]
    return torch.stack(on_finest_grid([map[:, None] for map in maps]))[:, :, 0]


def on_finest_grid(layers: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Layers ``(B, C_i, h_i, w_i)``, enlarged to the grid of the one with most rows."""
    grid = max((layer.shape[2:] for layer in layers), key=lambda shape: shape[0])
    return [to_grid(layer, grid) for layer in layers]
