"""What an output folder already holds: the rows a resumed run keeps, and the files that an overwrite removes."""

import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby, takewhile
from pathlib import Path

from anomalib_med.files import TEMPORARY, output_errors
from anomalib_med.outputs import runfile
from anomalib_med.outputs.maps import clipped_pixels
from anomalib_med.outputs.names import safe_stem
from anomalib_med.outputs.tables import FAILURES, SCORES, DamagedTableError, iter_records
from anomalib_med.outputs.volume_tables import CANDIDATES_CSV, PATIENTS_CSV, VOLUMES_CSV, read_volumes
from anomalib_med.records import Result, VolumeResult

SCORES_CSV, FAILURES_CSV, REPORT = "scores.csv", "failures.csv", "report.html"
MAPS, OVERLAYS, SCALE = "maps", "overlays", "scale.json"
COUNTED = ("scored", "flagged", "failed", "clipped_pixels")


@dataclass(slots=True)
class Kept:
    """What a resumed run keeps."""

    scores_end: int = 0  # bytes of scores.csv; 0 for none, not even the header
    done: set[str] = field(default_factory=set)  # ids of the images that need no scoring
    volumes: list[VolumeResult] = field(default_factory=list)  # those that are complete
    failures: list[Result] = field(default_factory=list)  # rows of failures.csv
    # Images by outcome, and pixels clipped in their PNG maps.
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTED, 0))


def kept_rows(out: Path, volume_of: Mapping[str, str], *, complete: bool) -> Kept:
    """Find the rows that stay: all up to a torn one, or to the first whose map is gone.

    A failure is not kept, so it is tried again: its cause may have been removed. The exception is a slice of a volume
    that is complete. Where the run was not `complete`, the rows of a volume at the end of the table are dropped,
    because a crash may have torn the group. `volume_of` holds the id of the volume by the id of its slices. Raises
    OutputError for a table that is not as it was written.
    """
    kept = Kept()
    table = out / SCORES_CSV
    whole: set[str] = set()  # the volumes that are complete
    if table.exists():
        size = table.stat().st_size
        mapped = takewhile(lambda row: not row[0].map or (out / row[0].map).is_file(), SCORES.rows(table))
        kept.scores_end = len(SCORES.header) if size >= len(SCORES.header) else 0
        for result, kept.scores_end in _whole_volumes(mapped, volume_of, size if complete else -1):
            kept.done.add(result.id)
            if result.id in volume_of:
                whole.add(volume_of[result.id])
            kept.counts["scored"] += 1
            kept.counts["flagged"] += bool(result.flagged)
            kept.counts["clipped_pixels"] += clipped_pixels(out / result.map) if result.map.endswith(".png") else 0
    if whole and (out / FAILURES_CSV).exists():
        kept.failures = [f for f in FAILURES.read(out / FAILURES_CSV) if volume_of.get(f.id) in whole]
        kept.done.update(failure.id for failure in kept.failures)
        kept.counts["failed"] = len(kept.failures)
    if whole and (out / VOLUMES_CSV).exists() and (out / CANDIDATES_CSV).exists():
        kept.volumes = [volume for volume in read_volumes(out) if volume.id in whole]
    return kept


def remove_results(out: Path) -> None:
    """Remove the results of a run from its folder: what its tables list and nothing else.

    run.json stays, to be replaced: an interrupted overwrite can be repeated. Raises OutputError for a folder that is
    not one of ours.
    """
    runfile.read_run(out)
    with output_errors(out):
        if (out / SCORES_CSV).exists():
            _remove_pictures(out)
        remove_temporary(out)
        tables = (SCORES_CSV, "scores.parquet", "scores.jsonl", FAILURES_CSV, VOLUMES_CSV, CANDIDATES_CSV, PATIENTS_CSV)
        for name in (*tables, REPORT, f"{MAPS}/{SCALE}"):
            (out / name).unlink(missing_ok=True)
        for folder in (out / MAPS, out / OVERLAYS):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def remove_temporary(out: Path) -> None:
    """Remove the half-written files of a run that was killed; raises OutputError."""
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
    """Remove the map that a table names, nowhere but in `folder`, and a folder in it of which it was the last."""
    file = folder / Path(name).name
    if not file.exists() and Path(name).parent.name != "..":
        file = folder / Path(name).parent.name / Path(name).name
    file.unlink(missing_ok=True)
    if file.parent != folder and file.parent.is_dir() and not any(file.parent.iterdir()):
        file.parent.rmdir()


def _whole_volumes(
    rows: Iterable[tuple[Result, int]], volume_of: Mapping[str, str], whole: int
) -> Iterator[tuple[Result, int]]:
    """All rows but those of a volume at the end, unless the rows end where a complete table does."""
    group: list[tuple[Result, int]] = []
    for _, rows_of_one in groupby(rows, lambda row: volume_of.get(row[0].id, row[0].id)):
        yield from group
        group = list(rows_of_one)
    if group and (group[-1][0].id not in volume_of or group[-1][1] == whole):
        yield from group
