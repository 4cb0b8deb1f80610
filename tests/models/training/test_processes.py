"""Several processes that train together: the same weights in each, and those of one process where batches are alike."""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch
from safetensors.torch import load_file

from anomalib_med import fit, load
from anomalib_med.errors import ConfigError
from tests.cli.command import anomed, assert_refused
from tests.models.training.test_trainer import PICTURES, SMALL, Tiny, fitted

TOP = Path(__file__).parents[3]


class Plain(Tiny):
    """Nothing drawn at random and no batch norm: the mean over a batch is that of its parts' means."""

    name = "plain"
    title = "Plain autoencoder"

    def build(self, shape: tuple[int, ...]) -> None:
        self.net = torch.nn.Sequential(torch.nn.Conv2d(shape[0], 4, 3, padding=1), torch.nn.Conv2d(4, shape[0], 1))

    def training_step(self, batch):  # type: ignore[no-untyped-def]
        return {"l2": ((self.net(batch.x) - batch.x) ** 2).mean()}

    def compute_map(self, x: torch.Tensor) -> torch.Tensor:
        return (self.net(x) - x).abs().mean(1)


def together(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """A command in two processes."""
    start = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(29000 + os.getpid() % 2000)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TOP)}
    return subprocess.run(
        [sys.executable, *start, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )


def test_two_processes_train_one_model(tmp_path: Path) -> None:
    for kind in ("Plain", "Tiny"):
        script = tmp_path / f"{kind}.py"
        script.write_text(
            "from anomalib_med import processes\n"
            "from safetensors.torch import save_file\n"
            "from tests.models.training.test_processes import Plain, Tiny, fitted\n"
            f"model = fitted({kind}(batch_size=6, steps=5))\n"
            f"save_file(model.detector.state()[0], f'{kind}{{processes.number()}}.safetensors')\n"
        )
        outcome = together([str(script)], tmp_path)
        assert outcome.returncode == 0, outcome.stderr
        first, second = (load_file(tmp_path / f"{kind}{n}.safetensors") for n in (0, 1))
        assert all(torch.equal(first[key], second[key]) for key in first)
        alone = fitted({"Plain": Plain, "Tiny": Tiny}[kind](batch_size=6, steps=5)).detector.state()[0]
        # Tiny draws other noise in each process, and its batch norms see half a batch.
        alike = all(torch.allclose(first[key], alone[key], rtol=1e-4, atol=1e-6) for key in first)
        assert alike == (kind == "Plain")


def test_the_command_writes_one_model_and_says_so_once(tmp_path: Path) -> None:
    (tmp_path / "normals").mkdir()
    for number, picture in enumerate(PICTURES):
        cv2.imwrite(str(tmp_path / "normals" / f"{number}.png"), picture)
    words = "fit normals -o model -m autoencoder --size 32 --device cpu -s steps=6 -s batch_size=4 -s patience=2"
    outcome = together(["-m", "anomalib_med", *words.split()], tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stderr.count("training: 6 / 6") == 1
    assert load(tmp_path / "model").training["steps"] == 6
    assert not list(tmp_path.glob("*.training"))


def test_what_cannot_be_shared_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="knn is not trained step by step: fit it in one process"):
        fit("knn", PICTURES, preprocessing=SMALL, device="cpu")
    with pytest.raises(ConfigError, match="steps of 3 images are too small for 2 processes"):
        fitted(Tiny(batch_size=3))
    assert_refused(anomed("score", tmp_path, tmp_path, "-o", tmp_path / "out"), "anomed score runs in one process")
