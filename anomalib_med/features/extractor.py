"""The feature-extraction core: images in, one grid of half-precision feature vectors an image out."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from anomalib_med.errors import ConfigError
from anomalib_med.features import radlite
from anomalib_med.features.backbones import State, create, weight_hash
from anomalib_med.features.cache import FeatureCache
from anomalib_med.features.fusion import fuse_batch_norms
from anomalib_med.features.grid import to_grid

Precision = Literal["float32", "bfloat16", "float16"]
CPU_BATCH = 4  # more does not help two to eight cores, and less memory stays in their caches
GPU_BATCH = 32


class FeatureExtractor:
    """A frozen backbone whose layers are brought to one grid and joined; see :func:`.backbones.create` for its choice.

    Every feature is rounded to float16, on every device, with or without a cache: what a bank was built from is what
    a score is computed from. Each image is computed alike whatever the batch.

    Parameters
    ----------
    neighbourhood
        Odd side in cells of the average taken around each cell of each layer; 1 for none (PatchCore: 3).
    scales
        Factors of the input's size, rounded to :attr:`multiple`, at which the backbone sees each image; their features
        are joined cell by cell on the grid of the first. ``(1, 0.5)`` adds what the network sees around each cell.
    precision
        Type of the network's arithmetic. "float32" gives the same ranking on every device; the half types are faster
        and shift scores by about one part in a thousand.
    """

    def __init__(
        self,
        backbone: str = radlite.NAME,
        *,
        layers: tuple[str, ...] = (),
        weights: str = "pretrained",
        neighbourhood: int = 3,
        scales: tuple[float, ...] = (1.0,),
        precision: Precision = "float32",
        seed: int = 0,
        state: State | None = None,
    ) -> None:
        self.backbone = create(backbone, layers=layers, weights=weights, state=state, seed=seed)
        network = self.backbone.network
        self.weight_hash = weight_hash(network)
        self._state = {k: v.clone() for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
        self.neighbourhood = neighbourhood
        self.scales = scales
        self.precision: Precision = precision
        self.cache: FeatureCache | None = None  # where features are taken from and kept; None to compute them each time
        side = 8 * self.multiple
        fuse_batch_norms(network, torch.zeros(1, len(self.backbone.mean), side, side))
        self.to(torch.device("cpu"))

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each map that is joined: those of the layers at the first scale, then those at the next."""
        return self.backbone.channels * len(self.scales)

    @property
    def channels(self) -> int:
        """Length D of a feature vector."""
        return sum(self.widths)

    @property
    def multiple(self) -> int:
        """Rows and columns of an input should be multiples of this."""
        return max(self.backbone.strides)

    @contextmanager
    def keeping(self, cache: FeatureCache) -> Iterator[None]:
        """Use a cache inside the block, unless another one is in use."""
        before = self.cache
        self.cache = before or cache
        try:
            yield
        finally:
            self.cache = before

    def key(self, scale: float = 1.0) -> str:
        """Hash of everything but the image that the features of one scale depend on."""
        b = self.backbone
        text = f"{b.name} {b.layers} {self.weight_hash} {b.mean} {b.std} {self.neighbourhood} {self.precision}"
        return hashlib.sha256((text if scale == 1 else f"{text} {scale}").encode()).hexdigest()

    @property
    def batch_size(self) -> int:
        """Images at a time that suit the device."""
        return CPU_BATCH if self.device.type == "cpu" else GPU_BATCH

    def to(self, device: torch.device) -> "FeatureExtractor":
        """Move to a device."""
        self.device = device
        network: nn.Module = self.backbone.network
        network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        statistics = self.backbone.mean, self.backbone.std
        self._mean, self._std = (torch.tensor(values, device=device)[:, None, None] for values in statistics)
        return self

    def state(self) -> dict[str, torch.Tensor]:
        """The weights as loaded, for saving with a model; float16 where that loses nothing."""
        exact = {k: v.dtype == torch.float32 and torch.equal(v.half().float(), v) for k, v in self._state.items()}
        return {k: v.half() if exact[k] else v for k, v in self._state.items()}

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Features of a batch, float32 ``(B, C, H, W)`` in [0, 1] with one or three channels; ConfigError for others.

        A grey backbone sees the mean of the channels, which for several CT windows is one tone curve over all of them.
        Returns float16 ``(B, D, h, w)`` on the extractor's device, with the h and w of the finest layer at the first
        scale.
        """
        return _joined([self._kept(x, scale) for scale in self.scales])

    def extract(self, x: torch.Tensor) -> torch.Tensor:
        """The same features, computed and not kept in the cache: for images that will not come again."""
        return _joined([self._at(x, scale) for scale in self.scales])

    def _kept(self, x: torch.Tensor, scale: float) -> torch.Tensor:
        """Features at one scale from the cache, and into it where it lacks them."""
        if self.cache is None:
            return self._at(x, scale)
        key = self.key(scale)
        paths = [self.cache.path(key, image.cpu()) for image in x]
        kept = [self.cache.get(path) for path in paths]
        absent = [i for i, features in enumerate(kept) if features is None]
        if absent:
            for i, features in zip(absent, self._at(x[absent], scale).cpu(), strict=True):
                self.cache.put(paths[i], features)
                kept[i] = features
        return torch.stack([features for features in kept if features is not None]).to(self.device)

    @torch.inference_mode()
    def _at(self, x: torch.Tensor, scale: float) -> torch.Tensor:
        """Features at one scale, on its own grid."""
        if scale != 1:
            size = [max(1, round(side * scale / self.multiple)) * self.multiple for side in x.shape[2:]]
            x = F.interpolate(x.to(self.device), size=size, mode="bilinear", antialias=True, align_corners=False)
        # The CPU's convolutions round differently in large batches of small images.
        parts = torch.split(x, CPU_BATCH) if self.device.type == "cpu" else (x,)
        return torch.cat([_joined([self._averaged(output) for output in self.layers(part)]) for part in parts])

    def _averaged(self, output: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(output.float(), self.neighbourhood, 1, padding=self.neighbourhood // 2)

    def layers(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Outputs ``(B, C_i, h_i, w_i)`` of each layer as they are, neither averaged nor rounded, for a batch as above.

        They have gradients to `x` where it asks for them. Raises ConfigError as above.
        """
        if x.shape[1] not in (1, 3):
            raise ConfigError(f"the backbone takes 1 or 3 channels, got {x.shape[1]}: choose one or three windows")
        x = x.to(self.device, non_blocking=True)
        if len(self.backbone.mean) < x.shape[1]:
            x = x.mean(1, keepdim=True)
        count = len(x)
        if count == 1 and self.device.type == "cpu":  # whose convolutions round differently for one small image alone
            x = x.expand(2, -1, -1, -1)
        x = ((x - self._mean) / self._std).contiguous(memory_format=torch.channels_last)
        halved = self.precision != "float32"
        half = torch.autocast(self.device.type, dtype=getattr(torch, self.precision), enabled=halved)
        # With TF32 allowed, a GPU would round the factors of "float32" convolutions to 10 bits.
        with half, torch.backends.cudnn.flags(enabled=True, allow_tf32=halved):
            outputs = self.backbone.intermediates(x)
        return [output[:count] for output in outputs]


def _joined(maps: list[torch.Tensor]) -> torch.Tensor:
    """Maps brought to the grid of the first and concatenated, float16."""
    joined = torch.cat([to_grid(map, maps[0].shape[-2:]).half() for map in maps], dim=1)
    # One memory layout, whether computed now or read from a cache: a search rounds differently in another.
    return joined.contiguous(memory_format=torch.contiguous_format)
