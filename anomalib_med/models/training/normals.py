"""Normals held ready for many epochs: each image is decoded once, kept as float16, and drawn in a seeded order."""

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from anomalib_med.errors import ConfigError, FitError, OutputError
from anomalib_med.preprocessing import Frames
from anomalib_med.preprocessing.augment import ChestAugmentation

Prepare = Callable[[torch.Tensor], torch.Tensor]

GPU_SHARE = 0.4  # of a GPU's free memory, which prepared images may take


@dataclass(frozen=True)
class StepBatch:
    """What one step of training works on."""

    x: torch.Tensor
    """float32 ``(B, ...)`` on the detector's device: images ``(B, C, H, W)`` in [0, 1], or what `prepare` made."""
    valid: torch.Tensor
    """bool ``(B, H, W)`` in pixels of the input."""
    optimizer: str = ""
    """Name of the optimizer whose losses are asked for."""
    step: int = 0
    steps: int = 1
    """Number of this step, from 0, and how many there will be."""


class Normals:
    """Prepared training images of one shape, found by number: float16 `values` ``(N, ...)``, SHA-256 and patients.

    Frames are read once. `prepare` makes of images what training sees, `batch_size` at a time: once for each image, or
    at every use with `augment`, which moves and exposes images anew in each epoch. What is more than `memory_mb` MiB
    lies in a temporary file.
    """

    def __init__(self, frames: Frames, prepare: Prepare, batch_size: int, *, augment: bool, memory_mb: float) -> None:
        self.prepare = prepare
        self.augmentation = ChestAugmentation() if augment else None
        self.patients: list[str] = []
        self._side: tuple[int, ...] = ()
        store: _Store | None = None
        packed = []  # valid areas as bits: a byte for each pixel would add up
        for batch in frames.batches(batch_size):
            side = tuple(batch.valid.shape[1:])
            values = (batch.x if augment else prepare(batch.x)).half().cpu().numpy()
            if store is None:
                store, self._side = _Store(len(frames), values.shape[1:], memory_mb), side
            if side != self._side:
                raise ConfigError(
                    f"the inputs differ in shape ({self._side}, then {side}): training needs one; "
                    'set aspect to "stretch" or "pad"'
                )
            store.add(values)
            packed.append(np.packbits(batch.valid.numpy().reshape(len(values), -1), axis=1))
            self.patients.extend(batch.patients)
        if store is None:
            raise FitError("no normal image could be read: see the failures listed, or check the folder")
        self.values, self.digest = store.finished()
        self._packed = np.concatenate(packed)
        self._on_gpu: torch.Tensor | None = None
        self._asked_gpu = False

    def __len__(self) -> int:
        return len(self.values)

    @property
    def slow(self) -> bool:
        """Whether a batch is worth a thread of its own: it is augmented, or read from a file."""
        return self.augmentation is not None or isinstance(self.values, np.memmap)

    def batch(self, rows: np.ndarray, device: torch.device, seeds: np.ndarray | None = None) -> StepBatch:
        """The images of these numbers; with `seeds`, one for each, augmented where that was asked for."""
        valid = self.valid(rows)
        if self.augmentation is not None and seeds is not None:
            values = self.values[rows].astype(np.float32)
            moved = map(self.augmentation, values, valid, seeds.tolist())
            images, valid = map(np.stack, zip(*moved, strict=True))
            x = torch.from_numpy(images)
        else:
            x = self._chosen(rows, device)
        x = x if self.augmentation is None else self.prepare(x)
        x = x.to(device).float()
        # What a frozen network gives in inference mode cannot be trained on, a copy of it can.
        return StepBatch(x.clone() if x.is_inference() else x, torch.from_numpy(valid).to(device))

    def _chosen(self, rows: np.ndarray, device: torch.device) -> torch.Tensor:
        """Values of these numbers, float32; a GPU with room for all takes them once and for all."""
        if device.type == "cuda" and not self._asked_gpu:
            self._asked_gpu = True
            if self.values.nbytes < GPU_SHARE * torch.cuda.mem_get_info(device)[0]:
                self._on_gpu = torch.from_numpy(np.array(self.values)).to(device)
        if self._on_gpu is None:
            return torch.from_numpy(self.values[rows]).float()
        return self._on_gpu[torch.from_numpy(rows).to(device)].float()

    def valid(self, rows: np.ndarray) -> np.ndarray:
        """Valid areas of the images of these numbers, bool ``(B, H, W)``."""
        bits = np.unpackbits(self._packed[rows], axis=1, count=int(np.prod(self._side)))
        return bits.reshape(len(rows), *self._side).astype(bool)

    def batches(self, rows: np.ndarray, size: int, device: torch.device) -> Iterator[StepBatch]:
        """The images of these numbers in order, as they are."""
        for start in range(0, len(rows), size):
            yield self.batch(rows[start : start + size], device)

    def split(self, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the images to learn from, and of those of a random share of the patients (at 0 of none).

        A FitError says where there is only one patient.
        """
        if not share:
            return np.arange(len(self)), np.arange(0)
        patients = sorted(set(self.patients))
        if len(patients) < 2:
            raise FitError(f"all {len(self)} images belong to one patient: none is left to validate on; set patience=0")
        count = min(len(patients) - 1, max(1, round(share * len(patients))))
        chosen = set(np.random.default_rng(seed).permutation(patients)[:count].tolist())
        held = np.array([patient in chosen for patient in self.patients])
        return np.flatnonzero(~held), np.flatnonzero(held)


class _Store:
    """Takes float16 arrays in turn; in memory up to a size, else in a file that is gone with the process."""

    def __init__(self, count: int, shape: tuple[int, ...], memory_mb: float) -> None:
        self._digest = hashlib.sha256()
        self._shape, self._filled = shape, 0
        size = count * int(np.prod(shape)) * 2
        self._file = tempfile.TemporaryFile() if size > memory_mb * 2**20 else None  # noqa: SIM115 - lives on
        # Memory that nothing is written to is never taken from the system.
        self._array = np.empty((0 if self._file else count, *shape), np.float16)

    def add(self, values: np.ndarray) -> None:
        content = values.tobytes()
        self._digest.update(content)
        try:
            if self._file is None:
                self._array[self._filled : self._filled + len(values)] = values
            else:
                self._file.write(content)
                self._file.flush()
        except OSError as error:
            raise OutputError(
                f"{tempfile.gettempdir()}: prepared images do not fit ({error.strerror or error}); set TMPDIR "
                "to a folder with more space, or memory_mb higher"
            ) from error
        self._filled += len(values)

    def finished(self) -> tuple[np.ndarray, str]:
        shape = (self._filled, *self._shape)
        values = np.memmap(self._file, np.float16, "r", shape=shape) if self._file else self._array[: self._filled]
        return values, self._digest.hexdigest()
