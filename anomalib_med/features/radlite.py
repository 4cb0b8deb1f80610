"""radlite: the package's own extractor, a small network that learnt the features of larger ones on medical images.

How it was trained, on what, and what it can do: ``models/radlite/README.md``. Distillation of a patch description
network after Batzner et al., "EfficientAD", WACV 2024, https://arxiv.org/abs/2303.14535, with two teachers.
"""

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import nn

from anomalib_med.errors import ModelError
from anomalib_med.features.grid import to_grid

NAME = "radlite"
WEIGHTS = Path(__file__).with_name("radlite.safetensors")
SHA256 = "3c386c8e9bd932e540523c2f9632eca0fef1c48d4ae9e5e804bd2c652ea60437"
WIDTHS = (16, 32, 64, 128, 192)  # channels at strides 2, 4, 8, 16, 32
DIMENSIONS = 64


class ConvNorm(nn.Module):
    """A convolution, a batch norm while it is trained (folded into the weights for inference), and a ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, *, trained: bool, active: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=not trained)
        self.norm = nn.BatchNorm2d(outputs) if trained else nn.Identity()
        self.active = active

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, inputs, H, W)`` to ``(B, outputs, H / stride, W / stride)``."""
        x = self.norm(self.conv(x))
        return F.relu(x, inplace=True) if self.active else x


class Block(nn.Module):
    """Two convolutions beside a shortcut (He et al. 2016)."""

    def __init__(self, width: int, *, trained: bool) -> None:
        super().__init__()
        self.conv1 = ConvNorm(width, width, trained=trained)
        self.conv2 = ConvNorm(width, width, trained=trained, active=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, width, H, W)`` to the same shape."""
        return F.relu(x + self.conv2(self.conv1(x)), inplace=True)


class RadLite(nn.Module):
    """Grey image to feature vectors at strides 8 and 16, in the principal components of its teachers.

    It has batch norms where it is to be trained; they are folded into the weights for inference.
    """

    pretrained_cfg = {"mean": (0.5,), "std": (0.25,)}  # noqa: RUF012
    feature_info = [{"num_chs": DIMENSIONS, "reduction": s, "module": f"stride{s}"} for s in (8, 16)]  # noqa: RUF012

    def __init__(self, *, trained: bool = False) -> None:
        super().__init__()
        w2, w4, w8, w16, w32 = WIDTHS
        unit, block = partial(ConvNorm, trained=trained), partial(Block, trained=trained)
        self.stem = nn.Sequential(unit(1, w2, 2), unit(w2, w4, 2))
        self.stage8 = nn.Sequential(unit(w4, w8, 2), block(w8))
        self.stage16 = nn.Sequential(unit(w8, w16, 2), block(w16), block(w16))
        self.stage32 = nn.Sequential(unit(w16, w32, 2), block(w32))
        self.down16, self.down8 = nn.Conv2d(w32, w16, 1), nn.Conv2d(w16, w8, 1)
        self.head8, self.head16 = _head(w8), _head(w16)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Features of normalised images ``(B, 1, H, W)``, H and W multiples of 16.

        Returns ``(B, 64, H / 8, W / 8)`` and ``(B, 64, H / 16, W / 16)``.
        """
        at8 = self.stage8(self.stem(x))
        at16 = self.stage16(at8)
        at16 = F.relu(at16 + to_grid(self.down16(self.stage32(at16)), at16.shape[-2:]))
        at8 = F.relu(at8 + to_grid(self.down8(at16), at8.shape[-2:]))
        return [self.head8(at8), self.head16(at16)]

    def forward_intermediates(self, x: torch.Tensor, indices: Sequence[int], **_: object) -> list[torch.Tensor]:
        """The outputs asked for."""
        outputs = self(x)
        return [outputs[i] for i in indices]

    def prune_intermediate_layers(self, indices: list[int], **_: object) -> list[int]:
        """Cut nothing: both outputs see the whole network."""
        return indices


def read_weights(path: Path = WEIGHTS) -> dict[str, torch.Tensor]:
    """The weights that the package ships, float32; ModelError where the file is absent or altered."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}; install anomalib-med again") from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256:
        raise ModelError(f"{path}: its SHA-256 is {digest}, not {SHA256}: it was altered; install anomalib-med again")
    return {key: value.float() for key, value in load(content).items()}


def _head(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.ReLU(inplace=True), nn.Conv2d(2 * width, DIMENSIONS, 1))
