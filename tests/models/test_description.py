import torch

from anomalib_med.models.memory_bank.description import contributions, describe, describe_batch, spread

GRIDS = torch.randn(2, 5, 4, 6, generator=torch.Generator().manual_seed(0)).half()


def test_a_description_is_the_mean_and_the_standard_deviation() -> None:
    cells = GRIDS[0].flatten(1)
    expected = torch.cat([cells.double().mean(1), cells.double().std(1, correction=0)])
    torch.testing.assert_close(describe(cells).double(), expected, rtol=1e-5, atol=1e-6)


def test_only_valid_cells_are_described() -> None:
    valid = torch.ones(2, 32, 48, dtype=torch.bool)
    valid[0, :, 24:] = False
    found = describe_batch(GRIDS, valid)
    assert torch.equal(found[0], describe(GRIDS[0, :, :, :3].flatten(1)))
    assert torch.equal(found[1], describe(GRIDS[1].flatten(1)))


def test_a_number_that_does_not_vary_is_divided_by_one() -> None:
    described = torch.tensor([[1.0, 2.0], [1.0, 4.0]])
    torch.testing.assert_close(spread(described), torch.tensor([1.0, 2**0.5]))
    assert torch.equal(spread(described[:1]), torch.ones(2))


def test_contributions_of_cells_average_to_the_number_they_explain() -> None:
    direction = torch.randn(10, generator=torch.Generator().manual_seed(1))
    found = contributions(GRIDS[0], direction)
    assert found.shape == (4, 6)
    torch.testing.assert_close(found.mean(), direction @ describe(GRIDS[0].flatten(1)), rtol=1e-4, atol=1e-5)
    flat = torch.ones(5, 4, 6)
    torch.testing.assert_close(contributions(flat, direction), direction[:5].sum().expand(4, 6))
