"""What an output folder already holds: the rows a resumed run keeps, and the files that an overwrite removes."""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from anomalib_med.files import TEMPORARY, output_errors
from anomalib_med.outputs import runfile
from anomalib_med.outputs.maps import clipped_pixels
from anomalib_med.outputs.names import safe_stem
from anomalib_med.outputs.tables import FAILURES, SCORES, DamagedTableError, iter_records
from anomalib_med.records import Result

SCORES_CSV, FAILURES_CSV, REPORT = "scores.csv", "failures.csv", "report.html"
VOLUME_TABLES = ("volumes.csv", "candidates.csv", "patients.csv")
MAPS, OVERLAYS, SCALE = "maps", "overlays", "scale.json"


@dataclass(slots=True)
class Kept:
    """What a resumed run keeps.

    Parameters
    ----------
    scores_end
        Bytes of scores.csv to keep; 0 for none, not even the header.
    done
        Ids of the images that need no scoring.
    volumes
        Ids of the volumes that are complete.
    failures
        Rows of failures.csv to keep.
    scored, flagged, clipped
        Rows kept, rows flagged among them, and pixels clipped in their PNG maps.
    """

    scores_end: int = 0
    done: set[str] = field(default_factory=set)
    volumes: set[str] = field(default_factory=set)
    failures: list[Result] = field(default_factory=list)
    scored: int = 0
    flagged: int = 0
    clipped: int = 0


def kept_rows(out: Path, volume_of: Mapping[str, str], *, complete: bool) -> Kept:
    """Find the rows that stay: all up to a torn one, or to the first whose map is gone.

    A failure is not kept, so it is tried again: its cause may have been removed. The exception is a slice of a volume
    that is complete.

    Parameters
    ----------
    out
        The output folder.
    volume_of
        Id of the volume by the id of its slices.
    complete
        The run was: otherwise the rows of a volume at the end of the table are dropped, because a crash may have torn
        the group.

    Raises
    ------
    OutputError
        A table cannot be read or is not as it was written.
    """
    kept = Kept()
    table = out / SCORES_CSV
    if table.exists():
        rows = _rows_with_maps(out)
        rows = _whole_volumes(rows, volume_of, table.stat().st_size if complete else -1)
        for result, end in rows:
            _count(kept, out, result, volume_of)
            kept.scores_end = end
        kept.scores_end = kept.scores_end or _header_end(table)
    if kept.volumes and (out / FAILURES_CSV).exists():
        failures = FAILURES.read(out / FAILURES_CSV)
        kept.failures = [failure for failure in failures if volume_of.get(failure.id) in kept.volumes]
        kept.done.update(failure.id for failure in kept.failures)
    return kept


def remove_results(out: Path) -> None:
    """Remove the results of a run from its folder: what its tables list and nothing else.

    run.json stays, to be replaced: an interrupted overwrite can be repeated.

    Raises
    ------
    OutputError
        The folder is not one of ours, or a file cannot be removed.
    """
    runfile.read_run(out)
    with output_errors(out):
        if (out / SCORES_CSV).exists():
            _remove_pictures(out)
        remove_temporary(out)
        (out / MAPS / SCALE).unlink(missing_ok=True)
        for folder in (out / MAPS, out / OVERLAYS):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        tables = (SCORES_CSV, "scores.parquet", "scores.jsonl", FAILURES_CSV, REPORT, *VOLUME_TABLES)
        for name in tables:
            (out / name).unlink(missing_ok=True)


def remove_temporary(out: Path) -> None:
    """Remove the half-written files of a run that was killed.

    Raises
    ------
    OutputError
        A file cannot be removed.
    """
    with output_errors(out):
        for folder in (out, out / MAPS, out / OVERLAYS):
            for file in folder.glob(f"*{TEMPORARY}"):
                shutil.rmtree(file) if file.is_dir() else file.unlink()


def _remove_pictures(out: Path) -> None:
    try:
        for cells, _ in iter_records(out / SCORES_CSV, SCORES.names):
            (out / OVERLAYS / f"{safe_stem(cells[0])}.jpg").unlink(missing_ok=True)
            if cells[-1] not in ("", SCORES.names[-1]):
                _remove_map(out / MAPS, cells[-1])
    except DamagedTableError:
        return  # overwriting is the remedy for a damaged table; pictures it no longer names stay


def _remove_map(folder: Path, name: str) -> None:
    """Remove the map that a table names, and its folder where it was the last; a table edited by hand cannot point
    elsewhere.
    """
    file = folder / Path(name).name
    if not file.exists() and Path(name).parent.name != "..":
        file = folder / Path(name).parent.name / Path(name).name
    file.unlink(missing_ok=True)
    if file.parent != folder and file.parent.is_dir() and not any(file.parent.iterdir()):
        file.parent.rmdir()


def _rows_with_maps(out: Path) -> Iterator[tuple[Result, int]]:
    for result, end in SCORES.rows(out / SCORES_CSV):
        if result.map and not (out / result.map).is_file():
            return
        yield result, end


def _whole_volumes(
    rows: Iterator[tuple[Result, int]], volume_of: Mapping[str, str], whole: int
) -> Iterator[tuple[Result, int]]:
    """All rows but those of a volume at the end, unless the rows end where a complete table does."""
    group: list[tuple[Result, int]] = []
    for row in rows:
        volume = volume_of.get(row[0].id)
        if group and volume_of.get(group[-1][0].id) != volume:
            yield from group
            group = []
        group.append(row)
        if volume is None or row[1] == whole:
            yield from group
            group = []


def _count(kept: Kept, out: Path, result: Result, volume_of: Mapping[str, str]) -> None:
    kept.done.add(result.id)
    kept.scored += 1
    kept.flagged += bool(result.flagged)
    if result.id in volume_of:
        kept.volumes.add(volume_of[result.id])
    if result.map.endswith(".png"):
        kept.clipped += clipped_pixels(out / result.map)


def _header_end(table: Path) -> int:
    return next((end for _, end in iter_records(table, SCORES.names)), 0)
