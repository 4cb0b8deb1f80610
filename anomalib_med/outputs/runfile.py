"""run.json: which run an output folder belongs to, and whether it is complete."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from anomalib_med.errors import OutputError
from anomalib_med.files import TEMPORARY, output_errors, write_atomic

NAME = "run.json"


class Run(BaseModel, frozen=True):
    """What run.json says."""

    written_by: Literal["anomalib-med score"] = "anomalib-med score"
    format: Literal[1] = 1
    complete: bool = False  # whether every image was scored or listed as a failure
    counts: Mapping[str, int] = {}  # images by outcome; empty until complete
    fingerprint: Mapping[str, str]  # what the scores depend on: model, list of images, options
    outputs: Mapping[str, str]  # how maps and overlays are written


def claim(out: Path, run: Run) -> Run | None:
    """Make `out` a folder, and return what an earlier part of this run said of itself; None for a new folder.

    Raises OutputError where the folder holds another run or files that are not ours, or is not writable.
    """
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        held = [entry.name for entry in out.iterdir() if not entry.name.endswith(TEMPORARY)]
    if not held:
        return None
    if NAME not in held:
        foreign = f"holds files that are no results (such as {min(held)})"
        raise OutputError(f"{out}: {foreign}: choose an empty or new folder")
    earlier = read_run(out)
    if differs := _difference(earlier.fingerprint, run.fingerprint) or _difference(earlier.outputs, run.outputs):
        remedy = "choose another folder or pass --overwrite"
        raise OutputError(f"{out}: holds results of another run ({differs} differs): {remedy}")
    return earlier


def read_run(out: Path) -> Run:
    """Read run.json; raises OutputError where it is missing, damaged or of another format."""
    path = out / NAME
    with output_errors(path):
        text = path.read_bytes()
    try:
        return Run.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc'])) or NAME}: {first['msg']}"
        raise OutputError(f"{path}: cannot be understood ({reason}): choose another output folder") from error


def write_run(out: Path, run: Run) -> None:
    """Write run.json; raises OutputError."""
    write_atomic(out / NAME, (run.model_dump_json(indent=2) + "\n").encode())


def _difference(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    return ", ".join(sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key)))
