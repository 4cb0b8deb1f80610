"""What the trainer promises: the same weights again, also after an interruption; a usable model or a clear error."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from pydantic import Field, JsonValue
from torch import nn
from torch.optim import Optimizer

from anomalib_med import FittedModel, Preprocessing, Sample, fit, load
from anomalib_med.checkpoints import CheckpointFile
from anomalib_med.errors import ConfigError, FitError, OutputError
from anomalib_med.models.blocks import Decoder, Encoder
from anomalib_med.models.training import (
    NO_RUN,
    Normals,
    Selection,
    StepBatch,
    TrainedDetector,
    Training,
    TrainingConfig,
    TrainingRun,
    rate,
)
from anomalib_med.preprocessing import Frames
from anomalib_med.records import Progress, silent
from tests.conftest import normal_picture
from tests.models.made_up_frames import frames_of

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
    """Two optimizers that take turns."""

    name = "rival"
    title = "Two networks in turn"

    def build(self, shape: tuple[int, ...]) -> None:
        super().build(shape)
        self.judge = nn.Sequential(nn.Flatten(), nn.LazyLinear(1))
        self.judge(torch.zeros(1, *shape))
        self.turns: list[str] = []

    def optimizers(self) -> dict[str, Optimizer]:
        own = [*self.encoder.parameters(), *self.decoder.parameters()]
        return {"judge": torch.optim.SGD(self.judge.parameters(), 0.01, momentum=0.9), "own": torch.optim.Adam(own)}

    def training_step(self, batch: StepBatch) -> dict[str, torch.Tensor]:
        made = self.decoder(self.encoder(batch.x))
        self.turns.append(batch.optimizer)
        if batch.optimizer == "judge":
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


def trained(detector: TrainedDetector, run: TrainingRun = NO_RUN, pictures: np.ndarray = PICTURES) -> TrainedDetector:
    detector.fit(frames_of(pictures, side=32), run)  # type: ignore[arg-type]
    return detector


def alike(a: TrainedDetector, b: TrainedDetector) -> bool:
    own, other = a.state()[0], b.state()[0]
    return own.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in own.items())


def every_step(file: Path, progress: Progress = silent, selection: Selection | None = None) -> TrainingRun:
    """A run with progress and a checkpoint after each step."""
    checkpoint = CheckpointFile(file)
    return TrainingRun(checkpoint, progress=progress, selection=selection, checkpoint_every=0, progress_every=0)


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
    kind: type[Tiny], settings: dict[str, object], tmp_path: Path
) -> None:
    file = tmp_path / "training"
    whole = trained(kind(**settings))
    assert whole.training is not None
    for step in np.random.default_rng().choice(np.arange(1, whole.training.steps), 3, replace=False):
        with pytest.raises(Killed):
            trained(kind(**settings), every_step(file, kill_after(int(step))))
        taken: list[int] = []
        resumed = trained(kind(**settings), every_step(file, lambda _, done, *rest: taken.append(done)))  # noqa: B023
        # The step at which the progress was told has no checkpoint yet.
        assert taken == list(range(int(step), whole.training.steps + 1))
        assert alike(whole, resumed), f"interrupted at step {step}"
        assert resumed.training is not None and resumed.training.losses == whole.training.losses
        file.unlink()


KILLED_RUN = """
import os, signal, sys
from pathlib import Path
from tests.models.training.test_trainer import Tiny, every_step, trained

def progress(stage, done, *rest):
    if stage == "training" and done == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

trained(Tiny(), every_step(Path(sys.argv[1]), progress))
"""


def test_a_killed_process_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    file, step = tmp_path / "training", int(np.random.default_rng().integers(2, 16))
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    run = subprocess.run([sys.executable, "-c", KILLED_RUN, str(file), str(step)], cwd=root, env=environment)
    assert run.returncode == -signal.SIGKILL
    assert file.exists()
    assert alike(trained(Tiny(), every_step(file)), trained(Tiny())), f"killed at step {step}"


def test_fit_goes_on_from_its_checkpoint_file(tmp_path: Path) -> None:
    """The same as above by way of a time budget, with everything that fit adds."""
    file = tmp_path / "training"
    short = fitted(Tiny(epochs=200, max_minutes=1e-6), checkpoint=file)
    assert training(short).step == 1
    whole = fitted(Tiny(epochs=200))
    resumed = fitted(Tiny(epochs=200), checkpoint=file)
    assert equal(resumed, whole) and resumed.fingerprint() == whole.fingerprint()


def test_a_finished_checkpoint_trains_no_more(tmp_path: Path) -> None:
    steps: list[int] = []

    class Counted(Tiny):
        title = "Counts its steps"

        def training_step(self, batch: StepBatch) -> dict[str, torch.Tensor]:
            steps.append(batch.step)
            return super().training_step(batch)

    first = fitted(Counted(), checkpoint=tmp_path / "training")
    assert len(steps) == 16
    assert equal(first, fitted(Counted(), checkpoint=tmp_path / "training"))
    assert len(steps) == 16


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


def test_a_loss_that_is_not_finite_ends_the_training_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "training"
    with pytest.raises(FitError, match=r'step 7 of 16 \(epoch 2\): loss "extra" is nan; lower learning_rate.*kept in'):
        trained(Poisoned(), every_step(file))
    found = CheckpointFile(file).read()
    assert found is not None
    assert found[1]["training"]["step"] == 6  # type: ignore[index, call-overload]
    assert all(value.isfinite().all() for value in found[0].values())


def test_weights_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    class Broken(Tiny):
        title = "Loses a weight after step 3"

        def training_step(self, batch: StepBatch) -> dict[str, torch.Tensor]:
            if batch.step == 2:
                self.encoder.register_buffer("spoilt", torch.tensor(float("nan")))
            return super().training_step(batch)

    with pytest.raises(
        FitError, match=r"step 3 of 16 \(epoch 1\): the value of weights\.encoder\.spoilt is nan.*kept in"
    ):
        trained(Broken(), every_step(tmp_path / "training"))


def test_a_poisoned_image_is_reported() -> None:
    frames = frames_of(PICTURES, side=32)
    frames.x[3] = float("nan")
    with pytest.raises(FitError, match=r'loss "l2" is nan'):
        Tiny(batch_size=1).fit(frames)  # type: ignore[arg-type]


class FullDisk(CheckpointFile):
    """Takes four checkpoints; then files may grow no more."""

    written: ClassVar[int] = 0

    def write(self, tensors: Mapping[str, torch.Tensor], description: Mapping[str, JsonValue]) -> None:
        FullDisk.written += 1
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            if FullDisk.written > 4:
                resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
            super().write(tensors, description)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    file = tmp_path / "training"
    with pytest.raises(OutputError, match=r"cannot be written.*File too large.*the checkpoint before it is kept"):
        trained(Tiny(), replace(every_step(file), checkpoint=FullDisk(file)))
    assert [entry.name for entry in tmp_path.iterdir()] == ["training"]
    kept = CheckpointFile(file).read()
    assert kept is not None and kept[1]["training"]["step"] == 4  # type: ignore[index, call-overload]
    assert alike(trained(Tiny(), every_step(file)), trained(Tiny()))


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


def test_optimizers_take_turns_and_a_turn_without_losses_is_skipped() -> None:
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

    def optimizers(self) -> dict[str, Optimizer]:
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


def test_files_are_read_once() -> None:
    read: dict[str, int] = {}

    def count(stage: str, done: int, total: int, note: str = "") -> None:
        read[stage] = max(done, read.get(stage, 0))

    fitted(Tiny(epochs=5), calibration=0.25, progress=count)
    assert read == {"reading normals": 9, "training": 15, "scoring held-out normals": 3}


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
    with pytest.raises(FitError, match="not fitted"):
        Tiny().anomaly_map(torch.zeros(1, 1, 32, 32))
