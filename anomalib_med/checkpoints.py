"""The state of an unfinished training as one safetensors file, replaced as a whole or not at all."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import JsonValue
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from anomalib_med.errors import OutputError
from anomalib_med.files import replacing

FORMAT = "2"


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint in a file; its folder is made where it is absent."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def write(self, tensors: Mapping[str, torch.Tensor], description: Mapping[str, JsonValue]) -> None:
        """Write tensors, from any device, and what else is needed to continue.

        Raises OutputError where it cannot be written, such as on a full disk; the checkpoint before it is then kept.
        """
        held = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        header = {"format": FORMAT, "training": json.dumps(description)}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path, sync=True) as temporary:
                save_file(held, temporary, header)
        except (OSError, SafetensorError) as error:
            remedy = "there is none before it: free space and run again"
            if self.path.exists():
                remedy = "the checkpoint before it is kept: free space and run the same command to continue from there"
            raise OutputError(f"{self.path}: the checkpoint cannot be written ({error}); {remedy}") from error

    def read(self) -> tuple[dict[str, torch.Tensor], dict[str, JsonValue]] | None:
        """Tensors and description; None without a file. Raises OutputError for a damaged one, or another version."""
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                header = file.metadata() or {}
                if header.get("format") != FORMAT:
                    raise ValueError("it is no checkpoint of this version")
                return {key: file.get_tensor(key) for key in file.keys()}, json.loads(header["training"])  # noqa: SIM118
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            reason = f"cannot be read as a checkpoint ({error})"
            raise OutputError(f"{self.path}: {reason}; delete it to start anew") from error
