import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from anomalib_med.models.memory_bank.coreset import GRID, greedy_in_blocks, k_center, project, to_grid


def one_at_a_time(grid: np.ndarray, count: int) -> list[int]:
    """The greedy rule as it is written down, in exact integers."""
    x = grid.astype(np.int64)
    picks = [int((x * x).sum(1).argmin())]
    nearest = ((x - x[picks[0]]) ** 2).sum(1)
    while len(picks) < min(count, len(x)) and nearest.max() > 0:
        picks.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, ((x - x[picks[-1]]) ** 2).sum(1))
    return picks


def clustered(points: int, dimensions: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(30, dimensions, generator=generator) * 4
    return centres[torch.randint(30, (points,), generator=generator)] + torch.randn(
        points, dimensions, generator=generator
    )


@pytest.mark.parametrize("candidates", [16, 300, 4096])
@pytest.mark.parametrize(
    "points", [torch.randn(4000, 24, generator=torch.Generator().manual_seed(0)), clustered(4000, 24)]
)
def test_blocks_pick_exactly_what_one_at_a_time_picks(points: torch.Tensor, candidates: int) -> None:
    grid = to_grid(points)
    assert greedy_in_blocks(grid, 400, candidates=candidates).tolist() == one_at_a_time(grid.numpy(), 400)


def test_picks_of_wide_features_equal_the_reference_on_their_projection() -> None:
    points = torch.randn(3000, 384, generator=torch.Generator().manual_seed(2))
    assert k_center(points, 200, seed=5).tolist() == one_at_a_time(to_grid(project(points, 5)).numpy(), 200)


@settings(max_examples=150, deadline=None)
@given(
    npst.arrays(np.int8, st.tuples(st.integers(1, 40), st.integers(1, 4)), elements=st.integers(-3, 3)),
    st.integers(1, 45),
    st.integers(1, 12),
)
def test_ties_and_copies_are_resolved_as_by_the_reference(points: np.ndarray, count: int, candidates: int) -> None:
    grid = torch.from_numpy(points.astype(np.float32))
    assert greedy_in_blocks(grid, count, candidates=candidates).tolist() == one_at_a_time(points, count)


def test_grid_is_exact_in_float32() -> None:
    grid = to_grid(torch.randn(5000, 128) * 1e-3 + 7)
    assert torch.equal(grid, grid.round())
    assert float(grid.norm(dim=1).max()) <= GRID
    a, b = grid[:500], grid[500:1000]
    fast = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T
    exact = ((a.long()[:, None] - b.long()) ** 2).sum(2)
    assert torch.equal(fast.long(), exact)


def test_every_point_is_near_a_centre_and_nearer_than_with_random_centres() -> None:
    points = clustered(3000, 8)
    chosen, drawn = (
        points[k_center(points, 60)],
        points[torch.randperm(3000, generator=torch.Generator().manual_seed(0))[:60]],
    )
    assert torch.cdist(points, chosen).amin(1).max() < 0.7 * torch.cdist(points, drawn).amin(1).max()


def test_identical_points_give_one_centre() -> None:
    assert k_center(torch.ones(50, 5), 10).tolist() == [0]


def test_asking_for_more_than_there_are_gives_all() -> None:
    assert sorted(k_center(torch.randn(20, 3), 100).tolist()) == list(range(20))


def test_seed_decides_the_projection() -> None:
    points = torch.randn(2000, 200, generator=torch.Generator().manual_seed(3))
    assert torch.equal(k_center(points, 50, seed=1), k_center(points, 50, seed=1))
    assert not torch.equal(k_center(points, 50, seed=1), k_center(points, 50, seed=2))
