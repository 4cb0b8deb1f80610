"""What the trainer promises: the same weights again, also after an interruption; a usable model or a clear error."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import Field
from torch import nn
from torch.optim import Optimizer

from anomalib_med import FittedModel, Preprocessing, Sample, checkpoints, fit, load
from anomalib_med.errors import ConfigError, FitError, OutputError
from anomalib_med.models.blocks import Decoder, Encoder
from anomalib_med.models.training import loop
from anomalib_med.models.training.normals import Normals, StepBatch
from anomalib_med.models.training.run import Training
from anomalib_med.models.training.schedule import TrainingConfig, rate
from anomalib_med.models.training.trainer import TrainedDetector
from anomalib_med.preprocessing import Frames
from tests.conftest import normal_picture

PICTURES = np.stack([normal_picture(i, (40, 40)) for i in range(12)])
SMALL = Preprocessing(size=32, aspect="stretch")


class Tiny(TrainedDetector):
    """A small autoencoder with batch norm, dropout and noise of its own: all that could go wrong in a resume."""

    name = "tiny"
    title = "Tiny autoencoder"

    class Config(TrainingConfig):
        epochs: int = 4
        batch_size: int = 3
        dropout: float = Field(0.2, ge=0)

    config: Config

    def build(self, shape: tuple[int, ...]) -> None:
        self.encoder = Encoder(shape[0], (4, 8), dropout=self.config.dropout)
        self.decoder = Decoder(shape[0], (4, 8))

    def training_step(self, batch: StepBatch) -> dict[str, torch.Tensor]:
        noisy = batch.x + 0.1 * torch.randn_like(batch.x)
        return {"l2": ((self.decoder(self.encoder(noisy)) - batch.x) ** 2).mean()}

    def compute_map(self, x: torch.Tensor) -> torch.Tensor:
        return self.each(lambda one: (self.decoder(self.encoder(one)) - one).abs().mean(1), x.to(self.device))


class Rival(Tiny):
    """Two optimisers that take turns."""

    name = "rival"
    title = "Two networks in turn"

    def build(self, shape: tuple[int, ...]) -> None:
        super().build(shape)
        self.judge = nn.Sequential(nn.Flatten(), nn.LazyLinear(1))
        self.judge(torch.zeros(1, *shape))
        self.turns: list[str] = []

    def optimisers(self) -> dict[str, Optimizer]:
        own = [*self.encoder.parameters(), *self.decoder.parameters()]
        return {"judge": torch.optim.SGD(self.judge.parameters(), 0.01, momentum=0.9), "own": torch.optim.Adam(own)}

    def training_step(self, batch: StepBatch) -> dict[str, torch.Tensor]:
        made = self.decoder(self.encoder(batch.x))
        self.turns.append(batch.turn)
        if batch.turn == "judge":
            if batch.step % 2:
                return {}
            return {"judge": (self.judge(batch.x) - 1).square().mean() + self.judge(made.detach()).square().mean()}
        return {"l2": (made - batch.x).square().mean(), "fool": 0.01 * (self.judge(made) - 1).square().mean()}


def fitted(detector: TrainedDetector | None = None, **options: object) -> FittedModel:
    return fit(
        detector or Tiny(), PICTURES, **({"preprocessing": SMALL, "device": "cpu", "calibration": 0.0} | options)
    )


def weights(model: FittedModel) -> dict[str, torch.Tensor]:
    return model.detector.state()[0]


def equal(a: FittedModel, b: FittedModel) -> bool:
    return all(torch.equal(value, weights(b)[key]) for key, value in weights(a).items())


def training(model: FittedModel) -> Training:
    assert isinstance(model.detector, TrainedDetector) and model.detector.training is not None
    return model.detector.training


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress and a checkpoint after each step."""
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", 0.0)
    monkeypatch.setattr(loop, "SAY_EVERY", 0.0)


class Killed(BaseException):
    pass


def kill_after(step: int) -> Callable[..., None]:
    def progress(stage: str, done: int, *_: object) -> None:
        if stage == "training" and done == step:
            raise Killed

    return progress


# The same model again


def test_same_seed_same_weights_and_another_seed_others() -> None:
    assert equal(fitted(), fitted())
    assert not equal(fitted(), fitted(Tiny(seed=1)))


def test_training_leaves_the_random_state_of_the_caller_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fitted()
    assert torch.equal(torch.rand(3), expected)


def test_training_lowers_the_loss() -> None:
    losses = [training(fitted(Tiny(epochs=epochs, dropout=0))).losses["l2"] for epochs in (1, 40)]
    assert losses[1] < 0.5 * losses[0]


@pytest.mark.parametrize("kind", [Tiny, Rival])
@pytest.mark.parametrize("settings", [{}, {"augment": True, "schedule": "cosine", "warmup": 0.2}, {"patience": 9}])
def test_an_interrupted_training_goes_on_to_the_same_weights(
    kind: type[Tiny], settings: dict[str, object], tmp_path: Path, every_step: None
) -> None:
    file = tmp_path / "training"
    whole = fitted(kind(**settings))
    for step in np.random.default_rng().choice(np.arange(1, training(whole).steps), 3, replace=False):
        with pytest.raises(Killed):
            fitted(kind(**settings), checkpoint=file, progress=kill_after(int(step)))
        resumed = fitted(kind(**settings), checkpoint=file)
        assert equal(whole, resumed), f"interrupted at step {step}"
        assert resumed.fingerprint() == whole.fingerprint()
        file.unlink()


KILLED_RUN = """
import os, signal, sys
from anomalib_med.models.training import loop
from tests.models.training.test_trainer import fitted
loop.CHECKPOINT_EVERY = loop.SAY_EVERY = 0.0

def progress(stage, done, *rest):
    if stage == "training" and done == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

fitted(checkpoint=sys.argv[1], progress=progress)
"""


def test_a_killed_process_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    file, step = tmp_path / "training", int(np.random.default_rng().integers(2, 16))
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    run = subprocess.run([sys.executable, "-c", KILLED_RUN, str(file), str(step)], cwd=root, env=environment)
    assert run.returncode == -signal.SIGKILL
    assert file.exists()
    assert equal(fitted(checkpoint=file), fitted()), f"killed at step {step}"


def test_a_finished_checkpoint_trains_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fitted(checkpoint=tmp_path / "training")

    def fail(*_: object) -> None:
        raise AssertionError("a step was taken")

    monkeypatch.setattr(Tiny, "training_step", fail)
    assert equal(whole, fitted(checkpoint=tmp_path / "training"))


def test_the_checkpoint_of_another_training_is_refused_or_replaced(tmp_path: Path) -> None:
    file = tmp_path / "training"
    fitted(checkpoint=file)
    with pytest.raises(OutputError, match=r"another training \(learning_rate differ\)"):
        fitted(Tiny(learning_rate=0.01), checkpoint=file)
    with pytest.raises(OutputError, match=r"another training \(images differ\)"):
        fit(Tiny(), PICTURES[1:], preprocessing=SMALL, device="cpu", calibration=0, checkpoint=file)
    replaced = fitted(Tiny(learning_rate=0.01), checkpoint=file, replace_checkpoint=True)
    assert equal(replaced, fitted(Tiny(learning_rate=0.01)))


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "training").write_bytes(b"\x00" * 100)
    with pytest.raises(OutputError, match="delete it to start anew"):
        fitted(checkpoint=tmp_path / "training")


# When things go wrong


class Poisoned(Tiny):
    """One batch gives no number."""

    name = "poisoned"
    title = "Not a number at step 7"

    def training_step(self, batch: StepBatch) -> dict[str, torch.Tensor]:
        losses = super().training_step(batch)
        return {**losses, "extra": losses["l2"] * (float("nan") if batch.step == 6 else 0.0)}


def test_a_loss_that_is_not_finite_ends_the_training_and_keeps_the_last_checkpoint(
    tmp_path: Path, every_step: None
) -> None:
    file = tmp_path / "training"
    with pytest.raises(FitError, match=r'step 7 of 16 \(epoch 2\): loss "extra" is nan; lower learning_rate.*kept in'):
        fitted(Poisoned(), checkpoint=file)
    found = checkpoints.CheckpointFile(file).read()
    assert found is not None
    assert found[1]["training"]["step"] == 6  # type: ignore[index, call-overload]
    assert all(value.isfinite().all() for value in found[0].values())


def test_a_poisoned_image_is_reported(tmp_path: Path) -> None:
    detector = Tiny(batch_size=1)
    pictures = PICTURES.astype(np.float32)
    original = Frames.batches

    def poisoned(self: Frames, size: int) -> Iterator[object]:
        for number, batch in enumerate(original(self, 1)):
            if number == 3:
                batch.x[:] = float("nan")
            yield batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Frames, "batches", poisoned)
        with pytest.raises(FitError, match=r'loss "l2" is nan'):
            fit(detector, pictures, preprocessing=SMALL, device="cpu", calibration=0)


def test_a_full_disk_keeps_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every_step: None
) -> None:
    file, count = tmp_path / "training", 0
    original = checkpoints.save_file

    def full(tensors: dict[str, torch.Tensor], path: Path, header: dict[str, str]) -> None:
        nonlocal count
        count += 1
        if count == 5:
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(tensors, path, header)

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(OutputError, match=r"No space left on device.*the checkpoint before it is kept"):
        fitted(checkpoint=file)
    assert [entry.name for entry in tmp_path.iterdir()] == ["training"]
    assert equal(fitted(checkpoint=file), fitted())


# When it ends


def test_a_time_budget_ends_in_a_usable_model(tmp_path: Path) -> None:
    model = fitted(Tiny(epochs=100_000, max_minutes=0.01))
    state = training(model)
    assert state.stopped == "time" and 1 <= state.step < state.steps
    assert model.training["steps"] == state.step and model.training["planned_steps"] == 400_000
    assert any(f"ended after {state.step} of 400000 steps" in note for note in model.notes)
    with pytest.warns(UserWarning, match="max_minutes"):
        again = load(model.save(tmp_path / "model"), device="cpu")
    assert np.isfinite(again.score(PICTURES).scores).all()
    assert again.score(PICTURES).scores.tolist() == model.score(PICTURES).scores.tolist()


def test_more_time_goes_on_where_the_budget_ended(tmp_path: Path) -> None:
    file = tmp_path / "training"
    short = fitted(Tiny(epochs=200, max_minutes=1e-6), checkpoint=file)
    assert training(short).step == 1
    assert equal(fitted(Tiny(epochs=200), checkpoint=file), fitted(Tiny(epochs=200)))


def test_training_stops_on_a_plateau_of_the_validation_loss() -> None:
    class Still(Tiny):
        title = "Does not learn"

        def training_step(self, batch: StepBatch) -> dict[str, torch.Tensor]:
            return {"still": 1 + 0 * self.decoder(self.encoder(batch.x)).sum()}

    state = training(fitted(Still(epochs=50, patience=3)))
    per_epoch = 11 // 3  # one of twelve patients is held out
    assert (state.stopped, state.step) == ("plateau", 4 * per_epoch)
    assert training(fitted(Still(epochs=5))).stopped == "finished"


def test_early_stop_holds_out_whole_patients() -> None:
    samples = [Sample(f"{i}", array=PICTURES[i], patient=f"p{i // 3}") for i in range(12)]
    normals = Normals(Frames(samples, SMALL), lambda x: x, 4, augment=False, memory_mb=1)
    learnt, judged = normals.split(0.25, seed=0)
    assert sorted([*learnt, *judged]) == list(range(12))
    assert not {i // 3 for i in learnt} & {i // 3 for i in judged}
    assert len(judged) == 3
    with pytest.raises(FitError, match="one patient"):
        fit(Tiny(patience=1), samples[:3], preprocessing=SMALL, device="cpu", calibration=0)


# Steps


def test_optimisers_take_turns_and_a_turn_without_losses_is_skipped() -> None:
    model = fitted(Rival(epochs=1))
    detector = model.detector
    assert isinstance(detector, Rival)
    assert detector.turns == ["judge", "own"] * 4
    assert set(training(model).losses) == {"l2", "fool"}  # the last step is an odd one
    before = fitted(Rival(steps=1)).detector.state()[0]
    after = fitted(Rival(steps=2)).detector.state()[0]
    assert torch.equal(before["judge.1.weight"], after["judge.1.weight"])
    assert not torch.equal(before["decoder.0.0.weight"], after["decoder.0.0.weight"])


class Steep(TrainedDetector):
    """A weight whose gradient is huge."""

    name = "steep"
    title = "Gradient of a thousand"

    def build(self, shape: tuple[int, ...]) -> None:
        self.line = nn.Linear(4, 1, bias=False)
        nn.init.zeros_(self.line.weight)

    def optimisers(self) -> dict[str, Optimizer]:
        return {"all": torch.optim.SGD(self.line.parameters(), 1.0)}

    def training_step(self, batch: StepBatch) -> dict[str, torch.Tensor]:
        return {"steep": 1000 * self.line.weight.sum()}

    def compute_map(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(1)


def test_gradients_are_clipped() -> None:
    norms = [float(fitted(Steep(steps=1, clip_norm=c)).detector.state()[0]["line.weight"].norm()) for c in (0.5, 0)]
    assert norms == pytest.approx([0.5, 2000])


def test_the_learning_rate_rises_and_falls() -> None:
    config = TrainingConfig(schedule="cosine", warmup=0.1)
    rates = [rate(config, step, 100) for step in range(100)]
    assert rates[:10] == sorted(rates[:10]) and rates[0] < 0.1
    assert rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True) and rates[-1] == pytest.approx(0.01, abs=0.001)
    assert {rate(TrainingConfig(), step, 100) for step in range(100)} == {1.0}
    moved = [float(fitted(Steep(steps=n, schedule="cosine")).detector.state()[0]["line.weight"][0, 0]) for n in (1, 9)]
    assert moved[0] == -1000 and -9000 < moved[1] < -4000


def test_each_image_is_seen_once_an_epoch_in_a_new_order() -> None:
    seen: list[list[float]] = []

    class Watching(Tiny):
        title = "Remembers what it sees"

        def training_step(self, batch: StepBatch) -> dict[str, torch.Tensor]:
            seen.append(batch.x.mean((1, 2, 3)).tolist())
            return super().training_step(batch)

    fitted(Watching(epochs=2))
    first, second = ([value for batch in part for value in batch] for part in (seen[:4], seen[4:]))
    assert len(set(first)) == 12 and sorted(first) == sorted(second) and first != second


def test_files_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    original = Frames.outcomes

    def counted(self: Frames) -> Iterator[object]:
        passes.append(len(self))
        return original(self)

    monkeypatch.setattr(Frames, "outcomes", counted)
    fitted(Tiny(epochs=5), calibration=0.25)
    assert passes == [9, 3]


def test_images_beyond_the_memory_lie_in_a_file_and_train_alike() -> None:
    assert equal(fitted(Tiny(memory_mb=0.001)), fitted())


@pytest.mark.parametrize("count", [1, 2])
def test_very_few_images_train(count: int) -> None:
    model = fit(Tiny(epochs=2), PICTURES[:count], preprocessing=SMALL, device="cpu", calibration=0)
    assert np.isfinite(model.score(PICTURES).scores).all()


# Inputs


def test_inputs_are_made_square_unless_another_shape_is_asked_for() -> None:
    pictures = [normal_picture(0, (60, 30)), normal_picture(1, (30, 60)), normal_picture(2)]
    model = fit(Tiny(epochs=1), pictures, preprocessing=Preprocessing(size=32), device="cpu", calibration=0)
    assert model.preprocessing.aspect == "stretch"
    padded = Preprocessing(size=32, aspect="pad")
    assert fit(Tiny(epochs=1), pictures, preprocessing=padded, device="cpu").preprocessing.aspect == "pad"
    with pytest.raises(ConfigError, match='aspect "keep" gives others, use "stretch" or "pad"'):
        fit(Tiny(), pictures, preprocessing=Preprocessing(size=32, aspect="keep"), device="cpu")
    assert fit(Tiny(epochs=1), pictures, device="cpu").preprocessing.size == Tiny.input_size


def test_an_untrained_detector_says_so() -> None:
    with pytest.raises(FitError, match="not trained"):
        Tiny().anomaly_map(torch.zeros(1, 1, 32, 32))
