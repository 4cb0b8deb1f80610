"""Prepared images in memory, in place of those that are read from files."""

from collections.abc import Iterator

import numpy as np
import torch


class MemoryFrames:
    """Images ``(N, C, H, W)`` in [0, 1], which are valid everywhere; `passes` counts how often they were read."""

    def __init__(self, x: torch.Tensor, patients: list[str]) -> None:
        self.x, self.patients, self.passes = x, patients, 0
        self.valid = torch.ones(len(x), *x.shape[2:], dtype=torch.bool)

    def __len__(self) -> int:
        return len(self.x)

    def batches(self, size: int) -> Iterator["MemoryFrames"]:
        self.passes += 1
        for start in range(0, len(self.x), size):
            yield MemoryFrames(self.x[start : start + size], self.patients[start : start + size])


def frames_of(images: np.ndarray, patients: list[str] | None = None, side: int = 64) -> MemoryFrames:
    """The upper left corners of grey pictures, each of a patient of its own unless `patients` says so."""
    x = torch.from_numpy(np.stack([image[:side, :side] for image in images]))[:, None].float() / 255
    return MemoryFrames(x, patients or [str(i) for i in range(len(x))])
