"""Several processes that train one detector together, one on each GPU, started by ``torchrun``.

Every process reads all normals, learns from its share of each batch, and takes the mean of all gradients, so that the
weights stay the same everywhere. The first one shows progress, keeps checkpoints and writes the model.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist


def count() -> int:
    """How many processes there are; 1 where none was started beside this one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def number() -> int:
    """Number of this process, from 0."""
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def own_gpu() -> torch.device:
    """The GPU of this process: each process of a machine has one of its own."""
    if count() == 1:
        return torch.device("cuda")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Meet the other processes, by NCCL on GPUs and by Gloo on CPUs, and part from them at the end."""
    if count() == 1 or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def average(tensors: Iterable[torch.Tensor]) -> None:
    """Replace tensors, which every process has in the same order and shape, by their mean over the processes."""

    def mean(flat: torch.Tensor) -> None:
        dist.all_reduce(flat)
        flat /= count()

    _exchange(tensors, mean)


def broadcast(tensors: Iterable[torch.Tensor]) -> None:
    """Replace tensors by those of the first process."""
    _exchange(tensors, partial(dist.broadcast, src=0))


@torch.no_grad()
def _exchange(tensors: Iterable[torch.Tensor], change: Callable[[torch.Tensor], object]) -> None:
    """Change tensors in place, all of one type at once."""
    by_type: dict[torch.dtype, list[torch.Tensor]] = {}
    for tensor in tensors:
        by_type.setdefault(tensor.dtype, []).append(tensor)
    for group in by_type.values():
        flat = torch.cat([t.flatten() for t in group])
        change(flat)
        for tensor, part in zip(group, torch.split(flat, [t.numel() for t in group]), strict=True):
            tensor.copy_(part.view_as(tensor))
