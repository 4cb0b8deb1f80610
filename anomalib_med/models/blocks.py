"""Blocks of the reconstruction and inpainting detectors; in evaluation mode each treats an image alike in any batch."""

import math
from collections.abc import Callable, Sequence
from itertools import chain, pairwise
from typing import Literal, TypedDict, Unpack, cast

import torch
import torch.nn.functional as F
from torch import nn

Norm = Literal["batch", "group", "none"]
Activation = Callable[[], nn.Module]
Bottleneck = tuple[nn.Sequential, nn.Sequential]  # down and up

GROUPS = 8


def leaky() -> nn.Module:
    """LeakyReLU with slope 0.01."""
    return nn.LeakyReLU(0.01, inplace=True)


class Options(TypedDict, total=False):
    """What follows each convolution: norm (default "batch"), activation (:func:`leaky`), share of dropped channels."""

    norm: Norm
    activation: Activation
    dropout: float


def norm_layer(norm: Norm, channels: int) -> nn.Module:
    """A norm of feature maps of so many channels."""
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "group":
        return nn.GroupNorm(next(g for g in range(min(GROUPS, channels), 0, -1) if channels % g == 0), channels)
    return nn.Identity()


def halved(shape: Sequence[int], widths: Sequence[int]) -> tuple[int, int, int]:
    """Shape of the feature map of an image ``(C, H, W)`` after one halving for each width."""
    return widths[-1], shape[1] >> len(widths), shape[2] >> len(widths)


def _after(channels: int, norm: Norm = "batch", activation: Activation = leaky, dropout: float = 0) -> list[nn.Module]:
    return [norm_layer(norm, channels), activation(), *([nn.Dropout2d(dropout)] if dropout else [])]


class ConvBlock(nn.Sequential):
    """Convolution, norm, activation, dropout. An even kernel is for stride 2 and even sides: 4 halves them exactly."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, **options: Unpack[Options]) -> None:
        bias = options.get("norm") == "none"
        conv = nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, bias=bias)
        super().__init__(conv, *_after(outputs, **options))


class UpBlock(nn.Sequential):
    """Transposed convolution that doubles the sides, norm, activation, dropout; `kernel` is even."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 4, **options: Unpack[Options]) -> None:
        bias = options.get("norm") == "none"
        conv = nn.ConvTranspose2d(inputs, outputs, kernel, 2, kernel // 2 - 1, bias=bias)
        super().__init__(conv, *_after(outputs, **options))


class Encoder(nn.Sequential):
    """A :class:`ConvBlock` of stride 2 for each width: ``(B, channels, H, W)`` to ``(B, widths[-1], H / 2^n, ...)``."""

    def __init__(self, channels: int, widths: Sequence[int], kernel: int = 4, **options: Unpack[Options]) -> None:
        super().__init__(*(ConvBlock(i, o, kernel, 2, **options) for i, o in pairwise((channels, *widths))))


class Decoder(nn.Sequential):
    """The way back of an encoder of these widths: an :class:`UpBlock` for each, deepest first; the last is linear."""

    def __init__(self, channels: int, widths: Sequence[int], **options: Unpack[Options]) -> None:
        ups = (UpBlock(i, o, **options) for i, o in pairwise(reversed(widths)))
        super().__init__(*ups, nn.ConvTranspose2d(widths[0], channels, 4, 2, 1))


def dense_bottleneck(shape: tuple[int, int, int], latent: int, hidden: int, heads: int = 1) -> Bottleneck:
    """Dense layers from a feature map ``(C, h, w)`` to ``(B, heads * latent)``, and back from ``(B, latent)``.

    Two heads give a mean and a variance. `hidden` is the width of the layer between; with 0 there is none.
    """
    flat = math.prod(shape)
    if hidden:
        down = nn.Sequential(nn.Flatten(), _hidden(nn.Linear(flat, hidden)), nn.Linear(hidden, heads * latent))
        up = nn.Sequential(_hidden(nn.Linear(latent, hidden)), nn.Linear(hidden, flat), nn.Unflatten(1, shape))
    else:
        down = nn.Sequential(nn.Flatten(), nn.Linear(flat, heads * latent))
        up = nn.Sequential(nn.Linear(latent, flat), leaky(), nn.Unflatten(1, shape))
    return down, up


def spatial_bottleneck(channels: int, latent: int, hidden: int) -> Bottleneck:
    """Convolutions of one pixel from a feature map to ``(B, latent, h, w)``, and back: they keep places apart."""
    pairs = ((channels, latent), (latent, channels))
    down, up = (nn.Sequential(ConvBlock(i, hidden, 1, activation=nn.ReLU), nn.Conv2d(hidden, o, 1)) for i, o in pairs)
    return down, up


class DenseAutoencoder(nn.Module):
    """Encoder, bottleneck and decoder for images ``(C, H, W)`` of one shape, multiples of ``2 ** len(widths)``.

    Values go from [0, 1] to [-1, 1] and back; the output, of `outputs` channels (by default C), is linear and may leave
    [0, 1]. `options` follow each convolution but the last, by default a batch norm and ReLU. The bottleneck is a
    :func:`dense_bottleneck` or, where `spatial`, a :func:`spatial_bottleneck`.
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
        spatial: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__()
        options = {"activation": nn.ReLU, **options}
        encoder = Encoder(shape[0], widths, **options)
        if spatial:
            down, up = spatial_bottleneck(widths[-1], latent, hidden)
        else:
            down, up = dense_bottleneck(halved(shape, widths), latent, hidden, heads=heads)
        self.encoder = nn.Sequential(encoder, down)
        self.decoder = nn.Sequential(up, Decoder(outputs or shape[0], widths, **options))

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``(B, C, H, W)`` to ``(B, heads * latent)``, or ``(B, latent, h, w)`` where spatial."""
        return cast(torch.Tensor, self.encoder(2 * x - 1))

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """The way back from the latent numbers to ``(B, outputs, H, W)``."""
        return (cast(torch.Tensor, self.decoder(z)) + 1) / 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The reconstruction ``(B, outputs, H, W)``."""
        return self.decode(self.encode(x))


class VectorEncoder(nn.Module):
    """Layers from images in [0, 1] to features ``(B, flat)``, and a linear one to a vector: a critic or an encoder."""

    def __init__(self, layers: nn.Module, flat: int, outputs: int) -> None:
        super().__init__()
        self.layers, self.last = layers, nn.Linear(flat, outputs)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``(B, C, H, W)`` to ``(B, flat)``, what the last layer sees."""
        return cast(torch.Tensor, self.layers(2 * x - 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``(B, C, H, W)`` to ``(B, outputs)``."""
        return cast(torch.Tensor, self.last(self.features(x)))


def dense_encoder(shape: tuple[int, ...], widths: Sequence[int], hidden: int, outputs: int) -> VectorEncoder:
    """An :class:`Encoder` of images ``(C, H, W)``, a fully connected layer of `hidden` features, and a linear one."""
    flat = math.prod(halved(shape, widths))
    layers = nn.Sequential(Encoder(shape[0], widths), nn.Flatten(), _hidden(nn.Linear(flat, hidden)))
    return VectorEncoder(layers, hidden, outputs)


class ResidualBlock(nn.Module):
    """Group norm, activation and convolution, twice, beside a convolution of one pixel.

    "up" doubles the sides by nearest neighbours, "down" halves them by averaging, as in Gulrajani et al., NeurIPS 2017,
    appendix C.
    """

    def __init__(self, inputs: int, outputs: int, resample: Literal["up", "down"]) -> None:
        super().__init__()
        self.resample = resample
        self.first = nn.Sequential(norm_layer("group", inputs), nn.LeakyReLU(0.01))
        a, b = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.second = nn.Sequential(a, norm_layer("group", outputs), nn.LeakyReLU(0.01), b)
        self.across = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, outputs, 2 H, 2 W)``, or of half the sides."""
        if self.resample == "up":
            y = cast(torch.Tensor, self.second(F.interpolate(self.first(x), scale_factor=2.0)))
            return y + F.interpolate(self.across(x), scale_factor=2.0)
        return F.avg_pool2d(self.second(self.first(x)), 2) + cast(torch.Tensor, self.across(F.avg_pool2d(x, 2)))


class StandardisedConv(nn.Conv2d):
    """A convolution whose kernels have mean 0 and variance 1 (Qiao et al., "Weight Standardization", 2019)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, inputs, H, W)`` to ``(B, outputs, ...)``."""
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True, correction=0)
        weight = (self.weight - mean) / (variance + 1e-5).sqrt()
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015): two convolutions at each of several resolutions, joined across.

    `widths` are the channels at each resolution, finest first; sides are multiples of ``2 ** (len(widths) - 1)``. A
    group norm and the activation follow each convolution, which may be a :class:`StandardisedConv`.
    """

    def __init__(
        self, channels: int, widths: Sequence[int], *, activation: Activation = leaky, standardised: bool = False
    ) -> None:
        super().__init__()
        kind = StandardisedConv if standardised else nn.Conv2d

        def double(i: int, o: int) -> nn.Sequential:
            layers = ([kind(inputs, o, 3, padding=1), norm_layer("group", o), activation()] for inputs in (i, o))
            return nn.Sequential(*chain.from_iterable(layers))

        self.down = nn.ModuleList(double(i, o) for i, o in pairwise((channels, *widths)))
        pairs = list(pairwise(reversed(widths)))
        self.reduce = nn.ModuleList(nn.Conv2d(i, o, 1) for i, o in pairs)
        self.up = nn.ModuleList(double(2 * o, o) for _, o in pairs)
        self.last = nn.Conv2d(widths[0], channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, channels, H, W)`` to the same shape."""
        across = []
        for number, block in enumerate(self.down):
            x = block(x if number == 0 else F.avg_pool2d(x, 2))
            across.append(x)
        across.pop()
        for reduce, block in zip(self.reduce, self.up, strict=True):
            coarse = F.interpolate(reduce(x), scale_factor=2.0, mode="bilinear", align_corners=False)
            x = block(torch.cat([across.pop(), coarse], dim=1))
        return cast(torch.Tensor, self.last(x))


def _hidden(linear: nn.Linear) -> nn.Sequential:
    return nn.Sequential(linear, nn.BatchNorm1d(linear.out_features), nn.ReLU(inplace=True))
