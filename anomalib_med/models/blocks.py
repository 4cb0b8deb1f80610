"""Blocks that the reconstruction and inpainting detectors are built from; no detector has a copy of its own.

In evaluation mode every block treats an image alike whatever the batch: batch norms then use what they learnt.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

Norm = Literal["batch", "group", "none"]
Activation = Callable[[], nn.Module]

GROUPS = 8


def leaky() -> nn.Module:
    """LeakyReLU with slope 0.01."""
    return nn.LeakyReLU(0.01, inplace=True)


def norm_layer(norm: Norm, channels: int) -> nn.Module:
    """A norm of the feature maps of `channels` channels."""
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "group":
        return nn.GroupNorm(next(g for g in range(min(GROUPS, channels), 0, -1) if channels % g == 0), channels)
    return nn.Identity()


class ConvBlock(nn.Sequential):
    """Convolution, norm, activation, dropout: ``(B, inputs, H, W)`` to ``(B, outputs, ceil(H / stride), ...)``.

    An even kernel is for stride 2 and even sides: 4 halves them exactly.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        stride: int = 1,
        *,
        norm: Norm = "batch",
        activation: Activation = leaky,
        dropout: float = 0.0,
    ) -> None:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, bias=norm == "none")
        super().__init__(conv, norm_layer(norm, outputs), activation(), *_dropout(dropout))


class UpBlock(nn.Sequential):
    """Transposed convolution that doubles the sides, norm, activation, dropout; `kernel` is even."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 4,
        *,
        norm: Norm = "batch",
        activation: Activation = leaky,
        dropout: float = 0.0,
    ) -> None:
        conv = nn.ConvTranspose2d(inputs, outputs, kernel, 2, kernel // 2 - 1, bias=norm == "none")
        super().__init__(conv, norm_layer(norm, outputs), activation(), *_dropout(dropout))


class Encoder(nn.Sequential):
    """A :class:`ConvBlock` of stride 2 for each width: ``(B, channels, H, W)`` to ``(B, widths[-1], H / 2^n, ...)``."""

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        kernel: int = 4,
        *,
        norm: Norm = "batch",
        activation: Activation = leaky,
        dropout: float = 0.0,
    ) -> None:
        inputs = (channels, *widths[:-1])
        options = {"norm": norm, "activation": activation, "dropout": dropout}
        super().__init__(*(ConvBlock(i, o, kernel, 2, **options) for i, o in zip(inputs, widths, strict=True)))  # type: ignore[arg-type]


class Decoder(nn.Sequential):
    """The way back: an :class:`UpBlock` for each width, deepest first, and a last linear convolution to `channels`.

    Parameters
    ----------
    widths
        Of the encoder, in its order. The input has ``widths[-1]`` channels.
    channels
        Of the output.
    last_kernel
        Side of the last convolution; 0: the last block itself is linear and gives `channels`.
    """

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        kernel: int = 4,
        *,
        last_kernel: int = 1,
        norm: Norm = "batch",
        activation: Activation = leaky,
        dropout: float = 0.0,
    ) -> None:
        outputs = [*reversed(widths[:-1]), widths[0] if last_kernel else channels]
        inputs = [widths[-1], *outputs[:-1]]
        options = {"norm": norm, "activation": activation, "dropout": dropout}
        pairs = list(zip(inputs, outputs, strict=True))
        ups = [UpBlock(i, o, kernel, **options) for i, o in (pairs if last_kernel else pairs[:-1])]  # type: ignore[arg-type]
        if last_kernel:
            last: nn.Module = nn.Conv2d(outputs[-1], channels, last_kernel, padding=last_kernel // 2)
        else:
            last = nn.ConvTranspose2d(*pairs[-1], kernel, 2, kernel // 2 - 1)
        super().__init__(*ups, last)


class DenseBottleneck(nn.Module):
    """Fully connected layers from a feature map to a latent vector and back; each half can be used alone.

    Parameters
    ----------
    shape
        Of the feature map, ``(C, h, w)``.
    latent
        Length of the vector.
    hidden
        Width of the layer between; 0: no such layer.
    heads
        Vectors that `encode` gives, side by side (two for a mean and a variance).
    """

    def __init__(self, shape: tuple[int, int, int], latent: int, hidden: int, *, heads: int = 1) -> None:
        super().__init__()
        self.shape = shape
        flat = shape[0] * shape[1] * shape[2]
        if hidden:
            self.down = nn.Sequential(_hidden(nn.Linear(flat, hidden)), nn.Linear(hidden, heads * latent))
            self.up = nn.Sequential(_hidden(nn.Linear(latent, hidden)), nn.Linear(hidden, flat))
        else:
            self.down = nn.Sequential(nn.Linear(flat, heads * latent))
            self.up = nn.Sequential(nn.Linear(latent, flat), leaky())

    def encode(self, features: torch.Tensor) -> torch.Tensor:
        """``(B, C, h, w)`` to ``(B, heads * latent)``."""
        z: torch.Tensor = self.down(features.flatten(1))
        return z

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """``(B, latent)`` to ``(B, C, h, w)``."""
        features: torch.Tensor = self.up(z)
        return features.reshape(-1, *self.shape)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """``(B, C, h, w)`` through the latent vector to the same shape."""
        return self.decode(self.encode(features))


class SpatialBottleneck(nn.Module):
    """Convolutions of one pixel to a narrow feature map and back, which keep places apart.

    Parameters
    ----------
    channels
        Of the feature map.
    latent
        Channels of the narrow one.
    hidden
        Channels of the layer between.
    """

    def __init__(self, channels: int, latent: int, hidden: int) -> None:
        super().__init__()
        self.down = nn.Sequential(ConvBlock(channels, hidden, 1, activation=nn.ReLU), nn.Conv2d(hidden, latent, 1))
        self.up = nn.Sequential(ConvBlock(latent, hidden, 1, activation=nn.ReLU), nn.Conv2d(hidden, channels, 1))

    def encode(self, features: torch.Tensor) -> torch.Tensor:
        """``(B, C, h, w)`` to ``(B, latent, h, w)``."""
        z: torch.Tensor = self.down(features)
        return z

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """``(B, latent, h, w)`` to ``(B, C, h, w)``."""
        features: torch.Tensor = self.up(z)
        return features


class DenseAutoencoder(nn.Module):
    """Encoder, bottleneck and decoder for images of one shape.

    Values go from [0, 1] to [-1, 1] and back; the output is linear and may leave [0, 1].

    Parameters
    ----------
    shape
        Of an image, ``(C, H, W)``; sides are multiples of ``2 ** len(widths)``.
    widths
        Of the encoder.
    latent, hidden, heads
        See :class:`DenseBottleneck`.
    outputs
        Channels of the output; by default those of the image.
    norm, activation
        After each convolution but the last.
    spatial
        Have a :class:`SpatialBottleneck` instead.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        widths: Sequence[int],
        latent: int,
        hidden: int,
        *,
        heads: int = 1,
        outputs: int | None = None,
        norm: Norm = "batch",
        activation: Activation = nn.ReLU,
        spatial: bool = False,
    ) -> None:
        super().__init__()
        channels, height, width = shape
        coarse = (widths[-1], height >> len(widths), width >> len(widths))
        self.encoder = Encoder(channels, widths, norm=norm, activation=activation)
        self.bottleneck = (
            SpatialBottleneck(widths[-1], latent, hidden)
            if spatial
            else DenseBottleneck(coarse, latent, hidden, heads=heads)
        )
        self.decoder = Decoder(outputs or channels, widths, last_kernel=0, norm=norm, activation=activation)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``(B, C, H, W)`` to ``(B, heads * latent)``, or ``(B, latent, h, w)`` where spatial."""
        return self.bottleneck.encode(self.encoder(2 * x - 1))

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """The way back from the latent numbers to ``(B, outputs, H, W)``."""
        y: torch.Tensor = self.decoder(self.bottleneck.decode(z))
        return (y + 1) / 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The reconstruction ``(B, outputs, H, W)``."""
        return self.decode(self.encode(x))


class VectorEncoder(nn.Module):
    """Encoder, one hidden layer and a linear one: a discriminator, or an encoder of reconstructions.

    Parameters
    ----------
    shape
        Of an image, ``(C, H, W)``; sides are multiples of ``2 ** len(widths)``.
    widths
        Of the encoder.
    hidden
        Length of the features before the last layer.
    outputs
        Length of the vector.
    """

    def __init__(self, shape: tuple[int, ...], widths: Sequence[int], hidden: int, outputs: int) -> None:
        super().__init__()
        channels, height, width = shape
        flat = widths[-1] * (height >> len(widths)) * (width >> len(widths))
        self.encoder = nn.Sequential(Encoder(channels, widths), nn.Flatten(), _hidden(nn.Linear(flat, hidden)))
        self.last = nn.Linear(hidden, outputs)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``(B, C, H, W)`` to ``(B, hidden)``."""
        features: torch.Tensor = self.encoder(2 * x - 1)
        return features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``(B, C, H, W)`` to ``(B, outputs)``."""
        y: torch.Tensor = self.last(self.features(x))
        return y


class ResidualBlock(nn.Module):
    """Norm, activation and convolution, twice, beside a convolution of one pixel: ``(B, inputs, H, W)`` to `outputs`.

    As in Gulrajani et al., "Improved Training of Wasserstein GANs", NeurIPS 2017, appendix C.

    Parameters
    ----------
    inputs, outputs
        Channels.
    resample
        "up" doubles the sides by nearest neighbours, "down" halves them by averaging.
    norm
        Before each of the two.
    """

    def __init__(self, inputs: int, outputs: int, resample: Literal["up", "down"], norm: Norm = "group") -> None:
        super().__init__()
        self.resample = resample
        self.first = nn.Sequential(norm_layer(norm, inputs), nn.LeakyReLU(0.01))
        self.second = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1),
            norm_layer(norm, outputs),
            nn.LeakyReLU(0.01),
            nn.Conv2d(outputs, outputs, 3, padding=1),
        )
        self.across = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, outputs, 2 H, 2 W)``, or of half the sides."""
        if self.resample == "up":
            up = F.interpolate(self.first(x), scale_factor=2.0)
            y: torch.Tensor = self.second(up) + F.interpolate(self.across(x), scale_factor=2.0)
            return y
        y = F.avg_pool2d(self.second(self.first(x)), 2) + self.across(F.avg_pool2d(x, 2))
        return y


class StandardisedConv(nn.Conv2d):
    """A convolution whose kernels have mean 0 and variance 1.

    Qiao et al., "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization", 2019.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, inputs, H, W)`` to ``(B, outputs, ...)``."""
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True, correction=0)
        y: torch.Tensor = self._conv_forward(x, (self.weight - mean) / (variance + 1e-5).sqrt(), self.bias)
        return y


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015): two convolutions at each of several resolutions, joined across.

    Parameters
    ----------
    inputs, outputs
        Channels.
    widths
        Of each resolution, finest first; sides must be multiples of ``2 ** (len(widths) - 1)``.
    norm, activation
        After each convolution.
    standardised
        Use :class:`StandardisedConv`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        widths: Sequence[int] = (32, 64, 128, 256),
        *,
        norm: Norm = "group",
        activation: Activation = leaky,
        standardised: bool = False,
    ) -> None:
        super().__init__()

        def double(i: int, o: int) -> nn.Sequential:
            kind = StandardisedConv if standardised else nn.Conv2d
            parts: list[nn.Module] = []
            for a, b in ((i, o), (o, o)):
                parts += [kind(a, b, 3, padding=1), norm_layer(norm, b), activation()]
            return nn.Sequential(*parts)

        self.down = nn.ModuleList(double(i, o) for i, o in zip((inputs, *widths[:-1]), widths, strict=True))
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.reduce = nn.ModuleList(nn.Conv2d(i, o, 1) for i, o in pairs)
        self.up = nn.ModuleList(double(2 * o, o) for _, o in pairs)
        self.last = nn.Conv2d(widths[0], outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, inputs, H, W)`` to ``(B, outputs, H, W)``."""
        across = []
        for number, block in enumerate(self.down):
            x = block(x if number == 0 else F.avg_pool2d(x, 2))
            across.append(x)
        across.pop()
        for reduce, block in zip(self.reduce, self.up, strict=True):
            coarse = F.interpolate(reduce(x), scale_factor=2.0, mode="bilinear", align_corners=False)
            x = block(torch.cat([across.pop(), coarse], dim=1))
        y: torch.Tensor = self.last(x)
        return y


def _hidden(linear: nn.Linear) -> nn.Sequential:
    return nn.Sequential(linear, nn.BatchNorm1d(linear.out_features), nn.ReLU(inplace=True))


def _dropout(share: float) -> tuple[nn.Module, ...]:
    return (nn.Dropout2d(share),) if share else ()
