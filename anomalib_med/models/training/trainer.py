"""The one trainer: what every trained detector shares, from the first step to the last.

A trained detector builds its networks in :meth:`TrainedDetector.build` and gives its losses in
:meth:`TrainedDetector.training_step`; everything else is here, in the order in which it happens. All randomness of a
step (order of the images, augmentation, dropout, what a detector draws) follows from the seed and the number of the
step, so that a checkpoint needs no state of a generator, and an interrupted training goes on to the same weights.
"""

import json
import math
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, cast

import numpy as np
import torch
from pydantic import JsonValue
from torch import nn
from torch.optim import Optimizer

from anomalib_med import processes
from anomalib_med.errors import ConfigError, FitError, OutputError
from anomalib_med.models.base import Detector, DetectorConfig, TrainingFrames
from anomalib_med.models.training.checkpoint import (
    Training,
    load_optimisers,
    optimiser_tensors,
    read_checkpoint,
    write_checkpoint,
)
from anomalib_med.models.training.config import TrainingConfig, rate
from anomalib_med.models.training.normals import Normals, StepBatch
from anomalib_med.models.training.selection import Selection

VALIDATION_SHARE = 0.1  # of the patients, where training may stop early
PLATEAU = 1e-3  # a validation loss that falls by less than this share of itself has not fallen
SAY_EVERY = 0.2  # seconds between two calls of progress
CHECKPOINT_EVERY = 60.0  # seconds


class TrainedDetector(Detector):
    """A detector that is trained by gradient descent.

    A subclass gives `title`, a `Config` that is a :class:`TrainingConfig` (or :class:`FeatureTrainingConfig`),
    :meth:`build`, :meth:`training_step` and :meth:`anomaly_map`. Every ``nn.Module`` that :meth:`build` assigns to an
    attribute is trained, moved, saved and loaded; at scoring it is in evaluation mode.

    Attributes
    ----------
    holds_out
        Whether a tenth of the normals' patients is kept from training in any case, for :meth:`after_training`.
    checkpoint
        File in which an unfinished training is kept, and from which it goes on; None for none.
    discard_other
        Whether a checkpoint there of another training may be replaced.
    selection
        How the weights of an epoch are chosen; None for those of the last step.
    training
        How the training went; None before it, and in a loaded model.
    """

    Config: ClassVar[type[DetectorConfig]] = TrainingConfig
    square = True
    holds_out: ClassVar[bool] = False
    config: TrainingConfig

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings)
        self.checkpoint: Path | None = None
        self.discard_other = False
        self.selection: Selection | None = None
        self.training: Training | None = None
        self.shape: tuple[int, ...] = ()  # of one image as training sees it

    @abstractmethod
    def build(self, shape: tuple[int, ...]) -> None:
        """Assign the networks for inputs of this shape, ``(C, H, W)`` as :meth:`prepare` gives them, on the CPU."""

    @abstractmethod
    def training_step(self, batch: StepBatch) -> dict[str, torch.Tensor]:
        """Losses by name, each a scalar, whose sum is minimised. With several optimisers it is called for each in turn,
        and `batch.turn` says for which; where there are no losses the turn is skipped.
        """

    def prepare(self, x: torch.Tensor) -> torch.Tensor:
        """What training sees of images ``(B, C, H, W)``, such as frozen features: made once for each image, or at each
        use where images are augmented. By default the images.
        """
        return x

    def optimisers(self) -> dict[str, Optimizer]:
        """Optimisers by name, in the order of their turns; by default one Adam over all weights that learn."""
        weights = [p for module in self.modules().values() for p in module.parameters() if p.requires_grad]
        return {"all": torch.optim.Adam(weights, self.config.learning_rate, weight_decay=self.config.weight_decay)}

    def before_training(self, batches: Iterator[StepBatch]) -> None:
        """Take what is needed of the normals before the first step, such as statistics for buffers of a module."""

    def after_training(self, batches: Iterator[StepBatch]) -> None:
        """Take what is needed of the normals after the last step, without gradients and in evaluation mode.

        `batches` are those held out, for `patience` or because the class `holds_out`, where there are such, else those
        that were learnt from.
        """

    def modules(self) -> dict[str, nn.Module]:
        """The networks by the name of their attribute."""
        return {name: value for name, value in vars(self).items() if isinstance(value, nn.Module)}

    def fit(self, frames: TrainingFrames) -> None:
        """Train on normals, going on from the checkpoint where there is one of this training.

        Raises
        ------
        FitError
            No image; a loss that is not finite.
        ConfigError
            Inputs that differ in shape; too few images in a batch for several processes.
        OutputError
            A checkpoint that cannot be written, or one of another training in its place.
        """
        c = self.config
        size = c.batch_size if self.extractor is None else self.extractor.batch_size
        normals = Normals(frames, self.prepare, size, augment=c.augment, memory_mb=c.memory_mb)
        everything = np.arange(len(normals))
        hold_out = c.patience or (self.holds_out and len(set(normals.patients)) > 1)
        learnt, judged = normals.split(VALIDATION_SHARE, c.seed) if hold_out else (everything, everything[:0])
        first = normals.batch(everything[:1], self.device)
        with _reproducible(self.device), processes.joined(self.device):
            self._build(tuple(first.x.shape[1:]), c.seed)
            self.before_training(normals.batches(learnt, c.batch_size, self.device))
            optimisers = self.optimisers()
            self.training = _resumed(self, optimisers, normals) or Training(_planned(c, len(learnt)))
            _settle(self)
            unseen = judged if len(judged) else learnt

            def finish() -> None:
                _set_mode(self, training=False)
                with torch.no_grad():
                    self.after_training(normals.batches(unseen, c.batch_size, self.device))

            _train(self, optimisers, normals, learnt, judged, finish)
            if self.selection is not None:
                self._load(self.selection.weights)
            finish()

    def each(self, function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """`function` of a batch; on the CPU of its images one by one, where rounding would depend on the batch."""
        if self.device.type != "cpu":
            return function(x)
        return torch.cat([function(image[None]) for image in x])

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, JsonValue]]:
        """Weights and buffers of all networks, and the shape they were built for."""
        tensors = {f"{name}.{key}": v for name, m in self.modules().items() for key, v in m.state_dict().items()}
        return {key: value.detach().cpu() for key, value in tensors.items()}, {"shape": list(self.shape)}

    def load_state(self, tensors: Mapping[str, torch.Tensor], extra: Mapping[str, JsonValue]) -> None:
        """Take what :meth:`state` gave."""
        with torch.random.fork_rng(devices=[]):
            self._build(tuple(cast(list[int], extra["shape"])), self.config.seed)
        self._load(tensors)
        _set_mode(self, training=False)

    def to(self, device: torch.device) -> "TrainedDetector":
        """Move the networks and the extractor."""
        super().to(device)
        for module in self.modules().values():
            module.to(device)
        return self

    def _build(self, shape: tuple[int, ...], seed: int) -> None:
        torch.manual_seed(seed)
        self.shape = shape
        self.build(shape)
        self.to(self.device)

    def _load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, module in self.modules().items():
            module.load_state_dict(_named(f"{name}.", tensors))

    def _check_trained(self) -> None:
        if not self.shape:
            raise FitError(f"{self.title} is not trained: call fit, or load a saved model")


def _train(
    detector: TrainedDetector,
    optimisers: dict[str, Optimizer],
    normals: Normals,
    learnt: np.ndarray,
    judged: np.ndarray,
    finish: Callable[[], None],
) -> None:
    """Step until the planned steps, the time or the patience are at an end."""
    c, training = detector.config, cast(Training, detector.training)
    if training.stopped == "time" and not _out_of_time(c, training):
        training.stopped = ""  # a checkpoint that ran out of time is given more of it
    per_epoch = _steps_per_epoch(c, len(learnt))
    written = said = time.monotonic()
    _set_mode(detector, training=True)
    batches = _batches(normals, learnt, c, training.step, training.steps, detector.device)
    while not training.stopped:
        start = time.monotonic()
        _one_step(detector, optimisers, next(batches), training, per_epoch)
        training.step += 1
        if c.patience and training.step % per_epoch == 0:
            _judge(detector, next(iter(optimisers)), normals.batches(judged, c.batch_size, detector.device), training)
        training.seconds += time.monotonic() - start
        _agree(detector, training)
        training.stopped = _why_stop(c, training)
        if detector.selection is not None and (training.step % per_epoch == 0 or training.stopped):
            _select(detector, detector.selection, training, finish)
        now = time.monotonic()
        if now - said >= SAY_EVERY or training.stopped:
            said = now
            planned = training.step if training.stopped else training.steps  # a stage ends when all of it is done
            detector.progress("training", training.step, planned, f"loss {sum(training.losses.values()):.4g}")
        if now - written >= CHECKPOINT_EVERY or training.stopped:
            _keep(detector, optimisers, normals)
            written = time.monotonic()


def _one_step(
    detector: TrainedDetector, optimisers: dict[str, Optimizer], batch: StepBatch, training: Training, per_epoch: int
) -> None:
    """One step of every optimiser; weights change only where losses and gradients are finite."""
    c = detector.config
    own = [processes.number()] if processes.number() else []
    _start_random(_seed(c.seed, training.step, *own), detector.device)
    training.losses = {}
    for turn, optimiser in optimisers.items():
        with torch.autocast(detector.device.type, dtype=torch.bfloat16, enabled=_halved(detector)):
            losses = detector.training_step(replace(batch, turn=turn))
        if not losses:
            continue
        total = torch.stack([loss.float() for loss in losses.values()]).sum()
        for each in optimisers.values():
            each.zero_grad(set_to_none=True)
        weights = [p for group in optimiser.param_groups for p in group["params"]]
        total.backward(inputs=weights)  # type: ignore[no-untyped-call]
        found = torch.stack([loss.detach().float() for loss in losses.values()])
        if processes.count() > 1:
            processes.average([found, *(p.grad for p in weights if p.grad is not None)])
        values = found.tolist()
        training.losses |= dict(zip(losses, values, strict=True))
        for name, value in zip(losses, values, strict=True):
            if not math.isfinite(value):
                raise _not_finite(detector, training, per_epoch, f'loss "{name}" is {value}')
        if c.clip_norm:
            norm = float(nn.utils.clip_grad_norm_(weights, c.clip_norm))
            if not math.isfinite(norm):
                raise _not_finite(detector, training, per_epoch, f"the norm of the gradient is {norm}")
        for group in optimiser.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * rate(c, training.step, training.steps)
        optimiser.step()
    _settle(detector, buffers_alone=True)


def _settle(detector: TrainedDetector, *, buffers_alone: bool = False) -> None:
    """Have every process go on with the weights and buffers of the first: means of a batch norm, for one, differ."""
    if processes.count() == 1:
        return
    modules = detector.modules().values()
    own = [tensor for module in modules for tensor in module.buffers()]
    processes.spread(own if buffers_alone else [*own, *(p for module in modules for p in module.parameters())])


def _agree(detector: TrainedDetector, training: Training) -> None:
    """Have every process stop when the first one does."""
    if processes.count() == 1 or not (detector.config.max_minutes or detector.config.patience):
        return
    shared = torch.tensor([training.seconds, training.best, training.stale], dtype=torch.float64)
    shared = shared.to(detector.device)
    processes.spread([shared])
    training.seconds, training.best, stale = shared.tolist()
    training.stale = int(stale)


def _not_finite(detector: TrainedDetector, training: Training, per_epoch: int, what: str) -> FitError:
    kept = ""
    if detector.checkpoint is not None and detector.checkpoint.exists():
        kept = f"; the last good checkpoint is kept in {detector.checkpoint}"
    return FitError(
        f"training stopped at step {training.step + 1} of {training.steps} (epoch {training.step // per_epoch + 1}): "
        f"{what}; lower learning_rate, set clip_norm=1, or look for damaged images{kept}"
    )


def _batches(
    normals: Normals, rows: np.ndarray, c: TrainingConfig, step: int, steps: int, device: torch.device
) -> Iterator[StepBatch]:
    """The batch of each step from `step` on; where it takes time, the next one is made while one is in use."""
    per_epoch = _steps_per_epoch(c, len(rows))
    # A single image is doubled: batch norms need two. What does not fill a batch is left out of that epoch.
    size = min(c.batch_size, max(2, len(rows)))
    number, several = processes.number(), processes.count()
    if several > 1 and size < 2 * several:
        raise ConfigError(f"steps of {size} images are too small for {several} processes: each needs two images")

    @lru_cache(1)
    def order_of(epoch: int) -> np.ndarray:
        return np.random.default_rng((c.seed, epoch)).permutation(rows)

    def make(step: int) -> StepBatch:
        epoch, place = divmod(step, per_epoch)
        order = order_of(epoch)
        chosen = np.resize(order, max(size, len(order)))[place * size : (place + 1) * size]
        seeds = np.random.default_rng((c.seed, epoch, place)).integers(2**32, size=size)
        chosen, seeds = chosen[number::several], seeds[number::several]
        return replace(normals.batch(chosen, device, seeds), step=step, steps=steps)

    if not normals.slow:
        yield from map(make, range(step, steps))
        return
    with ThreadPoolExecutor(1, thread_name_prefix="anomed-batch") as pool:
        upcoming = pool.submit(make, step)
        for now in range(step, steps):
            ready = upcoming.result()
            if now + 1 < steps:
                upcoming = pool.submit(make, now + 1)
            yield ready


def _judge(detector: TrainedDetector, turn: str, batches: Iterator[StepBatch], training: Training) -> None:
    """Validation loss, that of the first optimiser, and whether it has fallen."""
    _set_mode(detector, training=False)
    _start_random(_seed(detector.config.seed, -1), detector.device)
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in batches:
            losses = detector.training_step(replace(batch, turn=turn, step=training.step - 1, steps=training.steps))
            total += sum(float(loss) for loss in losses.values()) * len(batch.x)
            count += len(batch.x)
    _set_mode(detector, training=True)
    loss = total / count
    fallen = loss < training.best - PLATEAU * abs(training.best) or math.isinf(training.best)
    training.best, training.stale = (loss, 0) if fallen else (training.best, training.stale + 1)


def _select(detector: TrainedDetector, selection: Selection, training: Training, finish: Callable[[], None]) -> None:
    """Keep the weights where they are better than those of the epochs before; the last ones may end within one."""
    start = time.monotonic()
    finish()
    value = selection.value()
    training.seconds += time.monotonic() - start
    if value > training.selected_value:
        training.selected_step, training.selected_value = training.step, value
        selection.weights = {key: tensor.clone() for key, tensor in detector.state()[0].items()}
    _set_mode(detector, training=True)


def _why_stop(c: TrainingConfig, training: Training) -> str:
    if training.step >= training.steps:
        return "finished"
    if c.patience and training.stale >= c.patience:
        return "plateau"
    return "time" if _out_of_time(c, training) else ""


def _out_of_time(c: TrainingConfig, training: Training) -> bool:
    return bool(c.max_minutes) and training.seconds >= 60 * c.max_minutes


def _keep(detector: TrainedDetector, optimisers: dict[str, Optimizer], normals: Normals) -> None:
    """Write a checkpoint, of finite weights only."""
    if detector.checkpoint is None or processes.number():
        return
    tensors = {f"weights.{key}": value for key, value in detector.state()[0].items()}
    selected = detector.selection.weights if detector.selection is not None else {}
    tensors |= {f"selected.{key}": value for key, value in selected.items()}
    training = cast(Training, detector.training)
    if not all(bool(v.isfinite().all()) for v in tensors.values() if v.is_floating_point()):
        per_epoch = _steps_per_epoch(detector.config, len(normals))
        raise _not_finite(detector, replace(training, step=training.step - 1), per_epoch, "weights are not finite")
    description = {"identity": _identity(detector, normals), "training": asdict(training)}
    write_checkpoint(detector.checkpoint, tensors | optimiser_tensors(optimisers), description)


def _resumed(detector: TrainedDetector, optimisers: dict[str, Optimizer], normals: Normals) -> Training | None:
    """Go on from the checkpoint; None where there is none."""
    found = None if detector.checkpoint is None else read_checkpoint(detector.checkpoint)
    if found is None:
        return None
    tensors, description = found
    own, other = _identity(detector, normals), cast(dict[str, JsonValue], description["identity"])
    if own != other:
        if detector.discard_other:
            return None
        changed = ", ".join(key for key in own if own[key] != other.get(key)) or "version"
        raise OutputError(
            f"{detector.checkpoint} is the checkpoint of another training ({changed} differ): run that command again "
            "to go on with it, or delete the file"
        )
    detector._load(_named("weights.", tensors))
    if detector.selection is not None:
        detector.selection.weights = _named("selected.", tensors)
    load_optimisers(optimisers, tensors)
    return Training(**cast(dict[str, object], description["training"]))  # type: ignore[arg-type]


def _named(start: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}


def _identity(detector: TrainedDetector, normals: Normals) -> dict[str, JsonValue]:
    """What must be equal for two trainings to be the same one."""
    settings = detector.config.model_dump(mode="json", exclude={"max_minutes", "memory_mb", "pooling", "smoothing"})
    backbone = detector.extractor.key() if detector.extractor is not None else ""
    known = {"detector": detector.name, **settings, "backbone weights": backbone, "images": normals.digest}
    if detector.selection is not None:
        known["selection"] = detector.selection.images
    return cast(dict[str, JsonValue], json.loads(json.dumps(known)))


def _planned(c: TrainingConfig, images: int) -> int:
    return c.steps or c.epochs * _steps_per_epoch(c, images)


def _steps_per_epoch(c: TrainingConfig, images: int) -> int:
    return max(1, images // c.batch_size)


def _set_mode(detector: TrainedDetector, *, training: bool) -> None:
    for module in detector.modules().values():
        module.train(training)


def _halved(detector: TrainedDetector) -> bool:
    return detector.config.mixed_precision and detector.device.type == "cuda" and torch.cuda.is_bf16_supported()


def _seed(*numbers: int) -> int:
    """One seed from several numbers."""
    return int(np.random.SeedSequence([n % 2**32 for n in numbers]).generate_state(1, np.uint64)[0] >> 1)


def _start_random(seed: int, device: torch.device) -> None:
    """Seed the generators that a step may draw from; torch.manual_seed takes half a millisecond to seek others."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


@contextmanager
def _reproducible(device: torch.device) -> Iterator[None]:
    """Leave the caller's random state alone, and use no algorithm of a GPU whose result varies."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.backends.cudnn.flags(deterministic=True, benchmark=False):
        yield
