"""Masked autoencoder: a vision transformer in-paints most of an image from a few of its patches.

Masked autoencoder: He et al., CVPR 2022, https://arxiv.org/abs/2111.06377; on medical anomalies Georgescu, KES 2023,
https://arxiv.org/abs/2307.07534. Memory in the attention of the encoder and cross attention to all of its levels: Tian
et al., "Unsupervised Anomaly Detection in Medical Images with a Memory-augmented Multi-level Cross-attentional Masked
Autoencoder" (MemMC-MAE), MLMI 2023, https://arxiv.org/abs/2203.11725; its code was never released, and what its
abstract leaves open is as in Cornia et al., "Meshed-Memory Transformer for Image Captioning", CVPR 2020.
"""

import math
from collections.abc import Iterator
from typing import Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import nn

from anomalib_med.models.inpainting.holes import cell_holes, inpaint_everywhere, seeded, smooth_fill
from anomalib_med.models.inpainting.residuals import NormalResiduals, mean_filter
from anomalib_med.models.losses import absolute_error, squared_error, ssim_error
from anomalib_med.models.training.normals import StepBatch
from anomalib_med.models.training.schedule import TrainingConfig
from anomalib_med.models.training.trainer import TrainedDetector

ERRORS = {"l1": absolute_error, "l2": squared_error, "ssim": ssim_error}


class MaskedAutoencoder(TrainedDetector):
    """Hides most patches of an image and in-paints them from the rest, until every patch has been hidden.

    The anomaly map is the error between the image and the mean of what was in-painted.
    """

    name = "mae"
    title = "Masked autoencoder, with memory and multi-level cross attention (MemMC-MAE, Tian et al., MLMI 2023)"
    input_size = 128
    at_once = 0

    class Config(TrainingConfig):
        """Settings of the masked autoencoder.

        Parameters
        ----------
        memory
            Learnt keys and values that every attention of the encoder has beside those of the image; 0: none.
        multilevel
            Whether each block of the decoder looks at all levels of the encoder; False: the plain masked autoencoder's
            decoder.
        patch
            Side of a patch in pixels.
        parts
            Patches are split in so many sets; one is seen at a time, and the others are hidden.
        repeats
            Splits over which the in-painted image is averaged.
        score
            Error that makes the map: "l1", "l2" or "ssim".
        window
            Side of the square over which the map is averaged, in pixels, odd.
        relative
            Whether the map counts in deviations above what normals have at that place; False: as in the paper.
        width, depth, heads
            Of the encoder.
        decoder_width, decoder_depth
            Of the decoder.
        """

        pooling: str = "top1%"
        epochs: int = Field(400, ge=1)
        batch_size: int = Field(64, ge=1)
        learning_rate: float = Field(5e-4, gt=0)
        weight_decay: float = Field(0.05, ge=0)
        schedule: Literal["constant", "cosine"] = "cosine"
        warmup: float = Field(0.05, ge=0, lt=1)
        memory: int = Field(64, ge=0)
        multilevel: bool = True
        patch: int = Field(8, ge=1)
        parts: int = Field(4, ge=2)
        repeats: int = Field(2, ge=1)
        score: Literal["l1", "l2", "ssim"] = "ssim"
        window: int = Field(9, ge=1)
        relative: bool = False
        width: int = Field(192, ge=4, multiple_of=4)
        depth: int = Field(6, ge=1)
        heads: int = Field(3, ge=1)
        decoder_width: int = Field(96, ge=4, multiple_of=4)
        decoder_depth: int = Field(2, ge=1)

        @model_validator(mode="after")
        def _fitting(self) -> "MaskedAutoencoder.Config":
            if self.width % self.heads or self.decoder_width % self.heads:
                raise ValueError("width and decoder_width must be multiples of heads")
            if self.window % 2 == 0:
                raise ValueError("the window must be odd, to have a middle")
            return self

        @property
        def multiple(self) -> int:
            """The sides are cut into patches."""
            return self.patch

    config: Config

    def build(self, shape: tuple[int, ...]) -> None:
        """The transformer, for images ``(C, H, W)``."""
        c = self.config
        self.transformer = MaskedTransformer(
            shape, c.patch, (c.width, c.depth), (c.decoder_width, c.decoder_depth), c.heads, c.memory, c.multilevel
        )
        self.normal = NormalResiduals((shape[1], shape[2]))

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """AdamW as for masked autoencoders; vectors (biases, norms) do not decay."""
        c = self.config
        weights = list(self.transformer.parameters())
        groups = [
            {"params": [p for p in weights if p.ndim > 1], "weight_decay": c.weight_decay},
            {"params": [p for p in weights if p.ndim < 2], "weight_decay": 0.0},
        ]
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

    def after_training(self, batches: Iterator[StepBatch]) -> None:
        """What residuals of normals are like."""
        self.normal.learn(self.residual(batch.x) for batch in batches)

    def inpaint(self, x: torch.Tensor, holes: torch.Tensor) -> torch.Tensor:
        """Fill holes, bool ``(B, H, W)``, of images ``(B, C, H, W)``; outside them the images stay as they are.

        A patch that a hole touches is hidden as a whole.
        """
        x, holes = x.to(self.device), holes.to(self.device)
        return torch.where(holes[:, None], self._network(x, holes), x)

    def inpainted(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``(B, C, H, W)`` in-painted everywhere, each pixel from passes in which it was hidden."""
        c = self.config
        grid = x.shape[2] // c.patch, x.shape[3] // c.patch
        generator = seeded(c.seed)
        seen = torch.cat([cell_holes(grid, 1, c.parts, generator) for _ in range(c.repeats)])
        holes = (~seen).repeat_interleave(c.patch, 1).repeat_interleave(c.patch, 2)
        return inpaint_everywhere(self._network, x, holes)

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        """Error ``(B, H, W)`` of the in-painted image, averaged over channels and over `window`."""
        c = self.config

        def difference(one: torch.Tensor) -> torch.Tensor:
            return mean_filter(ERRORS[c.score](one, self.inpainted(one)).mean(1), c.window)

        return self.each(difference, x)

    def compute_map(self, x: torch.Tensor) -> torch.Tensor:
        """The residual ``(B, H, W)``, relative to those of normals or as it is."""
        residual = self.residual(x)
        return self.normal(residual) if self.config.relative else residual

    def _network(self, x: torch.Tensor, holes: torch.Tensor) -> torch.Tensor:
        touched = F.max_pool2d(holes[:, None].float(), self.config.patch).flatten(1) > 0
        order = touched.float().argsort(dim=1, stable=True)  # those to be seen come first
        counts = (~touched).sum(1).tolist()
        if len(set(counts)) == 1:
            added = self.transformer(x, order[:, : counts[0]])
        else:
            each = [self.transformer(x[i, None], order[i, None, :count]) for i, count in enumerate(counts)]
            added = torch.cat(each)
        # The transformer adds to a smooth fill, from which it starts.
        y: torch.Tensor = smooth_fill(x, self._pixels(touched)) + added
        return y

    def _pixels(self, patches: torch.Tensor) -> torch.Tensor:
        """Patches ``(B, N)`` as pixels ``(B, H, W)``."""
        grid = patches.reshape(-1, *self.transformer.grid)
        size = self.config.patch
        pixels: torch.Tensor = grid.repeat_interleave(size, 1).repeat_interleave(size, 2)
        return pixels


class MaskedTransformer(nn.Module):
    """Transformer that gives a whole image from some of its patches.

    Parameters
    ----------
    shape
        Of an image, ``(C, H, W)``.
    patch
        Side of a patch in pixels.
    encoder, decoder
        Width and depth.
    heads
        Of every attention.
    memory
        Slots of every attention of the encoder.
    multilevel
        Whether the decoder looks at all levels of the encoder.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        patch: int,
        encoder: tuple[int, int],
        decoder: tuple[int, int],
        heads: int,
        memory: int,
        multilevel: bool,
    ) -> None:
        super().__init__()
        self.channels, self.patch = shape[0], patch
        self.grid = shape[1] // patch, shape[2] // patch
        self.patches = self.grid[0] * self.grid[1]
        self.embed = nn.Linear(shape[0] * patch**2, encoder[0])
        self.encoder = nn.ModuleList(Block(encoder[0], heads, memory=memory) for _ in range(encoder[1]))
        self.norms = nn.ModuleList(nn.LayerNorm(encoder[0]) for _ in range(encoder[1]))
        self.narrow = nn.Linear(encoder[0], decoder[0])
        self.hidden = nn.Parameter(torch.zeros(1, 1, decoder[0]))
        levels, width = (encoder[1], encoder[0]) if multilevel else (0, 0)
        self.decoder = nn.ModuleList(
            Block(decoder[0], heads, levels=levels, level_width=width) for _ in range(decoder[1])
        )
        self.last = nn.Sequential(nn.LayerNorm(decoder[0]), nn.Linear(decoder[0], shape[0] * patch**2))
        nn.init.zeros_(cast(nn.Linear, self.last[1]).weight)
        self.place: torch.Tensor
        self.decoder_place: torch.Tensor
        self.register_buffer("place", positions(self.grid, encoder[0]), persistent=False)
        self.register_buffer("decoder_place", positions(self.grid, decoder[0]), persistent=False)

    def cut(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``(B, C, H, W)`` to patches ``(B, N, C * patch ** 2)``."""
        return F.unfold(x, self.patch, stride=self.patch).transpose(1, 2)

    def forward(self, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """Images ``(B, C, H, W)`` and numbers ``(B, V)`` of the patches to be seen, to images ``(B, C, H, W)``."""
        tokens = self.embed(_taken(self.cut(x), seen)) + self.place[seen]
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
        patches = self.last(everything).float().transpose(1, 2)
        size = self.grid[0] * self.patch, self.grid[1] * self.patch
        return F.fold(patches, size, self.patch, stride=self.patch)


class Block(nn.Module):
    """Self-attention, cross attention to levels where there are any, and two linear layers; norms come first."""

    def __init__(self, width: int, heads: int, *, memory: int = 0, levels: int = 0, level_width: int = 0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, width, heads, memory)
        self.cross = Attention(width, level_width, heads) if levels else None
        self.cross_norm = nn.LayerNorm(width)
        self.gates = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(levels))
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: torch.Tensor, levels: list[torch.Tensor] | None = None) -> torch.Tensor:
        """Tokens ``(B, N, width)`` and levels, each ``(B, V, level_width)``, to tokens."""
        normed = self.norm(x)
        x = x + self.attention(normed, normed)
        if self.cross is not None and levels is not None:
            query = self.cross_norm(x)
            total = torch.zeros_like(query)
            for gate, level in zip(self.gates, levels, strict=True):
                found = self.cross(query, level)
                total = total + gate(torch.cat([query, found], dim=2)).sigmoid() * found
            x = x + total / math.sqrt(len(levels))
        x = x + self.mlp(x)
        return x


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
        query, key, value = (
            v.unflatten(2, (self.heads, -1)).transpose(1, 2) for v in (self.query(x), *key_value.chunk(2, dim=2))
        )
        y: torch.Tensor = self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        return y


def positions(grid: tuple[int, int], width: int) -> torch.Tensor:
    """Sines and cosines of row and column, ``(rows * columns, width)``; width is a multiple of 4."""
    rates = 10_000 ** (-torch.arange(width // 4) / (width // 4))
    rows, columns = (torch.arange(side)[:, None] * rates for side in grid)
    waves = [torch.cat([angle.sin(), angle.cos()], dim=1) for angle in (rows, columns)]
    down = waves[0][:, None].expand(-1, grid[1], -1)
    across = waves[1][None].expand(grid[0], -1, -1)
    return torch.cat([down, across], dim=2).flatten(0, 1)


def _taken(tokens: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return tokens.gather(1, rows[:, :, None].expand(-1, -1, tokens.shape[2]))
