"""Standardising by the normals: for channels, for places and for plain numbers."""

import pytest
import torch

from anomalib_med.models.standard import Standard

VALUES = 3 + 2 * torch.randn(7, 4, 5, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("shape", "dims"), [((4, 1, 1), (0, 2, 3)), ((4, 5, 6), (0,)), ((1, 5, 6), (0, 1))])
def test_all_batches_together_have_mean_zero_and_deviation_one(shape: tuple[int, ...], dims: tuple[int, ...]) -> None:
    standard = Standard(shape)
    assert torch.equal(standard(VALUES), VALUES)  # before anything is learnt
    standard.learn(VALUES.split(3))
    scaled = standard(VALUES)
    assert scaled.mean(dims).abs().max() < 1e-5
    assert (scaled.std(dims, correction=0) - 1).abs().max() < 1e-5


def test_what_does_not_vary_is_divided_by_the_least_deviation() -> None:
    standard = Standard((2,), least=0.5)
    standard.learn([torch.ones(3, 2)])
    assert standard(torch.tensor([[2.0, 1.0]])).tolist() == [[2.0, 0.0]]
