import numpy as np
import pytest
import torch

from anomalib_med.models.memory_bank.neighbours import Engine, NearestNeighbours


def brute_force(bank: torch.Tensor, queries: torch.Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    difference = queries.double().numpy()[:, None] - bank.double().numpy()
    distance = np.sqrt((difference**2).sum(2))
    rows = np.argsort(distance, 1, kind="stable")[:, :k]
    return np.take_along_axis(distance, rows, 1), rows


@pytest.mark.parametrize("engine", ["faiss", "torch", "half", "auto"])
@pytest.mark.parametrize("k", [1, 5])
def test_every_engine_finds_the_exact_neighbours(engine: Engine, k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    # A large common offset, as features behind a ReLU have: distances must survive it.
    bank = (torch.randn(700, 96, generator=generator) + 30).half()
    queries = (torch.randn(150, 96, generator=generator) + 30).half()
    distances, rows = NearestNeighbours(bank, engine).search(queries, k)
    expected, expected_rows = brute_force(bank, queries, k)
    np.testing.assert_allclose(distances.numpy(), expected, rtol=1e-5)
    assert (rows.numpy() == expected_rows).mean() > 0.99


def test_a_member_of_the_bank_is_at_distance_zero() -> None:
    bank = torch.randn(300, 64).half()
    for engine in ("faiss", "torch", "half"):
        distances, rows = NearestNeighbours(bank, engine).search(bank)
        assert float(distances.max()) == 0
        assert rows[:, 0].tolist() == list(range(300))


def test_blocks_and_chunks_do_not_change_the_answer() -> None:
    generator = torch.Generator().manual_seed(0)
    bank, queries = torch.randn(20_000, 8, generator=generator), torch.randn(3000, 8, generator=generator)
    expected, rows = torch.cdist(queries, bank, compute_mode="donot_use_mm_for_euclid_dist").topk(3, largest=False)
    distances, found = NearestNeighbours(bank, "torch").search(queries, 3)
    torch.testing.assert_close(distances, expected)
    assert (found == rows).float().mean() > 0.999


def test_without_faiss_torch_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # as if it were not installed
    assert NearestNeighbours(torch.randn(10_001, 4)).engine == "torch"


def test_the_engine_is_chosen_by_size() -> None:
    assert NearestNeighbours(torch.randn(10_000, 4)).engine == "torch"
    assert NearestNeighbours(torch.randn(10_001, 4)).engine == "faiss"


@pytest.mark.parametrize("engine", ["faiss", "half"])
def test_engines_that_propose_keep_their_tolerance(engine: Engine) -> None:
    bank, queries = clustered(30_000, 64, 0), clustered(400, 64, 1)
    exact, _ = NearestNeighbours(bank, "torch").search(queries, 3)
    found, rows = NearestNeighbours(bank, engine).search(queries, 3)
    excess = found / exact - 1
    assert float((excess > 0.01).float().mean()) < 0.01
    assert float(excess.min()) > -1e-5
    distances = (queries[:, None].float() - bank[rows].float()).norm(dim=2)
    torch.testing.assert_close(found, distances, rtol=1e-4, atol=1e-4)
    again, _ = NearestNeighbours(bank, engine).search(queries, 3)
    assert torch.equal(found, again)


@pytest.mark.parametrize("engine", ["faiss", "half", "torch"])
def test_a_bank_of_copies_gives_as_many_neighbours_as_were_asked_for(engine: Engine) -> None:
    bank = torch.cat([torch.ones(2000, 8), torch.zeros(5, 8)]).half()
    distances, rows = NearestNeighbours(bank, engine).search(torch.zeros(2, 8), 20)
    assert distances.shape == rows.shape == (2, 20)
    assert int(rows.min()) >= 0
    assert all(len(set(row)) == 20 for row in rows.tolist())
    assert NearestNeighbours(bank[:3], engine).search(torch.zeros(2, 8), 20)[1].shape == (2, 3)


def clustered(count: int, dimensions: int, seed: int) -> torch.Tensor:
    """Vectors in clusters of different width, as patches of images are; the clusters are the same for every seed."""
    centres = torch.randn(100, dimensions, generator=torch.Generator().manual_seed(9)) * 2
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(100, (count,), generator=generator)
    width = 0.3 + which[:, None] / 100
    return (centres[which] + width * torch.randn(count, dimensions, generator=generator)).half()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("engine", ["torch", "half", "faiss"])
def test_gpu_agrees_with_cpu(engine: Engine) -> None:
    bank, queries = torch.randn(3000, 384).half(), torch.randn(784, 384).half()
    expected, _ = NearestNeighbours(bank, "torch").search(queries)
    found, _ = NearestNeighbours(bank.cuda(), engine).search(queries.cuda())
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-3)
