"""scores.csv and failures.csv, their Parquet and JSON-lines forms, and the way back to Results.

A CSV made here opens in a spreadsheet without running anything: a text that starts with ``=``, ``+``, ``-``, ``@``, a
tab, a carriage return or an apostrophe gets an apostrophe in front, which `iter_scores` takes away again. Numbers are
never touched. They are written with the fewest digits that read back as the same float64. Parquet and JSON lines hold
the plain text.
"""

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

from anomalib_med.errors import OutputError
from anomalib_med.files import output_errors, replace_with
from anomalib_med.records import Result

SCORES = ("id", "path", "frame", "patient", "score", "p_value", "flagged", "area", "map")
FAILURES = ("id", "path", "frame", "reason")

Value = str | int | float | bool | None
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")
_QUOTE = '"'
_TO_QUOTE = re.compile(r'[,"\r\n]')
_ROWS_AT_ONCE = 10_000


class DamagedTableError(OutputError):
    """A table is there, but not as it was written."""


def csv_record(values: Sequence[Value]) -> bytes:
    """One line of CSV, with its line feed: numbers by repr, true / false, empty for None, text guarded."""
    return (",".join(map(_cell, values)) + "\n").encode("utf-8", "surrogateescape")


def score_values(result: Result) -> tuple[Value, ...]:
    """The values of `SCORES` for one scored image, as plain Python numbers."""
    p_value = None if result.p_value is None else float(result.p_value)
    flagged = None if result.flagged is None else bool(result.flagged)
    frame = None if result.frame is None else int(result.frame)
    return result.id, result.path, frame, result.patient, float(result.score), p_value, flagged, result.area, result.map


def failure_values(result: Result) -> tuple[Value, ...]:
    """The values of `FAILURES` for one image that could not be scored."""
    return result.id, result.path, result.frame, result.status


def iter_records(path: Path, columns: Sequence[str]) -> Iterator[tuple[list[str], int]]:
    """Yield the rows of a CSV table one by one, text as it was before guarding, each with the byte where it ends.

    The header comes first. A last row that a crash tore is left out.

    Raises
    ------
    OutputError
        The table is missing, has other columns, or a row with another number of cells.
    """
    with output_errors(path), path.open("rb") as handle:
        end, number, record = 0, 0, b""
        for line in handle:
            record += line
            # An odd number of quotes means that the line feed belongs to a text.
            if not line.endswith(b"\n") or record.count(b'"') % 2:
                continue
            end, number = end + len(record), number + 1
            text = record.decode("utf-8", "surrogateescape")
            cells = [_unguarded(cell) for cell in next(csv.reader(io.StringIO(text, newline="")))]
            if len(cells) != len(columns) or (number == 1 and tuple(cells) != tuple(columns)):
                raise _damaged(path, number, f"expected the columns {', '.join(columns)}")
            yield cells, end
            record = b""


def iter_scores(path: Path) -> Iterator[Result]:
    """Yield the rows of scores.csv, scores.parquet or scores.jsonl as Results without map grids, one at a time.

    Raises
    ------
    OutputError
        The file is missing, is none of the three kinds, or holds something else than scores.
    """
    if path.suffix == ".csv":
        rows = iter_records(path, SCORES)
        next(rows, None)
        for number, (cells, _) in enumerate(rows, start=2):
            yield parse_score(path, number, cells)
    elif path.suffix == ".jsonl":
        yield from _iter_jsonl(path)
    elif path.suffix == ".parquet":
        yield from _iter_parquet(path)
    else:
        raise OutputError(f"{path}: not a table of scores: give a .csv, .parquet or .jsonl file")


def read_scores(path: Path) -> list[Result]:
    """All rows of a table of scores; see `iter_scores`."""
    return list(iter_scores(path))


def iter_failures(path: Path) -> Iterator[Result]:
    """Yield the rows of failures.csv as Results with the score NaN and the reason as status.

    Raises
    ------
    OutputError
        The file is missing or holds something else.
    """
    rows = iter_records(path, FAILURES)
    next(rows, None)
    for number, (cells, _) in enumerate(rows, start=2):
        id, where, frame, reason = cells
        try:
            yield Result(id, where, int(frame) if frame else None, "", math.nan, status=reason)
        except ValueError as error:
            raise _damaged(path, number, str(error)) from error


def parse_score(path: Path, number: int, cells: Sequence[str]) -> Result:
    """Row `number` of the scores table `path` as a Result.

    Raises
    ------
    OutputError
        A cell is not what its column holds.
    """
    id, where, frame, patient, score, p_value, flagged, area, map = cells
    try:
        return Result(
            id,
            where,
            int(frame) if frame else None,
            patient,
            float(score),
            float(p_value) if p_value else None,
            {"true": True, "false": False, "": None}[flagged],
            area=area,
            map=map,
        )
    except (ValueError, KeyError) as error:
        raise _damaged(path, number, str(error)) from error


def convert_scores(table: Path, kind: Literal["parquet", "jsonl"]) -> Path:
    """Write the rows of scores.csv beside it as Parquet (row groups of 10,000) or JSON lines, without holding them all.

    Raises
    ------
    OutputError
        The table cannot be read or the new file not written.
    """
    out = table.with_suffix(f".{kind}")
    replace_with(out, lambda temporary: (_to_parquet if kind == "parquet" else _to_jsonl)(table, temporary))
    return out


def _to_jsonl(table: Path, out: Path) -> None:
    with out.open("w", encoding="ascii") as handle:
        for result in iter_scores(table):
            row = dict(zip(SCORES, score_values(result), strict=True))
            if math.isnan(result.score):
                row["score"] = None  # JSON has no NaN
            handle.write(json.dumps(row, allow_nan=False) + "\n")


def _to_parquet(table: Path, out: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = (
        pa.string(),
        pa.string(),
        pa.int64(),
        pa.string(),
        pa.float64(),
        pa.float64(),
        pa.bool_(),
        pa.string(),
        pa.string(),
    )
    schema = pa.schema(list(zip(SCORES, types, strict=True)))
    rows = (tuple(map(_encodable, score_values(result))) for result in iter_scores(table))
    with pq.ParquetWriter(out, schema) as writer:
        for chunk in _chunks(rows):
            columns = [pa.array(column, kind) for column, kind in zip(zip(*chunk, strict=True), types, strict=True)]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def _iter_jsonl(path: Path) -> Iterator[Result]:
    with output_errors(path), path.open(encoding="ascii") as handle:
        for number, line in enumerate(handle, start=1):
            try:
                row = json.loads(line)
                yield _result([row[name] for name in SCORES])
            except (ValueError, KeyError, TypeError) as error:
                raise _damaged(path, number, str(error)) from error


def _iter_parquet(path: Path) -> Iterator[Result]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with output_errors(path):
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(_ROWS_AT_ONCE, columns=list(SCORES)):
                    yield from map(_result, zip(*(batch[name].to_pylist() for name in SCORES), strict=True))
        except (pa.ArrowInvalid, KeyError) as error:
            raise OutputError(f"{path}: not a table of scores ({error}): score again with --overwrite") from error


def _result(values: Sequence[Value]) -> Result:
    id, where, frame, patient, score, p_value, flagged, area, map = values
    return Result(
        str(id),
        str(where),
        None if frame is None else int(frame),
        str(patient),
        math.nan if score is None else float(score),
        None if p_value is None else float(p_value),
        None if flagged is None else bool(flagged),
        area=str(area),
        map=str(map),
    )


def _cell(value: Value) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        return repr(value)
    text = "'" + value if value.startswith(_FORMULA) else value
    # Quoted by hand: before Python 3.13 csv.writer leaves a lone carriage return bare, and csv.reader then trips on it.
    return f'"{text.replace(_QUOTE, _QUOTE * 2)}"' if _TO_QUOTE.search(text) else text


def _unguarded(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(_FORMULA) else cell


def _encodable(value: Value) -> Value:
    # Parquet text is UTF-8; a file name that is not loses its odd bytes here and nowhere else.
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else value


def _chunks(rows: Iterable[tuple[Value, ...]]) -> Iterator[list[tuple[Value, ...]]]:
    rows = iter(rows)
    while chunk := list(islice(rows, _ROWS_AT_ONCE)):
        yield chunk


def _damaged(path: Path, number: int, reason: str) -> DamagedTableError:
    return DamagedTableError(f"{path}, row {number}: not as it was written ({reason}): score again with --overwrite")
