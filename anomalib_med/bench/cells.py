"""Cell: one data set, one method, one seed; measured, kept in one JSON file, read back."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from anomalib_med.errors import OutputError
from anomalib_med.evaluation.curves import Floats
from anomalib_med.evaluation.intervals import Interval, Measured
from anomalib_med.files import output_errors, write_atomic

Json = dict[str, JsonValue]
FORMAT = 3
HEADLINES = ("auroc", "pixel_ap", "froc_cpm")
KEPT = ("dataset", "method", "seed", "fingerprint", "error", "info")


@dataclass(frozen=True, eq=False)
class Cell:
    """What came of one data set, method and seed; without images and metrics where it failed.

    `ids`, `labels`, `patients` and `scores` have one value for each image that was scored.
    """

    dataset: str
    method: str
    seed: int
    fingerprint: str
    """Hash of all that was asked for; the file of a cell with another one is not used."""
    error: str
    """Why it failed, or ""."""
    info: Json
    """Protocol, split hash, rules, versions, machine, seconds, memory: everything that is not a metric."""
    ids: tuple[str, ...] = ()
    labels: np.ndarray = field(default_factory=lambda: np.empty(0, int))
    patients: np.ndarray = field(default_factory=lambda: np.empty(0, int))
    scores: np.ndarray = field(default_factory=lambda: np.empty(0))
    measured: dict[str, Measured] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, Interval]:
        """Value and interval of each metric by name."""
        return {name: m.interval for name, m in self.measured.items()}


def headline(metrics: Iterable[str]) -> str:
    """The metric that stands for all: the image AUROC, on sets that have none a metric of maps; "" without either."""
    names = set(metrics)
    return next((name for name in HEADLINES if name in names), "")


def fingerprint_of(asked: Mapping[str, JsonValue]) -> str:
    """SHA-256 of what was asked for."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def cell_path(out: Path, dataset: str, method: str, seed: int) -> Path:
    """Where a cell lies: ``cells/<data set>/<method>/seed-<n>.json``."""
    return out / "cells" / _name(dataset) / _name(method) / f"seed-{seed}.json"


def examples_folder(out: Path, dataset: str, method: str) -> Path:
    """Where the maps of the example images lie, ``0.jpg`` and so on."""
    return cell_path(out, dataset, method, 0).parent / "examples"


def write_cell(out: Path, cell: Cell) -> None:
    """Write a cell to its place in the folder of the bench, whole or not at all.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    content: Json = {
        "format": FORMAT,
        **{name: getattr(cell, name) for name in KEPT},
        "metrics": {name: list(m.interval.known().values()) for name, m in cell.measured.items()},
        "images": {
            "id": list(cell.ids),
            "label": cell.labels.tolist(),
            "patient": cell.patients.tolist(),
            "score": cell.scores.tolist(),
        },
        "replicates": {name: _finite(m.replicates.round(6)) for name, m in cell.measured.items()},
        "cases": {name: m.cases for name, m in cell.measured.items()},
        "expected": dict(zip(cell.measured, _finite(m.expected for m in cell.measured.values()), strict=True)),
    }
    path = cell_path(out, cell.dataset, cell.method, cell.seed)
    with output_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(content).encode())


def read_cell(path: Path) -> Cell:
    """Read a cell.

    Raises
    ------
    OutputError
        The file is missing, damaged or of another format.
    """
    try:
        d = json.loads(path.read_text(encoding="utf-8"))
        if d["format"] != FORMAT:
            raise OutputError(f"{path}: of format {d['format']}, this version reads {FORMAT}: choose another folder")
        measured = {
            name: Measured(Interval(*_numbers(ends)), _numbers(d["replicates"][name]), int(d["cases"][name]), centre)
            for (name, ends), centre in zip(d["metrics"].items(), _numbers(d["expected"].values()), strict=True)
        }
        images = d["images"]
        return Cell(
            **{name: d[name] for name in KEPT},
            ids=tuple(images["id"]),
            labels=np.array(images["label"], int),
            patients=np.array(images["patient"], int),
            scores=_numbers(images["score"]),
            measured=measured,
        )
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror or error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise OutputError(f"{path}: damaged ({error}): delete it and run the same command again") from error


def _name(text: str) -> str:
    """A label as a folder name; a hash keeps apart those that look alike afterwards."""
    plain = "".join(c if c.isalnum() or c in "-_." else "_" for c in text).strip(".")[:80]
    return plain if plain == text else f"{plain}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _finite(values: Iterable[float]) -> list[JsonValue]:
    """Numbers for JSON, which has no NaN."""
    return [v if isfinite(v) else None for v in map(float, values)]


def _numbers(values: Iterable[float | None]) -> Floats:
    """Numbers from JSON, where null is NaN."""
    return np.array(list(values), float)
