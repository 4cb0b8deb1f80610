"""The networks of SQUID: memories, in-painting block, generator with student and teacher, discriminator.

Sizes and order as in the official code, tiangexiang/SQUID.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import nn

from anomalib_med.models.blocks import ConvBlock

HALVINGS = 4
HEADS = 8


def cut(x: torch.Tensor, parts: int) -> torch.Tensor:
    """``(B, C, H, W)`` to its ``parts x parts`` patches, row by row: ``(B * parts ** 2, C, H / parts, W / parts)``."""
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, parts, height // parts, parts, width // parts)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, height // parts, width // parts)


def join(x: torch.Tensor, parts: int) -> torch.Tensor:
    """What :func:`cut` took apart."""
    _, channels, height, width = x.shape
    x = x.reshape(-1, parts, parts, channels, height, width)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, parts * height, parts * width)


class Memory(nn.Module):
    """For each place so many slots, `learnt` or a queue of what was seen last.

    A query is answered with the mean of the `topk` slots most like it, weighted by their softmax, whose gradient is
    that of all slots.
    """

    def __init__(self, places: int, size: int, slots: int, topk: int, *, learnt: bool) -> None:
        super().__init__()
        self.topk = min(topk, slots)
        values = torch.empty(places, slots, size).uniform_(-(size**-0.5), size**-0.5)
        self.slots: torch.Tensor = nn.Parameter(values) if learnt else nn.Buffer(values)
        if not learnt:
            self.next: torch.Tensor = nn.Buffer(torch.tensor(0))

    def forward(self, query: torch.Tensor) -> torch.Tensor:
        """``(B, places, size)`` to the same shape."""
        soft = torch.einsum("bpd,psd->bps", query, self.slots).float().softmax(2)
        values, chosen = soft.detach().topk(self.topk, dim=2)
        hard = torch.zeros_like(soft).scatter(2, chosen, F.normalize(values, p=1, dim=2))
        weights = hard - soft.detach() + soft
        return torch.einsum("bps,psd->bpd", weights, self.slots.float())

    def remember(self, values: torch.Tensor) -> None:
        """Put ``(B, places, size)`` in place of the oldest slots."""
        count = self.slots.shape[1]
        values = values[-count:].detach().float().transpose(0, 1)
        rows = (self.next + torch.arange(values.shape[1], device=values.device)) % count
        # A copy: gradients of this step still need the slots as they were.
        self.slots = self.slots.index_copy(1, rows, values)
        self.next = (self.next + values.shape[1]) % count


class DecoderMemory(nn.Module):
    """Replaces each quarter of a feature map by what a learnt memory has for it."""

    def __init__(self, shape: tuple[int, int, int], slots: int, topk: int, shortcut: float) -> None:
        super().__init__()
        self.memory = Memory(4, math.prod(shape) // 4, slots, topk, learnt=True)
        self.shortcut = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, C, h, w)`` to the same shape."""
        quarters = cut(x, 2)
        y = join(self.memory(quarters.reshape(len(x), 4, -1)).reshape(quarters.shape), 2)
        return passed(y, x, self.shortcut) if self.training else y


class Inpainting(nn.Module):
    """In-paints the features ``(C, h, w)`` of each of ``parts x parts`` patches from the memories of those around it.

    `shortcut` is the share of places where, in training, the features themselves pass.
    """

    def __init__(
        self, shape: tuple[int, int, int], parts: int, shortcut: float, slots: int, topk: int, *, learnt: bool
    ) -> None:
        super().__init__()
        channels, height, width = shape
        self.parts, self.shortcut, self.learnt = parts, shortcut, learnt
        self.size, places = channels // 4 * height * width, parts**2
        self.last: torch.Tensor | None = None
        self.down = ConvBlock(channels, channels // 4, 1, activation=nn.ReLU)
        self.memory = Memory(places, self.size, slots, topk, learnt=learnt)
        self.attention = nn.MultiheadAttention(self.size, HEADS, batch_first=True)
        self.norms = nn.ModuleList(nn.LayerNorm(self.size) for _ in range(2))
        narrow = self.size // 4
        self.linear = nn.Sequential(nn.Linear(self.size, narrow), nn.ReLU(), nn.Linear(narrow, self.size))
        self.bits = int(math.log2(places)) + 1
        self.up = nn.Sequential(nn.Conv2d(channels // 4 + self.bits, channels, 1), nn.BatchNorm2d(channels), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features ``(B * parts ** 2, C, h, w)`` to the same shape."""
        parts, places = self.parts, self.parts**2
        low = self.down(x)
        query = low.reshape(-1, places, self.size)
        self.last = query.detach() if self.training else None
        read = self.memory(query)
        grid = read.transpose(1, 2).unflatten(2, (parts, parts))
        around = F.unfold(grid, 3, padding=1).reshape(len(read), self.size, 9, places).permute(0, 3, 2, 1)
        around = around[:, :, [0, 1, 2, 3, 5, 6, 7, 8]].flatten(0, 1)  # the patch itself is not among them
        attended = self.attention(query.flatten(0, 1)[:, None], around, around, need_weights=False)[0][:, 0]
        y = F.relu(self.norms[0](attended) + read.flatten(0, 1))
        y = F.relu(self.norms[1](self.linear(y)) + y).reshape(low.shape)
        y = self.up(torch.cat([y, self._places(y)], dim=1))
        return passed(y, x, self.shortcut) if self.training else y

    def remember(self) -> None:
        """Put the features of the last batch into the queue; a learnt memory has none."""
        if not self.learnt and self.last is not None:
            self.memory.remember(self.last)

    def _places(self, y: torch.Tensor) -> torch.Tensor:
        """The number of each patch in binary, as channels ``(B * parts ** 2, bits, h, w)``."""
        numbers = torch.arange(len(y), device=y.device) % self.parts**2
        code = (numbers[:, None] >> torch.arange(self.bits - 1, -1, -1, device=y.device)) & 1
        return code.to(y.dtype)[:, :, None, None].expand(-1, -1, *y.shape[2:])


class DoubleConv(nn.Module):
    """A convolution, and two more with a skip connection around them."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first = ConvBlock(inputs, outputs, 3, stride, activation=nn.ReLU)
        self.more = nn.Sequential(
            *ConvBlock(outputs, outputs, activation=nn.ReLU),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, inputs, H, W)`` to ``(B, outputs, H / stride, W / stride)``."""
        # A sixth to a quarter faster on a CPU. What was joined or cut is brought into this order here too.
        x = self.first(x).contiguous(memory_format=torch.channels_last)
        return F.relu(self.more(x) + x, inplace=True)


class UpDecoder(nn.Module):
    """Four doublings; the first two see the encoder's features, and patches are joined after them."""

    def __init__(self, channels: int, widths: list[int], parts: int) -> None:
        super().__init__()
        self.parts = parts
        inputs = [widths[4] + widths[3], widths[3] + widths[2], widths[2], widths[1]]
        self.blocks = nn.ModuleList(DoubleConv(i, o) for i, o in zip(inputs, widths[3::-1], strict=True))
        self.last = nn.Conv2d(widths[0], channels, 1)

    def forward(
        self, x: torch.Tensor, skips: list[torch.Tensor], memories: nn.ModuleList | None = None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Features of patches and of the encoder (finest first) to images in [0, 1] and the features between."""
        levels = []
        for number, block in enumerate(self.blocks):
            x = join(x, self.parts) if number == 2 else x
            x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
            x = block(torch.cat([skips[3 - number], x], dim=1) if number < 2 else x)
            if memories is not None and number < 2:
                x = memories[number](x)
            levels.append(x)
        return self.last(x).float().sigmoid(), levels


class Generated(NamedTuple):
    """In-painted images, and in training those of the teacher and features of student and teacher, level by level."""

    image: torch.Tensor
    taught: torch.Tensor
    levels: Sequence[tuple[torch.Tensor, torch.Tensor]] = ()


class SquidNetwork(nn.Module):
    """The generator: encoder, in-painting, and the decoders of student and teacher.

    The sides of an image ``(C, H, W)`` are multiples of ``16 * parts``; `width` are the channels at the first
    resolution. The other settings are those of :class:`Inpainting`.
    """

    def __init__(
        self, shape: tuple[int, ...], width: int, parts: int, shortcut: float, slots: int, topk: int, *, learnt: bool
    ) -> None:
        super().__init__()
        self.parts = parts
        channels, height, wide = shape[0], shape[1] // parts, shape[2] // parts
        widths = [width << n for n in range(HALVINGS + 1)]
        self.first = DoubleConv(channels, width)
        self.down = nn.ModuleList(DoubleConv(i, o, 2) for i, o in pairwise(widths))
        coarse = (widths[4], height >> 4, wide >> 4)
        self.inpainting = Inpainting(coarse, parts, shortcut, slots, topk, learnt=learnt)
        self.student, self.teacher = (UpDecoder(channels, widths, parts) for _ in range(2))
        shapes = ((widths[n], height >> n, wide >> n) for n in (3, 2))
        self.memories = nn.ModuleList(DecoderMemory(shape, slots, topk, shortcut) for shape in shapes)

    def forward(self, x: torch.Tensor, *, teach: bool = False) -> Generated:
        """Images ``(B, C, H, W)`` to in-painted ones, and with `teach` to those of the teacher."""
        features = self.first(cut(x, self.parts))
        skips = []
        for block in self.down:
            skips.append(features)
            features = block(features)
        image, levels = self.student(self.inpainting(features), skips, self.memories)
        if not teach:
            return Generated(image, image)
        # The teacher sees the features themselves, and leaves the encoder alone.
        taught, shown = self.teacher(features.detach(), [skip.detach() for skip in skips])
        return Generated(image, taught, [(a, b.detach()) for a, b in zip(levels, shown, strict=True)])


class Discriminator(nn.Module):
    """Five halvings and one number: high for images that look real."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number, (i, o) in enumerate(((shape[0], 16), (16, 32), (32, 64), (64, 128), (128, 128))):
            layers += [nn.Conv2d(i, o, 5, 2, 2), *([nn.BatchNorm2d(o)] if number else []), nn.LeakyReLU(0.2)]
        self.convolutions = nn.Sequential(*layers)
        self.last = nn.Linear(128 * (shape[1] >> 5) * (shape[2] >> 5), 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``(B, C, H, W)`` to ``(B, 1)``."""
        return cast(torch.Tensor, self.last(self.convolutions(x).flatten(1)))

    def judge(self, x: torch.Tensor) -> torch.Tensor:
        """The same ``(B,)`` for scoring: each image is normalised by its own mean and variance in every batch norm.

        So it is in the official code, where the discriminator stays in training mode and a test batch is one image.
        """
        for layer in self.convolutions:
            if isinstance(layer, nn.BatchNorm2d):
                x = F.instance_norm(x, weight=layer.weight, bias=layer.bias, eps=layer.eps)
            else:
                x = layer(x)
        return cast(torch.Tensor, self.last(x.flatten(1)).flatten())


def passed(inpainted: torch.Tensor, features: torch.Tensor, share: float) -> torch.Tensor:
    """In-painted features, and at a random share of the places the features themselves (the masked shortcut)."""
    through = torch.rand(len(features), 1, *features.shape[2:]).to(features.device) < share
    return torch.where(through, features, inpainted.to(features.dtype))
