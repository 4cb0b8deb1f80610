"""Scores images into a folder: the table, maps, overlays and report of ``anomed score``, streaming and resumable."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anomalib_med.datasets.folder import Source, discover
from anomalib_med.datasets.scans import volumes_of
from anomalib_med.errors import InputError
from anomalib_med.fitted import DEFAULT_RATE, FittedModel, check_rate
from anomalib_med.outputs.report import write_report
from anomalib_med.outputs.scores import Scores
from anomalib_med.outputs.writer import MapKind, ResultWriter, TableKind
from anomalib_med.preprocessing import Frames
from anomalib_med.records import Frame, Progress, Sample, Volume, silent


@dataclass(frozen=True)
class Summary:
    """What a run did.

    Parameters
    ----------
    scored, flagged, failed
        Numbers of images, those of an interrupted run that was taken up again included.
    resumed
        How many of them an earlier run had dealt with.
    report
        The HTML report, or None.
    volumes
        How many volumes are in volumes.csv.
    """

    scored: int
    flagged: int
    failed: int
    resumed: int
    report: Path | None
    volumes: int = 0


def score_to_folder(
    model: FittedModel,
    images: Source,
    out: str | Path,
    *,
    false_alarm_rate: float = DEFAULT_RATE,
    table: TableKind = "csv",
    maps: MapKind = "npy",
    overlays: bool = True,
    report: bool = False,
    overwrite: bool = False,
    patient_pattern: str | None = None,
    keep_patient_ids: bool = False,
    progress: Progress = silent,
) -> Summary:
    """Score images and write what comes of it; memory does not grow with their number.

    A run that was interrupted is taken up again by the same call.

    Parameters
    ----------
    model, images, false_alarm_rate, patient_pattern, progress
        See :meth:`anomalib_med.FittedModel.score`.
    out
        Folder for the results; new, empty, or that of an interrupted run.
    table, maps, overlays, overwrite
        See :class:`anomalib_med.outputs.writer.ResultWriter`.
    report
        Write report.html; it shows overlays, so they are written too.
    keep_patient_ids
        Write patient identifiers of DICOM files as they are instead of pseudonyms.

    Raises
    ------
    InputError
        No images.
    ConfigError
        A rate that makes no sense; nothing is written then.
    OutputError
        The folder holds something else, or the disk is full; what was scored is kept.
    """
    check_rate(false_alarm_rate)
    found = discover(images, patient_pattern=patient_pattern, keep_patient_ids=keep_patient_ids)
    samples = _outside(found, Path(out))
    volumes = volumes_of(samples)
    writer = _writer(model, samples, volumes, Path(out), false_alarm_rate, table, maps, overlays or report, overwrite)
    with writer:
        done = writer.done
        left = [sample for sample in samples if sample.id not in done]
        offset, total = len(samples) - len(left), len(samples)

        def count(stage: str, scored: int, _: int, note: str = "", /) -> None:
            progress(stage, offset + scored, total, note)

        for result, display in model.score_each(
            left, false_alarm_rate=false_alarm_rate, display=overlays or report, progress=count
        ):
            writer.write(result, display)
    page = _report(model, Path(out), samples, false_alarm_rate) if report else None
    counts = writer.counts
    return Summary(counts["scored"], counts["flagged"], counts["failed"], offset, page, len(volumes))


def _outside(samples: Sequence[Sample], out: Path) -> list[Sample]:
    """Leave out what lies in the output folder: maps and overlays of an earlier run are no images to be scored."""
    folder = os.path.join(os.path.abspath(out), "")  # noqa: PTH100, PTH118 - links are kept as they are named
    kept = [s for s in samples if s.path is None or not os.path.abspath(s.path).startswith(folder)]  # noqa: PTH100
    if not kept:
        raise InputError(f"{out}: the images lie in the output folder; choose another folder for the results")
    return kept


def write_scores(scores: Scores, out: Path) -> Path:
    """Write scores that are in memory as `score_to_folder` does, reading the images again for their pictures."""
    model = scores.model
    volumes, rate = volumes_of(scores.samples), scores.false_alarm_rate
    with _writer(model, scores.samples, volumes, out, rate, "csv", "npy", True, False) as writer:
        frames = Frames(scores.samples, model.preprocessing, display=True)
        for result, (_, frame) in zip(scores.results, frames.outcomes(), strict=True):
            if result.id not in writer.done:
                writer.write(result, frame.display if isinstance(frame, Frame) else None)
    return _report(model, out, scores.samples, scores.false_alarm_rate)


def _writer(
    model: FittedModel,
    samples: list[Sample],
    volumes: Sequence[Volume],
    out: Path,
    rate: float,
    table: TableKind,
    maps: MapKind,
    overlays: bool,
    overwrite: bool,
) -> ResultWriter:
    fingerprint = {"model": model.fingerprint(), "images": _images_hash(samples), "false_alarm_rate": repr(rate)}
    return ResultWriter(
        out,
        fingerprint=fingerprint,
        colour_range=model.map_range,
        table=table,
        maps=maps,
        overlays=overlays,
        volumes=volumes,
        rule=model.volume_rule,
        false_alarm_rate=rate,
        overwrite=overwrite,
    )


def _images_hash(samples: Sequence[Sample]) -> str:
    """SHA-256 of what is scored, so that results are never taken for those of other images under the same names.

    Of a file its path, size and time of change count, of an array its pixels.
    """
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(repr((sample.id, sample.frame, _file_state(sample.path))).encode("utf-8", "surrogatepass"))
        if sample.array is not None:
            digest.update(repr((sample.array.shape, sample.array.dtype.str)).encode() + sample.array.tobytes())
    return digest.hexdigest()


def _file_state(path: Path | None) -> tuple[str, int, int]:
    if path is None or not path.exists():
        return str(path), 0, 0
    state = path.stat()
    return str(path), state.st_size, state.st_mtime_ns


def _report(model: FittedModel, out: Path, samples: list[Sample], rate: float) -> Path:
    labels = {sample.id: sample.label for sample in samples if sample.label is not None}
    threshold = model.threshold(rate)
    return write_report(
        out,
        title=f"{model.detector.title}: {len(samples)} images",
        model=flat_table({key: value for key, value in model.describe().items() if key != "notes"}),
        calibration_scores=np.empty(0) if model.calibration is None else model.calibration.scores,
        threshold=threshold if threshold is not None and np.isfinite(threshold) else None,
        false_alarm_rate=rate,
        labels=labels or None,
        notes=model.notes,
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
