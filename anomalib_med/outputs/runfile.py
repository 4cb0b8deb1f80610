"""run.json: which run an output folder belongs to, and whether it is complete."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from anomalib_med.errors import OutputError
from anomalib_med.files import TEMPORARY, output_errors, write_atomic

NAME = "run.json"
_FORMAT = 1
_WRITER = "anomalib-med score"


@dataclass(frozen=True, slots=True)
class Run:
    """What run.json says.

    Parameters
    ----------
    fingerprint
        What the scores depend on, as text by name: model, list of images, options.
    outputs
        How maps and overlays are written, as text by name.
    complete
        Whether every image was scored or listed as a failure.
    counts
        Images by outcome; empty until complete.
    """

    fingerprint: Mapping[str, str]
    outputs: Mapping[str, str]
    complete: bool
    counts: Mapping[str, int]


def claim(out: Path, fingerprint: Mapping[str, str], outputs: Mapping[str, str]) -> Literal["new", "resume"]:
    """Make `out` the folder of this run, or find that it already is.

    Raises
    ------
    OutputError
        The folder holds another run or files that are not ours, or is not writable.
    """
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        held = [entry.name for entry in out.iterdir() if not entry.name.endswith(TEMPORARY)]
    if not held:
        write_run(out, Run(fingerprint, outputs, False, {}))
        return "new"
    if NAME not in held:
        raise OutputError(
            f"{out}: holds files that are no results (such as {min(held)}): choose an empty or new folder"
        )
    run = read_run(out)
    differs = _difference(run.fingerprint, fingerprint) or _difference(run.outputs, outputs)
    if differs:
        raise OutputError(
            f"{out}: holds results of another run ({differs} differs): choose another folder or pass --overwrite"
        )
    return "resume"


def read_run(out: Path) -> Run:
    """Read run.json.

    Raises
    ------
    OutputError
        It is missing, damaged or of another format.
    """
    path = out / NAME
    with output_errors(path):
        text = path.read_text(encoding="utf-8")
    try:
        fields = json.loads(text)
        if fields["written_by"] != _WRITER or fields["format"] != _FORMAT:
            raise ValueError("written by another program or version")
        return Run(fields["fingerprint"], fields["outputs"], fields["complete"], fields["counts"])
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{path}: cannot be understood ({error}): choose another output folder") from error


def write_run(out: Path, run: Run) -> None:
    """Write run.json.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    fields = {
        "written_by": _WRITER,
        "format": _FORMAT,
        "complete": run.complete,
        "counts": dict(run.counts),
        "fingerprint": dict(run.fingerprint),
        "outputs": dict(run.outputs),
    }
    write_atomic(out / NAME, (json.dumps(fields, indent=2) + "\n").encode())


def _difference(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    return ", ".join(sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key)))
