"""Dinomaly: a transformer decoder with linear attention gives back frozen features through a noisy bottleneck.

Guo et al., "Dinomaly: The Less Is More Philosophy in Multi-Class Unsupervised Anomaly Detection", CVPR 2025,
https://arxiv.org/abs/2405.14325.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn
from torch.optim import Optimizer

from anomalib_med.errors import ConfigError
from anomalib_med.models.student_teacher import teaching
from anomalib_med.models.training import StepBatch, TrainedDetector

RAMP = 0.1  # share of the steps in which the mining hardens; the paper's 1000 of 10000
MINED, EASY_WEIGHT = 0.9, 0.1  # share of the positions that are easy in the end, and what is left of their gradient
HEAD = 64  # channels of an attention head
EPS = 1e-6  # of the denominator of the attention
NORM_EPS = 1e-8


class Dinomaly(TrainedDetector):
    """The frozen features of an image pass a bottleneck with dropout, and a decoder without focus gives them back.

    The anomaly map is the distance between the directions of the given and returned features, averaged over groups of
    layers. Made for transformers; layers of other networks are brought to the finest grid, and each is a group.
    """

    name = "dinomaly"
    title = "Dinomaly (Guo et al., CVPR 2025)"
    at_once = 0

    class Config(teaching.TeacherConfig):
        """Settings of Dinomaly."""

        pooling: str = "top1%"
        """How the map becomes the image score: max, mean, top<q>% or power<p>. The default is the official one."""
        batch_size: int = Field(16, ge=1)
        learning_rate: float = Field(2e-3, gt=0)
        weight_decay: float = Field(1e-4, ge=0)
        warmup: float = Field(0.01, ge=0, lt=1)
        clip_norm: float = Field(0.1, ge=0)
        width: int = Field(0, ge=0)
        """Number of channels of the decoder; 0 stands for those of a layer of a transformer, as in the paper, and for
        those of all layers together of another network."""
        blocks: int = Field(8, ge=2)
        """Number of blocks of the decoder, at least one for each group of layers (paper: 8)."""
        dropout: float = Field(0.2, ge=0, lt=1)
        """Share of the bottleneck's values that are left out in training: the noise that keeps the decoder from copying
        what it never saw (paper: 0.2, up to 0.4 for large sets)."""

    config: Config

    def build(self, shape: tuple[int, ...]) -> None:
        """Bottleneck and decoder; a ConfigError where there are fewer blocks than groups of layers."""
        c, groups = self.config, self.groups
        if c.blocks < len(groups):
            raise ConfigError(f"dinomaly: {c.blocks} blocks cannot give back {len(groups)} layers: set blocks higher")
        width = c.width or (groups[0] if self._alike else sum(groups))
        averaged = self._alike and width == groups[0]
        self.restorer = Restorer(groups, width, c.blocks, c.dropout, averaged=averaged)

    @property
    def groups(self) -> list[int]:
        """Channels of each group of layers: two of a transformer's, which are averaged, else one for each layer."""
        channels = list(self.extractor.backbone.channels)
        return channels[:2] if self._alike else channels

    @property
    def _alike(self) -> bool:
        """Whether all layers have one grid and one width, as those of a transformer."""
        b = self.extractor.backbone
        return len(set(b.strides)) == 1 and len(set(b.channels)) == 1

    def prepare(self, x: torch.Tensor) -> torch.Tensor:
        """Groups of frozen features, float16 ``(B, sum of their channels, h, w)`` on the finest grid."""
        layers = teaching.teacher_layers(self.extractor, x)
        if self._alike:
            half = len(layers) // 2
            layers = [torch.stack(group).mean(0) for group in (layers[:half], layers[half:]) if group]
        return torch.cat(teaching.on_finest_grid(layers), 1).half()

    def optimizers(self) -> dict[str, Optimizer]:
        """AdamW with the paper's settings; its gradients are clipped by `clip_norm`."""
        rate, decay = self.config.learning_rate, self.config.weight_decay
        weights = self.restorer.parameters()
        return {"all": torch.optim.AdamW(weights, rate, eps=1e-10, weight_decay=decay, amsgrad=True)}

    def training_step(self, batch: StepBatch) -> dict[str, torch.Tensor]:
        """Distance of each group as one vector an image, with the gradient of easy positions made small."""
        easy = MINED * min(1.0, batch.step / max(1.0, RAMP * batch.steps))
        pairs = zip(torch.split(batch.x, self.groups, 1), self.restorer(batch.x), strict=True)
        distances = [teaching.flat_cosine_distance(t, hardened(t, s, easy)).mean() for t, s in pairs]
        return {"distance": torch.stack(distances).mean()}

    def compute_map(self, x: torch.Tensor) -> torch.Tensor:
        """Distances ``(B, h, w)``, averaged over the groups."""

        def averaged(features: torch.Tensor) -> torch.Tensor:
            pairs = zip(torch.split(features, self.groups, 1), self.restorer(features), strict=True)
            return torch.stack([teaching.cosine_distance(t, s) for t, s in pairs]).mean(0)

        return self.each(averaged, self.prepare(x).float())


class Restorer(nn.Module):
    """Network from groups of features through the bottleneck and the decoder to the same groups.

    Each group is the mean of some of the decoder's blocks, of the last ones for the first group. Where `averaged`, the
    bottleneck sees the mean of the groups, as in the paper; else linear layers lead in and out.
    """

    def __init__(self, groups: list[int], width: int, blocks: int, dropout: float, *, averaged: bool) -> None:
        super().__init__()
        self.groups = groups
        self.averaged = averaged
        self.into = nn.Identity() if averaged else nn.Linear(sum(groups), width)
        self.out = nn.ModuleList(nn.Identity() if averaged else nn.Linear(width, channels) for channels in groups)
        noise = nn.Dropout(dropout)
        widened, narrowed = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.bottleneck = nn.Sequential(noise, widened, nn.GELU(), noise, narrowed, noise)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        for linear in (module for module in self.modules() if isinstance(module, nn.Linear)):
            nn.init.trunc_normal_(linear.weight, std=0.01, a=-0.03, b=0.03)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(self, features: torch.Tensor) -> list[torch.Tensor]:
        """``(B, sum of groups, h, w)`` to ``(B, channels, h, w)`` for each group."""
        groups = torch.split(features, self.groups, 1)
        mixed = torch.stack(groups).mean(0) if self.averaged else features
        x = self.bottleneck(self.into(mixed.flatten(2).transpose(1, 2)))
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        parts = torch.arange(len(outputs)).flip(0).tensor_split(len(self.groups))
        means = [torch.stack([outputs[i] for i in part.tolist()]).mean(0) for part in parts]
        shape = (len(features), -1, *features.shape[2:])
        return [out(mean).transpose(1, 2).reshape(shape) for out, mean in zip(self.out, means, strict=True)]


class Block(nn.Module):
    """Linear attention and an MLP, each behind a norm and beside a shortcut: ``(B, N, width)`` to the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = LinearAttention(width)
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=NORM_EPS) for _ in range(2))
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens ``(B, N, width)`` to the same shape."""
        x = x + self.attention(self.norms[0](x))
        return x.add(self.mlp(self.norms[1](x)))


class LinearAttention(nn.Module):
    """Attention whose weights are products of ``elu + 1`` of queries and keys, without a softmax: it cannot focus.

    Katharopoulos et al., "Transformers are RNNs", ICML 2020.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // HEAD)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.project = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens ``(B, N, width)`` to the same shape; finite for any tokens, those of zeros included."""
        count, tokens, width = x.shape
        with torch.autocast(x.device.type, enabled=False):  # sums over all tokens leave the range of half types
            qkv = self.qkv(x.float()).reshape(count, tokens, 3, self.heads, width // self.heads)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            q, k = F.elu(q) + 1, F.elu(k) + 1
            mixed = q @ (k.transpose(2, 3) @ v)
            weights = q @ k.sum(2)[..., None]
            attended = mixed / (weights + EPS)
        y: torch.Tensor = self.project(attended.transpose(1, 2).reshape(count, tokens, width))
        return y


def hardened(t: torch.Tensor, s: torch.Tensor, easy: float) -> torch.Tensor:
    """`s` with the gradient of its easiest positions, a share of all of the batch, made small."""
    if easy <= 0:
        return s
    with torch.no_grad():
        distances = teaching.cosine_distance(t, s)
        hard = max(1, int((1 - easy) * distances.numel()))
        threshold = distances.flatten().topk(hard).values[-1]
        is_easy = (distances < threshold)[:, None]
    return torch.where(is_easy, EASY_WEIGHT * s + (1 - EASY_WEIGHT) * s.detach(), s)
