"""A run into a folder: what tells it from others, and its report."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from anomalib_med.outputs.report import write_report
from anomalib_med.records import RunInfo, Sample


def fingerprint(run: RunInfo, samples: Sequence[Sample]) -> dict[str, str]:
    """What tells a run from others, for its :class:`.writer.ResultWriter`."""
    rate = repr(run.false_alarm_rate)
    return {"model": run.fingerprint, "images": _images_hash(samples), "false_alarm_rate": rate}


def report_run(out: Path, run: RunInfo, samples: Sequence[Sample]) -> Path:
    """Write report.html of a run that is complete."""
    labels = {sample.id: sample.label for sample in samples if sample.label is not None}
    return write_report(
        out,
        title=f"{run.title}: {len(samples)} images",
        model=flat_table(run.model),
        calibration_scores=run.normal_scores,
        threshold=run.threshold if run.threshold is not None and np.isfinite(run.threshold) else None,
        false_alarm_rate=run.false_alarm_rate,
        labels=labels or None,
        notes=run.notes,
    )


def flat_table(description: Mapping[str, object]) -> dict[str, str]:
    """A nested description as one table of text, keys joined by dots."""
    table: dict[str, str] = {}

    def flatten(prefix: str, value: object) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                flatten(f"{prefix}.{key}" if prefix else str(key), inner)
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            flatten(prefix, {str(i): item for i, item in enumerate(value, 1)})
        elif isinstance(value, list):
            table[prefix] = ", ".join(str(item) for item in value)
        else:
            table[prefix] = "" if value is None else str(value)

    flatten("", description)
    return table


def _images_hash(samples: Sequence[Sample]) -> str:
    """SHA-256 of what is scored, so that results are never taken for those of other images under the same names.

    Of a file its path, size and time of change count, of an array its pixels.
    """
    digest = hashlib.sha256()
    for sample in samples:
        state = (str(sample.path), 0, 0)
        if sample.path is not None and sample.path.exists():
            file = sample.path.stat()
            state = (str(sample.path), file.st_size, file.st_mtime_ns)
        digest.update(repr((sample.id, sample.frame, state)).encode("utf-8", "surrogatepass"))
        if sample.array is not None:
            digest.update(repr((sample.array.shape, sample.array.dtype.str)).encode() + sample.array.tobytes())
    return digest.hexdigest()
