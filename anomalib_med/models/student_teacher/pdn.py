"""The networks of EfficientAD: patch description networks, and the autoencoder beside them.

Batzner et al., "EfficientAD", WACV 2024, https://arxiv.org/abs/2303.14535, tables 6 to 8 of its appendix.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import nn

from anomalib_med.errors import ConfigError
from anomalib_med.models.student_teacher import teaching

Network = Literal["T", "S", "M"]
WIDTHS: dict[Network, int] = {"T": 32, "S": 128, "M": 256}
STRIDE = 4  # pixels from one cell to the next
SMALLEST = 64  # side of an input in pixels; a cell sees 33
MEAN, STD = 0.5, 0.25  # of grey images
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PDN(nn.Sequential):
    """Patch description network: each output cell sees a patch of 33 x 33 pixels and nothing else.

    ``(B, inputs, H, W)`` gives ``(B, outputs, h, w)`` without padding, 56 x 56 of 256 x 256. "T" is the paper's "S" of
    a quarter of its width. Weights are named as in the common re-implementation, whose teachers therefore fit.
    """

    def __init__(self, network: Network, inputs: int, outputs: int) -> None:
        w = WIDTHS[network]
        start = [nn.Conv2d(inputs, w, 4), nn.ReLU(inplace=True), nn.AvgPool2d(2)]
        start += [nn.Conv2d(w, 2 * w, 4), nn.ReLU(inplace=True), nn.AvgPool2d(2)]
        deep = [nn.Conv2d(2 * w, 2 * w, 3), nn.ReLU(inplace=True), nn.Conv2d(2 * w, outputs, 4)]
        if network == "M":
            deep = [nn.Conv2d(2 * w, 2 * w, 1), nn.ReLU(inplace=True), *deep]
            deep += [nn.ReLU(inplace=True), nn.Conv2d(outputs, outputs, 1)]
        super().__init__(*start, *deep)
        self.to(memory_format=torch.channels_last)  # two thirds of the time on a CPU


def grid_of(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the output of a PDN; a ConfigError for an input too small for it."""
    if min(height, width) < SMALLEST:
        raise ConfigError(f"efficientad needs inputs of at least {SMALLEST} pixels, got {height} x {width}: set size")
    rows, columns = (((n - 3) // 2 - 3) // 2 - 5 for n in (height, width))
    return rows, columns


def margins(size: int, cells: int) -> tuple[int, int]:
    """Cells of a grid of stride 4 that a PDN leaves out before its first and behind its last: 4 and 4."""
    missing = size // STRIDE - cells
    return missing // 2, missing - missing // 2


class Teacher(nn.Module):
    """A distilled PDN as a frozen teacher; one of three input channels sees images as networks of ImageNet do."""

    def __init__(self, weights: Mapping[str, torch.Tensor], source: str) -> None:
        super().__init__()
        self.network = pdn_of(weights, source).requires_grad_(False)
        self.inputs: int = weights["0.weight"].shape[1]
        self.channels: int = list(self.network.parameters())[-1].shape[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features ``(B, channels, h, w)`` of images ``(B, C, H, W)`` in [0, 1]."""
        mean, std = IMAGENET if self.inputs == 3 else ((MEAN,), (STD,))
        return cast(torch.Tensor, self.network(teaching.normalised(x, mean, std)))


def pdn_of(weights: Mapping[str, torch.Tensor], source: str) -> PDN:
    """The PDN that these weights belong to; a ConfigError, which names `source`, where they are not those of a PDN."""
    try:
        first, last = weights["0.weight"], weights["12.weight" if "12.weight" in weights else "8.weight"]
        network = next(n for n, w in WIDTHS.items() if w == len(first) and (n == "M") == ("12.weight" in weights))
        pdn = PDN(network, first.shape[1], len(last))
        pdn.load_state_dict({key: weights[key] for key in pdn.state_dict()})
        if first.shape[1] in (1, 3):
            return pdn
    except (KeyError, StopIteration, RuntimeError, IndexError):
        pass  # no network of this kind: some weights are missing or have another shape
    raise ConfigError(
        f'teacher "{source}" holds no patch description network: expected 0.weight, 3.weight, 6.weight, ... of '
        f"convolutions as in EfficientAD-S or -M, found {', '.join(list(weights)[:4]) or 'nothing'}; "
        "make one with models/efficientad/distil.py"
    )


def normalised(x: torch.Tensor) -> torch.Tensor:
    """Images in [0, 1] as student, autoencoder and a teacher of one channel see them."""
    return (x - MEAN) / STD


class Autoencoder(nn.Module):
    """Network from an image, of sides `size` that 32 divides, through a vector of 64 numbers to the teacher's grid."""

    WIDE, NARROW, DROPOUT = 64, 32, 0.2
    SIZES = (3, 8, 15, 32, 63, 127)  # of the decoder, for 256 pixels

    def __init__(self, inputs: int, outputs: int, size: Sequence[int], grid: tuple[int, int]) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for i, o in pairwise((inputs, self.NARROW, self.NARROW, self.WIDE, self.WIDE, self.WIDE)):
            parts += [nn.Conv2d(i, o, 4, 2, 1), nn.ReLU(inplace=True)]
        # The paper's 8 x 8 convolution is the whole grid that is left of 256 pixels.
        parts.append(nn.Conv2d(self.WIDE, self.WIDE, (size[0] // 32, size[1] // 32)))
        for side in self.SIZES:
            parts.append(nn.Upsample(tuple(max(1, round(side * n / 256)) for n in size), mode="bilinear"))
            parts += [nn.Conv2d(self.WIDE, self.WIDE, 4, 1, 2), nn.ReLU(inplace=True), nn.Dropout(self.DROPOUT)]
        parts += [nn.Upsample(grid, mode="bilinear"), nn.Conv2d(self.WIDE, self.WIDE, 3, 1, 1)]
        parts += [nn.ReLU(inplace=True), nn.Conv2d(self.WIDE, outputs, 3, 1, 1)]
        self.network = nn.Sequential(*parts).to(memory_format=torch.channels_last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, inputs, H, W)`` to ``(B, outputs, h, w)``."""
        return cast(torch.Tensor, self.network(x))


def on_pdn_grid(features: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Features ``(B, D, h, w)`` of a whole image of this size, at the places that the cells of a PDN look at."""
    rows, columns = grid_of(height, width)
    (top, bottom), (left, right) = margins(height, rows), margins(width, columns)
    fine = F.interpolate(features.float(), (height // STRIDE, width // STRIDE), mode="bilinear", align_corners=False)
    return fine[:, :, top : fine.shape[2] - bottom, left : fine.shape[3] - right]
