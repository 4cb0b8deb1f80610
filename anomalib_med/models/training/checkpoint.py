"""The state of an unfinished training as one safetensors file, replaced as a whole or not at all."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from pydantic import JsonValue
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.optim import Optimizer

from anomalib_med.errors import OutputError
from anomalib_med.files import replacing

FORMAT = "1"


@dataclass
class Training:
    """How far a training is; what a checkpoint holds beside weights.

    Parameters
    ----------
    steps
        Of the whole training.
    step
        Done so far.
    seconds
        Spent on them.
    losses
        By name, of the last step.
    best, stale
        Lowest validation loss, and epochs since.
    stopped
        Why it came to an end: "" while it has not, "finished", "time" or "plateau".
    selected_step, selected_value
        Steps of the weights that are the best so far where they are chosen by epoch, and what for; 0 and -inf: none.
    """

    steps: int
    step: int = 0
    seconds: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)
    best: float = math.inf
    stale: int = 0
    stopped: str = ""
    selected_step: int = 0
    selected_value: float = -math.inf


def write_checkpoint(path: Path, tensors: Mapping[str, torch.Tensor], description: Mapping[str, JsonValue]) -> None:
    """Write a checkpoint; the one before it stays until the new one is complete.

    Parameters
    ----------
    path
        The file; its folder is made where it is absent.
    tensors
        Weights and states of optimisers, on any device.
    description
        What else is needed to go on. JSON in the header of the file.

    Raises
    ------
    OutputError
        Where it cannot be written, such as on a full disk; the checkpoint before it is kept.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        with replacing(path, sync=True) as temporary:
            save_file(held, temporary, {"format": FORMAT, "training": json.dumps(description)})
    except (OSError, SafetensorError) as error:
        kept = "the checkpoint before it is kept: free space and run the same command to go on from there"
        lost = "there is none before it: free space and run again"
        raise OutputError(
            f"{path}: the checkpoint cannot be written ({error}); {kept if path.exists() else lost}"
        ) from error


def read_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, JsonValue]] | None:
    """Tensors and description of a checkpoint; None where there is none.

    Raises
    ------
    OutputError
        Where the file is no checkpoint of this version, or damaged.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise ValueError("it is no checkpoint of this version")
            return {key: file.get_tensor(key) for key in file.keys()}, json.loads(header["training"])  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise OutputError(f"{path}: cannot be read as a checkpoint ({error}); delete it to start anew") from error


def optimiser_tensors(optimisers: Mapping[str, Optimizer]) -> dict[str, torch.Tensor]:
    """What the optimisers remember, by optimiser, number of the weight and kind. Their settings are not in it."""
    return {
        f"optimiser.{name}.{number}.{kind}": value
        for name, optimiser in optimisers.items()
        for number, values in optimiser.state_dict()["state"].items()
        for kind, value in values.items()
        if isinstance(value, torch.Tensor)
    }


def load_optimisers(optimisers: Mapping[str, Optimizer], tensors: Mapping[str, torch.Tensor]) -> None:
    """Give it back to them."""
    for name, optimiser in optimisers.items():
        state: dict[int, dict[str, torch.Tensor]] = {}
        start = f"optimiser.{name}."
        for key in (key for key in tensors if key.startswith(start)):
            number, _, kind = key[len(start) :].partition(".")
            state.setdefault(int(number), {})[kind] = tensors[key]
        optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
