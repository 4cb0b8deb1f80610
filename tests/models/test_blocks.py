"""Shapes and promises of the shared blocks."""

import pytest
import torch

from anomalib_med.models.blocks import (
    Decoder,
    DenseAutoencoder,
    Encoder,
    Norm,
    ResidualBlock,
    UNet,
    UpBlock,
    dense_bottleneck,
    halved,
)


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("kernel", [3, 4, 5])
def test_a_decoder_undoes_the_shapes_of_an_encoder(norm: Norm, kernel: int) -> None:
    x = torch.rand(2, 3, 48, 64)
    encoder = Encoder(3, (6, 8, 12), kernel, norm=norm, dropout=0.1)
    decoder = Decoder(3, (6, 8, 12), norm=norm)
    code = encoder(x)
    assert code.shape == (2, 12, 6, 8) == (2, *halved(x.shape[1:], (6, 8, 12)))
    assert decoder(code).shape == x.shape
    assert isinstance(decoder[-1], torch.nn.ConvTranspose2d)  # the last layer is linear


def test_a_block_that_doubles_takes_any_even_kernel() -> None:
    for kernel in (2, 4, 6):
        assert UpBlock(3, 5, kernel)(torch.rand(2, 3, 6, 8)).shape == (2, 5, 12, 16)


@pytest.mark.parametrize("standardised", [False, True])
def test_a_unet_keeps_the_shape(standardised: bool) -> None:
    net = UNet(2, (4, 8, 12), standardised=standardised)
    assert net(torch.rand(1, 2, 32, 48)).shape == (1, 2, 32, 48)


@pytest.mark.parametrize(("resample", "sides"), [("up", (32, 48)), ("down", (8, 12))])
def test_a_residual_block_doubles_or_halves_the_sides(resample: str, sides: tuple[int, int]) -> None:
    block = ResidualBlock(4, 6, resample)  # type: ignore[arg-type]
    x = torch.rand(2, 4, 16, 24)
    assert block(x).shape == (2, 6, *sides)
    torch.nn.init.zeros_(block.second[-1].weight), torch.nn.init.zeros_(block.second[-1].bias)
    across = block.across(x)
    size = torch.nn.functional.interpolate(across, sides, mode="nearest" if resample == "up" else "area")
    assert torch.allclose(block(x), size, atol=1e-5)


def test_standardised_kernels_do_not_depend_on_their_scale() -> None:
    net = UNet(1, (4, 8), standardised=True).eval()
    x = torch.rand(1, 1, 16, 16)
    before = net(x)
    with torch.no_grad():
        net.down[0][0].weight.mul_(3).add_(1)  # type: ignore[index, operator, union-attr]
    assert torch.allclose(net(x), before, atol=1e-3)


def test_the_bottleneck_has_a_vector_and_heads() -> None:
    for hidden in (0, 32):
        down, up = dense_bottleneck((8, 4, 4), 16, hidden, heads=2)
        assert down(torch.rand(3, 8, 4, 4)).shape == (3, 32)
        assert up(torch.rand(3, 16)).shape == (3, 8, 4, 4)


def test_in_evaluation_mode_an_image_is_treated_alike_whatever_the_batch() -> None:
    torch.manual_seed(0)
    net = DenseAutoencoder((1, 32, 32), (4, 8), 4, 16)
    for _ in range(3):
        net(torch.rand(8, 1, 32, 32))
    x = torch.rand(8, 1, 32, 32)
    net.eval()
    assert torch.allclose(net(x), torch.cat([net(image[None]) for image in x]), atol=1e-5)
