"""Masked autoencoder: a vision transformer in-paints most of an image from a few of its patches.

He et al., CVPR 2022; with memory and multi-level cross attention as in MemMC-MAE, Tian et al., MLMI 2023,
https://arxiv.org/abs/2203.11725, and where its abstract leaves something open as in Cornia et al., CVPR 2020.
"""

import math
from typing import cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import nn

from anomalib_med.models.inpainting.holes import cell_holes, inpaint_everywhere, seeded, smooth_fill
from anomalib_med.models.inpainting.residuals import HoleFiller, ResidualConfig, Window, mean_error
from anomalib_med.models.losses import PixelError, squared_error
from anomalib_med.models.training import Schedule, StepBatch


class MaskedAutoencoder(HoleFiller):
    """Hides most patches of an image and in-paints them from the rest, until every patch has been hidden."""

    name = "mae"
    title = "Masked autoencoder, with memory and multi-level cross attention (MemMC-MAE, Tian et al., MLMI 2023)"

    class Config(ResidualConfig):
        """Settings of the masked autoencoder."""

        pooling: str = "top1%"
        epochs: int = Field(400, ge=1)
        batch_size: int = Field(64, ge=1)
        learning_rate: float = Field(5e-4, gt=0)
        weight_decay: float = Field(0.05, ge=0)
        schedule: Schedule = "cosine"
        warmup: float = Field(0.05, ge=0, lt=1)
        memory: int = Field(64, ge=0)
        """How many learnt keys and values every attention of the encoder has beside those of the image, or 0; ours."""
        multilevel: bool = True
        """Whether each block of the decoder looks at all levels of the encoder, as in MemMC-MAE."""
        patch: int = Field(8, ge=1)
        """Side of a patch in pixels. The papers have 16, at 224 pixels."""
        parts: int = Field(4, ge=2)
        """How many sets the patches are split into, of which one is seen at a time and the others are hidden."""
        repeats: int = Field(2, ge=1)
        """Over how many splits the in-painted image is averaged; ours."""
        score: PixelError = "ssim"
        """Error that the map shows: "l2", "l1" or "ssim", the default of Georgescu."""
        window: Window = 9
        """Side of the square over which the map is averaged, in pixels, odd; ours."""
        relative: bool = False
        width: int = Field(192, ge=4, multiple_of=4)
        """Width of the encoder, a multiple of 4 and of `heads`. These sizes are ours; Georgescu has a ViT-Base."""
        depth: int = Field(6, ge=1)
        """How many blocks the encoder has."""
        heads: int = Field(3, ge=1)
        """How many heads each attention has."""
        decoder_width: int = Field(96, ge=4, multiple_of=4)
        """Width of the decoder, a multiple of 4 and of `heads`."""
        decoder_depth: int = Field(2, ge=1)
        """How many blocks the decoder has."""

        @model_validator(mode="after")
        def _fitting(self) -> "MaskedAutoencoder.Config":
            if self.width % self.heads or self.decoder_width % self.heads:
                raise ValueError("width and decoder_width must be multiples of heads")
            return self

        @property
        def multiple(self) -> int:
            """The sides are cut into patches."""
            return self.patch

    config: Config

    def build(self, shape: tuple[int, ...]) -> None:
        """Build the transformer."""
        self.transformer = MaskedTransformer(shape, self.config)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """AdamW as for masked autoencoders; vectors (biases, norms) do not decay."""
        c = self.config
        matrices, vectors = ([p for p in self.transformer.parameters() if (p.ndim > 1) is m] for m in (True, False))
        groups = [{"params": matrices, "weight_decay": c.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        return {"all": torch.optim.AdamW(groups, c.learning_rate, betas=(0.9, 0.95))}

    def training_step(self, batch: StepBatch) -> dict[str, torch.Tensor]:
        """Squared error of the hidden patches."""
        x, patches = batch.x, self.transformer.patches
        order = torch.rand(len(x), patches).argsort(1).to(x.device)
        seen = order[:, : max(1, patches // self.config.parts)]
        hidden = torch.ones(len(x), patches, device=x.device).scatter(1, seen, 0.0)
        y = smooth_fill(x, self._pixels(hidden > 0)) + self.transformer(x, seen)
        error = self.transformer.cut(squared_error(x, y)).mean(2)
        return {"hidden": (error * hidden).sum() / hidden.sum()}

    def inpainted(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``(B, C, H, W)`` in-painted everywhere, each pixel from passes in which it was hidden."""
        c, generator, shape = self.config, seeded(self.config.seed), (x.shape[2], x.shape[3])
        seen = torch.cat([cell_holes(shape, c.patch, c.parts, generator) for _ in range(c.repeats)])
        return inpaint_everywhere(self.network, x, ~seen)

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        """Error ``(B, H, W)`` of the in-painted image, averaged over channels and over `window`."""
        return mean_error(self.config.score, x, self.inpainted(x), self.config.window)

    def network(self, x: torch.Tensor, holes: torch.Tensor) -> torch.Tensor:
        """What the transformer adds to a smooth fill, and that fill; a patch that a hole touches is hidden whole."""
        touched = F.max_pool2d(holes[:, None].float(), self.config.patch).flatten(1) > 0
        order = touched.float().argsort(dim=1, stable=True)  # those to be seen come first
        counts = (~touched).sum(1).tolist()
        if len(set(counts)) == 1:
            added = self.transformer(x, order[:, : counts[0]])
        else:
            added = torch.cat([self.transformer(x[i, None], order[i, None, :n]) for i, n in enumerate(counts)])
        return smooth_fill(x, self._pixels(touched)) + cast(torch.Tensor, added)

    def _pixels(self, patches: torch.Tensor) -> torch.Tensor:
        """Patches ``(B, N)`` as pixels ``(B, H, W)``."""
        grid, size = patches.reshape(-1, *self.transformer.grid), self.config.patch
        return grid.repeat_interleave(size, 1).repeat_interleave(size, 2)


class MaskedTransformer(nn.Module):
    """Transformer that gives a whole image ``(C, H, W)`` from some of its patches."""

    def __init__(self, shape: tuple[int, ...], c: MaskedAutoencoder.Config) -> None:
        super().__init__()
        self.patch, self.grid = c.patch, (shape[1] // c.patch, shape[2] // c.patch)
        self.patches, flat = math.prod(self.grid), shape[0] * c.patch**2
        self.embed = nn.Linear(flat, c.width)
        self.encoder = nn.ModuleList(Block(c.width, c.heads, memory=c.memory) for _ in range(c.depth))
        self.norms = nn.ModuleList(nn.LayerNorm(c.width) for _ in range(c.depth))
        self.narrow = nn.Linear(c.width, c.decoder_width)
        self.hidden = nn.Parameter(torch.zeros(1, 1, c.decoder_width))
        levels = c.depth if c.multilevel else 0
        blocks = (Block(c.decoder_width, c.heads, levels=levels, level_width=c.width) for _ in range(c.decoder_depth))
        self.decoder = nn.ModuleList(blocks)
        last = nn.Linear(c.decoder_width, flat)
        nn.init.zeros_(last.weight)
        self.last = nn.Sequential(nn.LayerNorm(c.decoder_width), last)
        self.place = nn.Buffer(positional_embedding(self.grid, c.width), persistent=False)
        self.decoder_place = nn.Buffer(positional_embedding(self.grid, c.decoder_width), persistent=False)

    def cut(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``(B, C, H, W)`` to patches ``(B, N, C * patch ** 2)``."""
        return F.unfold(x, self.patch, stride=self.patch).transpose(1, 2)

    def forward(self, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """Images ``(B, C, H, W)`` and numbers ``(B, V)`` of the patches to be seen, to images ``(B, C, H, W)``."""
        patches = self.cut(x)
        tokens = self.embed(patches.gather(1, seen[:, :, None].expand(-1, -1, patches.shape[2]))) + self.place[seen]
        levels = []
        for block, norm in zip(self.encoder, self.norms, strict=True):
            tokens = block(tokens)
            levels.append(norm(tokens))
        narrow = self.narrow(levels[-1])
        where = seen[:, :, None].expand(-1, -1, narrow.shape[2])
        everything = self.hidden.to(narrow.dtype).expand(len(x), self.patches, -1).scatter(1, where, narrow)
        everything = everything + self.decoder_place
        for block in self.decoder:
            everything = block(everything, levels)
        return F.fold(self.last(everything).float().transpose(1, 2), x.shape[2:], self.patch, stride=self.patch)


class Block(nn.Module):
    """Self-attention, cross attention to levels where there are any, and two linear layers; norms come first."""

    def __init__(self, width: int, heads: int, *, memory: int = 0, levels: int = 0, level_width: int = 0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, width, heads, memory)
        self.cross = Attention(width, level_width, heads) if levels else None
        self.cross_norm = nn.LayerNorm(width)
        self.gates = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(levels))
        wide = 4 * width
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, wide), nn.GELU(), nn.Linear(wide, width))

    def forward(self, x: torch.Tensor, levels: list[torch.Tensor] | None = None) -> torch.Tensor:
        """Tokens ``(B, N, width)`` and levels, each ``(B, V, level_width)``, to tokens."""
        normed = self.norm(x)
        x = x + self.attention(normed, normed)
        if self.cross is not None and levels is not None:
            query = self.cross_norm(x)
            total = torch.zeros_like(query)
            for gate, level in zip(self.gates, levels, strict=True):
                attended = self.cross(query, level)
                total = total + gate(torch.cat([query, attended], dim=2)).sigmoid() * attended
            x = x + total / math.sqrt(len(levels))
        return cast(torch.Tensor, x + self.mlp(x))


class Attention(nn.Module):
    """Attention of tokens to others and to a learnt memory: ``softmax(Q [K; M_k]^T) [V; M_v]``."""

    def __init__(self, width: int, other_width: int, heads: int, memory: int = 0) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(other_width, 2 * width)
        self.out = nn.Linear(width, width)
        self.memory = nn.Parameter(torch.randn(1, memory, 2 * width) / math.sqrt(width)) if memory else None

    def forward(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """``(B, N, width)`` and ``(B, V, other_width)`` to ``(B, N, width)``."""
        key_value = self.key_value(other)
        if self.memory is not None:
            key_value = torch.cat([key_value, self.memory.to(key_value.dtype).expand(len(x), -1, -1)], dim=1)
        parts = (self.query(x), *key_value.chunk(2, dim=2))
        query, key, value = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        attended = F.scaled_dot_product_attention(query, key, value)
        return cast(torch.Tensor, self.out(attended.transpose(1, 2).flatten(2)))


def positional_embedding(grid: tuple[int, int], width: int) -> torch.Tensor:
    """Sines and cosines of row and column, ``(rows * columns, width)``; width is a multiple of 4."""
    rates = 10_000 ** (-torch.arange(width // 4) / (width // 4))
    rows, columns = (torch.arange(side)[:, None] * rates for side in grid)
    of_row, of_column = (torch.cat([angle.sin(), angle.cos()], dim=1) for angle in (rows, columns))
    down, across = of_row[:, None].expand(-1, grid[1], -1), of_column[None].expand(grid[0], -1, -1)
    return torch.cat([down, across], dim=2).flatten(0, 1)
