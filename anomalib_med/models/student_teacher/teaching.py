"""What the detectors with a teacher share: its answers as one array, a student of its kind, distances of features."""

from collections.abc import Callable, Sequence
from typing import Generic, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from anomalib_med.features import FeatureExtractor
from anomalib_med.features.backbones import create_untrained
from anomalib_med.features.fusion import inference_copy


@torch.inference_mode()
def teacher_layers(teacher: FeatureExtractor, x: torch.Tensor) -> list[torch.Tensor]:
    """Outputs ``(B, C_i, h_i, w_i)``, float16, of each layer of the teacher for images ``(B, C, H, W)``.

    Rounded alike when trained on and when scored; each image is computed alike whatever the batch.
    """
    parts = [teacher.layers(part) for part in torch.split(x, teacher.batch_size)]
    return [torch.cat(layer).half() for layer in zip(*parts, strict=True)]


def fold(parts: Sequence[torch.Tensor], coarsest: int) -> torch.Tensor:
    """Arrays of several resolutions as one on the coarsest grid, by moving blocks of cells to channels.

    Parameters
    ----------
    parts
        ``(B, C_i, H / s_i, W / s_i)`` for strides ``s_i`` that divide `coarsest`.
    coarsest
        Largest stride.

    Returns
    -------
    ``(B, sum of C_i (coarsest / s_i)^2, H / coarsest, W / coarsest)``.
    """
    rows = min(part.shape[2] for part in parts) if coarsest > 1 else parts[0].shape[2]
    return torch.cat([F.pixel_unshuffle(part, part.shape[2] // rows) for part in parts], 1)


def unfold(folded: torch.Tensor, channels: Sequence[int], strides: Sequence[int]) -> list[torch.Tensor]:
    """What :func:`fold` was given, from the channels and strides of all parts; an image may stand before them.

    Channels that belong to no part are those of an image of stride 1, which is then the first of the list.
    """
    coarsest = max(strides)
    factors = [coarsest // stride for stride in strides]
    sizes = [c * f * f for c, f in zip(channels, factors, strict=True)]
    image = folded.shape[1] - sum(sizes)
    if image:
        sizes, factors = [image, *sizes], [coarsest, *factors]
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
        outputs: Output = self._fast[0](x)
        return outputs


class Student(ScoringNetwork[torch.Tensor, list[torch.Tensor]]):
    """The architecture of the teacher with random weights.

    Parameters
    ----------
    teacher
        Gives the name of the network, the layers and how inputs are normalised.
    seed
        Of the weights.
    """

    def __init__(self, teacher: FeatureExtractor, seed: int) -> None:
        super().__init__()
        self._backbone = create_untrained(teacher.backbone.name, teacher.backbone.layers, seed)
        self.network = self._backbone.network.to(memory_format=torch.channels_last)
        self.mean = torch.tensor(self._backbone.mean)[:, None, None]
        self.std = torch.tensor(self._backbone.std)[:, None, None]

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Outputs ``(B, C_i, h_i, w_i)`` of each layer for images ``(B, C, H, W)`` in [0, 1]."""
        return self._backbone.intermediates(self._normalised(x).contiguous(memory_format=torch.channels_last))

    def _normalised(self, x: torch.Tensor) -> torch.Tensor:
        if len(self.mean) < x.shape[1]:
            x = x.mean(1, keepdim=True)
        return (x - self.mean.to(x.device)) / self.std.to(x.device)


def cosine_distance(t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """``1 - cos`` of the feature vectors of each position, ``(B, h, w)`` in float32, of two ``(B, C, h, w)``.

    That is half of the squared distance of the vectors divided by their lengths.
    """
    return 1 - F.cosine_similarity(t.float(), s.float(), dim=1)


def flat_cosine_distance(t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """``1 - cos`` of two whole feature maps as one vector an image, ``(B,)`` in float32."""
    return 1 - F.cosine_similarity(t.float().flatten(1), s.float().flatten(1), dim=1)


def joined(maps: Sequence[torch.Tensor], join: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Maps ``(B, h_i, w_i)`` brought to the finest grid and joined over the first axis of ``(layers, B, h, w)``."""
    grid = max((map.shape[1:] for map in maps), key=lambda shape: shape[0])
    return join(torch.stack([_on_grid(map, grid) for map in maps]))


def _on_grid(map: torch.Tensor, grid: torch.Size) -> torch.Tensor:
    if map.shape[1:] == grid:
        return map
    return F.interpolate(map[:, None], size=tuple(grid), mode="bilinear", align_corners=False)[:, 0]
