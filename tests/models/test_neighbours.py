import numpy as np
import pytest
import torch

from anomalib_med.models.memory_bank import neighbours
from anomalib_med.models.memory_bank.neighbours import NearestNeighbours


def brute_force(bank: torch.Tensor, queries: torch.Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    difference = queries.double().numpy()[:, None] - bank.double().numpy()
    distance = np.sqrt((difference**2).sum(2))
    rows = np.argsort(distance, 1, kind="stable")[:, :k]
    return np.take_along_axis(distance, rows, 1), rows


@pytest.mark.parametrize("engine", ["faiss", "torch", "auto"])
@pytest.mark.parametrize("k", [1, 5])
def test_every_engine_finds_the_exact_neighbours(engine: neighbours.Engine, k: int) -> None:
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
    for engine in ("faiss", "torch"):
        distances, rows = NearestNeighbours(bank, engine).search(bank)
        assert float(distances.max()) == 0
        assert rows[:, 0].tolist() == list(range(300))


def test_chunks_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    bank, queries = torch.randn(500, 32), torch.randn(200, 32)
    whole, _ = NearestNeighbours(bank, "torch").search(queries, 3)
    monkeypatch.setattr(neighbours, "CHUNK_BYTES", 4 * 500 * 7)
    parts, _ = NearestNeighbours(bank, "torch").search(queries, 3)
    torch.testing.assert_close(whole, parts)


def test_without_faiss_torch_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert NearestNeighbours(torch.randn(10, 4)).engine == "torch"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("engine", ["torch", "faiss"])
def test_gpu_agrees_with_cpu(engine: neighbours.Engine) -> None:
    bank, queries = torch.randn(3000, 384).half(), torch.randn(784, 384).half()
    expected, _ = NearestNeighbours(bank, "torch").search(queries)
    found, _ = NearestNeighbours(bank.cuda(), engine).search(queries.cuda())
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-3)
