"""The loop of a training: from the first step to the last, in the order in which things happen.

All randomness of a step (order of the images, augmentation, dropout, what a detector draws) follows from the seed and
the number of the step, so an interrupted training ends with the same weights as one that was not interrupted.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import lru_cache
from typing import cast

import numpy as np
import torch
from pydantic import JsonValue
from torch import nn
from torch.optim import Optimizer

from anomalib_med import processes
from anomalib_med.errors import ConfigError, FitError, OutputError
from anomalib_med.models.training.normals import Normals, StepBatch
from anomalib_med.models.training.run import Training, TrainingRun
from anomalib_med.models.training.schedule import TrainingConfig, rate
from anomalib_med.models.training.trainee import Trainee, named

VALIDATION_SHARE = 0.1  # of the patients, where training may stop early
PLATEAU = 1e-3  # a validation loss that falls by less than this share of itself has not fallen
NOT_COMPARED = {"max_minutes", "memory_mb", "pooling", "smoothing"}  # settings that do not change what is learnt


class Loop:
    """One training of a detector, whose networks are built, on `normals`."""

    def __init__(self, detector: Trainee, normals: Normals, run: TrainingRun) -> None:
        c = detector.config
        self.detector, self.normals, self.settings, self.given = detector, normals, c, run
        hold_out = c.patience or (detector.holds_out and len(set(normals.patients)) > 1)
        self.learnt, self.judged = normals.split(VALIDATION_SHARE if hold_out else 0, c.seed)
        self.per_epoch = max(1, len(self.learnt) // c.batch_size)
        self.training = Training(c.steps or c.epochs * self.per_epoch)
        self.optimizers: dict[str, Optimizer] = {}
        self.selected: dict[str, torch.Tensor] = {}  # weights of the best epoch so far, where one is chosen

    def run(self) -> Training:
        """Train; afterwards the detector holds the weights that are kept, in evaluation mode."""
        self.detector.before_training(self._in_order(self.learnt))
        self.optimizers = self.detector.optimizers()
        self._resume()
        self._share_state()
        self._steps()
        if self.given.selection is not None:
            self.detector.load_weights(self.selected)
        self._finish()
        return self.training

    def _steps(self) -> None:
        """Step until the planned steps, the time or the patience are at an end."""
        training, run = self.training, self.given
        if training.stopped == "time":
            training.stopped = self._why_stop()  # a checkpoint that ran out of time may be given more of it
        written = said = time.monotonic()
        self._set_mode(training=True)
        batches = self._batches()
        while not training.stopped:
            start = time.monotonic()
            self._one_step(next(batches))
            training.step += 1
            ends_epoch = training.step % self.per_epoch == 0
            if self.settings.patience and ends_epoch:
                self._judge()
            training.seconds += time.monotonic() - start
            self._agree()
            training.stopped = self._why_stop()
            if run.selection is not None and (ends_epoch or training.stopped):
                self._select(run.selection.value)
            if (now := time.monotonic()) - said >= run.progress_every or training.stopped:
                said = now
                planned = training.step if training.stopped else training.steps  # a stage ends when all of it is done
                run.progress("training", training.step, planned, f"loss {sum(training.losses.values()):.4g}")
            if now - written >= run.checkpoint_every or training.stopped:
                self._keep()
                written = time.monotonic()

    def _one_step(self, batch: StepBatch) -> None:
        """One step of every optimizer; weights change only where losses and gradients are finite."""
        c, training, detector = self.settings, self.training, self.detector
        on_gpu = detector.device.type == "cuda"
        halved = c.mixed_precision and on_gpu and torch.cuda.is_bf16_supported()
        own = [processes.number()] if processes.number() else []
        _start_random(detector.device, c.seed, training.step, *own)
        training.losses = {}
        for name, optimizer in self.optimizers.items():
            with torch.autocast(detector.device.type, dtype=torch.bfloat16, enabled=halved):
                losses = detector.training_step(replace(batch, optimizer=name))
            if not losses:
                continue
            total = torch.stack([loss.float() for loss in losses.values()]).sum()
            for each in self.optimizers.values():
                each.zero_grad(set_to_none=True)
            weights = [p for group in optimizer.param_groups for p in group["params"]]
            total.backward(inputs=weights)  # type: ignore[no-untyped-call]
            values = torch.stack([loss.detach().float() for loss in losses.values()])
            if processes.count() > 1:
                processes.average([values, *(p.grad for p in weights if p.grad is not None)])
            training.losses |= dict(zip(losses, values.tolist(), strict=True))
            for key in losses:
                self._see_finite(training.losses[key], f'loss "{key}"', training.step + 1)
            if c.clip_norm:
                norm = nn.utils.clip_grad_norm_(weights, c.clip_norm)
                self._see_finite(float(norm), "the norm of the gradient", training.step + 1)
            for group in optimizer.param_groups:
                group["lr"] = group.setdefault("initial_lr", group["lr"]) * rate(c, training.step, training.steps)
            optimizer.step()
        self._share_state(buffers_alone=True)

    def _share_state(self, *, buffers_alone: bool = False) -> None:
        """Have every process continue with the weights and buffers of the first, such as means of batch norms."""
        if processes.count() == 1:
            return
        modules = nn.ModuleList(self.detector.modules().values())
        processes.broadcast([*modules.buffers(), *([] if buffers_alone else modules.parameters())])

    def _agree(self) -> None:
        """Have every process stop when the first one does."""
        if processes.count() == 1 or not (self.settings.max_minutes or self.settings.patience):
            return
        t = self.training
        shared = torch.tensor([t.seconds, t.best, t.stale], dtype=torch.float64, device=self.detector.device)
        processes.broadcast([shared])
        t.seconds, t.best, stale = shared.tolist()
        t.stale = int(stale)

    def _see_finite(self, value: float, what: str, step: int) -> None:
        """Refuse what is infinite or no number at a step, from 1."""
        if math.isfinite(value):
            return
        checkpoint = self.given.checkpoint
        has_kept = checkpoint is not None and checkpoint.read() is not None
        kept = f"; the last good checkpoint is kept in {checkpoint}" if has_kept else ""
        raise FitError(
            f"training stopped at step {step} of {self.training.steps} (epoch {(step - 1) // self.per_epoch + 1}): "
            f"{what} is {value}; lower learning_rate, set clip_norm=1, or look for damaged images{kept}"
        )

    def _in_order(self, rows: np.ndarray) -> Iterator[StepBatch]:
        return self.normals.batches(rows, self.settings.batch_size, self.detector.device)

    def _batches(self) -> Iterator[StepBatch]:
        """The batches of the steps that are left; where it takes time, the next is made while one is in use."""
        c, rows, normals, device = self.settings, self.learnt, self.normals, self.detector.device
        size = step_size(c, len(rows))  # what does not fill a batch is left out of that epoch

        @lru_cache(1)
        def order_of(epoch: int) -> np.ndarray:
            return np.random.default_rng((c.seed, epoch)).permutation(rows)

        def make(step: int) -> StepBatch:
            epoch, place = divmod(step, self.per_epoch)
            order = order_of(epoch)
            chosen = np.resize(order, max(size, len(order)))[place * size : (place + 1) * size]
            seeds = np.random.default_rng((c.seed, epoch, place)).integers(2**32, size=size)
            own = slice(processes.number(), None, processes.count())
            batch = normals.batch(chosen[own], device, seeds[own])
            return replace(batch, step=step, steps=self.training.steps)

        left = range(self.training.step, self.training.steps)
        if not normals.slow:
            yield from map(make, left)
            return
        with ThreadPoolExecutor(1, thread_name_prefix="anomed-batch") as pool:
            upcoming = pool.submit(make, left.start)
            for following in left[1:]:
                ready, upcoming = upcoming.result(), pool.submit(make, following)
                yield ready
            yield upcoming.result()

    def _judge(self) -> None:
        """Take the validation loss, that of the first optimizer, and whether it has fallen."""
        detector, training, first = self.detector, self.training, next(iter(self.optimizers))
        self._set_mode(training=False)
        _start_random(detector.device, self.settings.seed, -1)
        total = 0.0
        with torch.no_grad():
            for batch in self._in_order(self.judged):
                judged = replace(batch, optimizer=first, step=training.step - 1, steps=training.steps)
                total += sum(float(loss) for loss in detector.training_step(judged).values()) * len(batch.x)
        self._set_mode(training=True)
        loss = total / len(self.judged)
        fallen = loss < training.best - PLATEAU * abs(training.best) or math.isinf(training.best)
        training.best, training.stale = (loss, 0) if fallen else (training.best, training.stale + 1)

    def _select(self, value_of: Callable[[], float]) -> None:
        """Keep the weights where they are better than those of the epochs before; the last ones may end within one."""
        training, start = self.training, time.monotonic()
        self._finish()
        value = value_of()
        training.seconds += time.monotonic() - start
        if value > training.selected_value:
            training.selected_step, training.selected_value = training.step, value
            self.selected = {key: tensor.clone() for key, tensor in self.detector.state()[0].items()}
        self._set_mode(training=True)

    def _finish(self) -> None:
        """Make the detector ready to score."""
        self._set_mode(training=False)
        with torch.no_grad():
            self.detector.after_training(self._in_order(self.judged if len(self.judged) else self.learnt))

    def _why_stop(self) -> str:
        training, c = self.training, self.settings
        if training.step >= training.steps:
            return "finished"
        if c.patience and training.stale >= c.patience:
            return "plateau"
        return "time" if c.max_minutes and training.seconds >= 60 * c.max_minutes else ""

    def _keep(self) -> None:
        """Write a checkpoint, of finite weights only."""
        if self.given.checkpoint is None or processes.number():
            return
        tensors = {f"weights.{key}": value for key, value in self.detector.state()[0].items()}
        tensors |= {f"selected.{key}": value for key, value in self.selected.items()}
        for key, value in tensors.items():
            if value.is_floating_point() and not value.isfinite().all():
                self._see_finite(math.nan, f"the value of {key}", self.training.step)
        description = {"identity": self._identity(), "training": asdict(self.training)}
        self.given.checkpoint.write(tensors | _optimizer_tensors(self.optimizers), description)

    def _resume(self) -> None:
        """Continue from the checkpoint where there is one of this training."""
        checkpoint = self.given.checkpoint
        kept = None if checkpoint is None else checkpoint.read()
        if kept is None:
            return
        tensors, description = kept
        own, other = self._identity(), cast(dict[str, JsonValue], description["identity"])
        if own != other:
            if self.given.replace_other:
                return
            changed = ", ".join(key for key in own if own[key] != other.get(key)) or "version"
            raise OutputError(
                f"{checkpoint} is the checkpoint of another training ({changed} differ): run that command again "
                "to continue it, or delete the file"
            )
        self.detector.load_weights(named("weights.", tensors))
        self.selected = named("selected.", tensors)
        _load_optimizers(self.optimizers, tensors)
        self.training = Training(**cast(dict[str, object], description["training"]))  # type: ignore[arg-type]

    def _identity(self) -> dict[str, JsonValue]:
        """What must be equal for two trainings to be the same one."""
        detector, selection = self.detector, self.given.selection
        weights = detector.extractor.key() if detector.uses_features else ""
        settings = self.settings.model_dump(mode="json", exclude=NOT_COMPARED)
        known = {"detector": detector.name, **settings, "backbone weights": weights, "images": self.normals.digest}
        return known if selection is None else known | {"selection": selection.images}

    def _set_mode(self, *, training: bool) -> None:
        nn.ModuleList(self.detector.modules().values()).train(training)


def step_size(c: TrainingConfig, images: int) -> int:
    """How many images a step takes; a ConfigError for fewer than two, which batch norms need, in each process."""
    size, several = min(c.batch_size, max(2, images)), processes.count()
    if several > 1 and size < 2 * several:
        raise ConfigError(f"steps of {size} images are too small for {several} processes: each needs two images")
    return size


def _optimizer_tensors(optimizers: Mapping[str, Optimizer]) -> dict[str, torch.Tensor]:
    """What the optimizers remember, by optimizer, number of the weight and kind. Their settings are not in it."""
    return {
        f"optimizer.{name}.{number}.{kind}": value
        for name, optimizer in optimizers.items()
        for number, values in optimizer.state_dict()["state"].items()
        for kind, value in values.items()
        if isinstance(value, torch.Tensor)
    }


def _load_optimizers(optimizers: Mapping[str, Optimizer], tensors: Mapping[str, torch.Tensor]) -> None:
    for name, optimizer in optimizers.items():
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in named(f"optimizer.{name}.", tensors).items():
            number, _, kind = key.partition(".")
            state.setdefault(int(number), {})[kind] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _start_random(device: torch.device, *numbers: int) -> None:
    """Seed the generators that a step may draw from; torch.manual_seed takes half a millisecond to seek others."""
    seed = int(np.random.SeedSequence([n % 2**32 for n in numbers]).generate_state(1, np.uint64)[0] >> 1)
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Leave the caller's random state alone, and use no algorithm of a GPU whose result varies."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.backends.cudnn.flags(deterministic=True, benchmark=False):
        yield
