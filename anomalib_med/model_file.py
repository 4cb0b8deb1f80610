"""A fitted model as a folder of files without pickle: model.json, weights.safetensors, calibration.json."""

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from pydantic import JsonValue
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from anomalib_med.errors import ModelError, OutputError
from anomalib_med.files import replacing_folder, temporary_beside
from anomalib_med.records import Json

FORMAT = 1
DESCRIPTION, WEIGHTS, CALIBRATION = "model.json", "weights.safetensors", "calibration.json"


@dataclass(frozen=True)
class ModelFiles:
    """What a model folder holds."""

    description: Json  # settings and fingerprints, as in model.json
    tensors: dict[str, torch.Tensor]  # weights of the detector and of its backbone
    calibration: Json  # scores of the held-out normals; empty for none


def write_model(folder: Path, files: ModelFiles, *, overwrite: bool = False) -> None:
    """Write a model folder, complete or not at all; raises OutputError."""
    check_writable(folder, overwrite=overwrite)
    try:
        with replacing_folder(folder) as temporary:
            save_file({key: value.contiguous() for key, value in files.tensors.items()}, temporary / WEIGHTS)
            (temporary / CALIBRATION).write_text(json.dumps(files.calibration) + "\n", encoding="utf-8")
            # safetensors locks others out of its file; what the user's umask allows is that of an ordinary one.
            (temporary / WEIGHTS).chmod(stat.S_IMODE((temporary / CALIBRATION).stat().st_mode))
            hashes: Json = {name: _sha256(temporary / name) for name in (WEIGHTS, CALIBRATION)}
            description: Json = {"format": FORMAT, **files.description, "files": hashes}
            description["sha256"] = _own_hash(description)
            (temporary / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        reason = f"the model cannot be written ({error})"
        raise OutputError(f"{folder}: {reason}; free space or choose another folder") from error


def check_writable(folder: Path, *, overwrite: bool = False) -> None:
    """Find out before long work whether a model can be written there.

    Raises OutputError where a file, another folder, or (without `overwrite`) a model is in the way, or it cannot be
    written.
    """
    if folder.exists():
        if not folder.is_dir():
            raise OutputError(f"{folder} is a file: give a folder for the model")
        entries = {entry.name for entry in folder.iterdir()}
        if entries and not entries <= {DESCRIPTION, WEIGHTS, CALIBRATION}:
            raise OutputError(f"{folder} holds other files: give a new or empty folder for the model")
        if entries and not overwrite:
            raise OutputError(f"{folder} already holds a model: choose another folder or pass --overwrite")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        probe = temporary_beside(folder)
        probe.mkdir()
        probe.rmdir()
        if folder.exists() and not os.access(folder, os.W_OK):
            raise PermissionError("no permission")
    except OSError as error:
        reason = f"cannot be written ({error.strerror or error})"
        raise OutputError(f"{folder}: {reason}; choose a folder you may write to") from error


def read_model(folder: Path) -> ModelFiles:
    """Read a model folder and check that it is whole.

    Raises ModelError where a file is missing or altered, or the format is newer than this version knows.
    """
    description = read_description(folder)
    for name, expected in cast(Json, description["files"]).items():
        if not (folder / name).is_file():
            raise ModelError(f"{folder}: {name} is missing; copy the whole model folder, or fit again")
        if _sha256(folder / name) != expected:
            changed = f"{name} was altered or damaged since the model was saved"
            raise ModelError(f"{folder}: {changed}; copy it again, or fit again")
    calibration = json.loads((folder / CALIBRATION).read_text(encoding="utf-8"))
    # In the file a tensor begins anywhere, and the products of the CPU round by where it begins: memory of its own.
    tensors = {key: value.clone() for key, value in load_file(folder / WEIGHTS).items()}
    return ModelFiles(description, tensors, calibration)


def read_description(folder: Path) -> Json:
    """Read and check model.json alone; raises ModelError."""
    path = folder / DESCRIPTION
    if not folder.exists():
        raise ModelError(f"{folder}: no such folder; give the folder that anomed fit wrote")
    if not path.is_file():
        raise ModelError(f"{folder} is not a model: it has no {DESCRIPTION}; give the folder that anomed fit wrote")
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"{path} cannot be read ({error}); copy it again, or fit again") from None
    version = description.get("format") if isinstance(description, dict) else None
    if not isinstance(version, int):
        raise ModelError(f"{path} is not a model description; give the folder that anomed fit wrote")
    if version > FORMAT:
        newer = f"model format {version} is newer than this version reads ({FORMAT})"
        raise ModelError(f"{folder}: {newer}; upgrade anomalib-med")
    if description.get("sha256") != _own_hash(description):
        remedy = "change settings on the command line, or fit again"
        raise ModelError(f"{path} was altered since the model was saved; {remedy}")
    return cast(Json, description)


def _own_hash(description: Mapping[str, JsonValue]) -> str:
    rest = {key: value for key, value in description.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
