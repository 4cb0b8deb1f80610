"""Scores images into a folder: the table, maps, overlays and report of ``anomed score``, streaming and resumable."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anomalib_med.calibration import VolumeJudge
from anomalib_med.datasets.folder import Source, discover
from anomalib_med.datasets.scans import volumes_of
from anomalib_med.errors import InputError
from anomalib_med.fitted import DEFAULT_RATE, FittedModel, check_rate
from anomalib_med.outputs.report import write_report
from anomalib_med.outputs.run import fingerprint
from anomalib_med.outputs.writer import MapKind, ResultWriter, TableKind
from anomalib_med.records import Progress, Sample, silent


@dataclass(frozen=True)
class Summary:
    """What a run did; its numbers of images include those of an interrupted run that was resumed."""

    scored: int
    flagged: int
    failed: int
    resumed: int  # images that an earlier run had dealt with
    report: Path | None  # the HTML report
    volumes: int = 0  # how many are in volumes.csv


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
    """Score images and write what comes of it; the same call resumes a run that was interrupted.

    Memory does not grow with the number of images.

    Parameters
    ----------
    model, images, false_alarm_rate, patient_pattern, progress
        See :meth:`anomalib_med.FittedModel.score`.
    out
        Folder for the results; a new or empty one, or the one of an interrupted run.
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
    out = Path(out)
    samples = discover(images, patient_pattern=patient_pattern, keep_patient_ids=keep_patient_ids)
    samples = _outside(samples, out)
    volumes, run = volumes_of(samples), model.run_info(false_alarm_rate)
    known, colours, shown = fingerprint(run, samples), run.colour_range, overlays or report
    writer = ResultWriter(out, known, colours, volumes, table=table, maps=maps, overlays=shown, overwrite=overwrite)
    with writer:
        judge = VolumeJudge(model.volume_rule, false_alarm_rate, volumes, writer.volumes)
        left = [sample for sample in samples if sample.id not in writer.done]
        offset = len(samples) - len(left)

        def count(stage: str, scored: int, _: int, note: str = "", /) -> None:
            progress(stage, offset + scored, len(samples), note)

        for result, display in model.score_each(left, false_alarm_rate=false_alarm_rate, display=shown, progress=count):
            map = result.anomaly_map() if judge.wants_map(result) else None
            writer.write(result, display, map)
            if volume := judge.add(result, map):
                writer.write_volume(volume)
        writer.write_patients(judge.patients())
    page = write_report(out, run, samples) if report else None
    counts = writer.counts
    return Summary(counts["scored"], counts["flagged"], counts["failed"], offset, page, len(volumes))


def _outside(samples: Sequence[Sample], out: Path) -> list[Sample]:
    """Leave out what lies in the output folder: maps and overlays of an earlier run are no images to be scored."""
    folder = os.path.join(os.path.abspath(out), "")  # noqa: PTH100, PTH118 - links are kept as they are named
    kept = [s for s in samples if s.path is None or not os.path.abspath(s.path).startswith(folder)]  # noqa: PTH100
    if not kept:
        raise InputError(f"{out}: the images lie in the output folder; choose another folder for the results")
    return kept
