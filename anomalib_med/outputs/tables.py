"""Tables of records as CSV, their Parquet and JSON-lines forms, and the way back to the records.

A table is described once, as the columns of a kind of record. A CSV made here opens in a spreadsheet without running
anything: a text that starts with ``=``, ``+``, ``-``, ``@``, a tab, a carriage return or an apostrophe gets an
apostrophe in front, which reading takes away again. Numbers are never touched. They are written with the fewest digits
that read back as the same float64. Parquet and JSON lines hold the plain text.
"""

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Generic, Literal, TypeVar

from anomalib_med.errors import OutputError
from anomalib_med.files import output_errors, replacing
from anomalib_med.records import Result

Value = str | int | float | bool | None
Row = dict[str, Value]
Kind = type[str] | type[int] | type[float] | type[bool]
R = TypeVar("R")
R_contra = TypeVar("R_contra", contravariant=True)

ROWS_AT_ONCE = 10_000
"""Rows of a row group of Parquet, and of what is read of it at a time."""

_ARROW = {str: "string", int: "int64", float: "float64", bool: "bool"}
_FLAGS = {"true": True, "false": False}
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")
_QUOTE = '"'
_TO_QUOTE = re.compile(r'[,"\r\n]')


class DamagedTableError(OutputError):
    """A table is there, but not as it was written."""


@dataclass(frozen=True, slots=True)
class Column(Generic[R_contra]):
    """A column of a table."""

    name: str  # its heading, and the argument that its value becomes when a record is made of a row
    kind: Kind  # a number or a flag may be absent: its cell is then empty
    value: Callable[[R_contra], Value] | None = None  # finds it in a record; by default its attribute `name`
    required: bool = False  # whether an empty cell is damage; NaN, which JSON does not have, is null in JSON lines

    def of(self, record: R_contra) -> Value:
        """The value in a record, as a plain Python value."""
        return self.plain(getattr(record, self.name) if self.value is None else self.value(record))

    def plain(self, value: Value) -> Value:
        """A value from a record, JSON or Parquet as a plain Python value; NaN is absent where it may be."""
        if value is None:
            return math.nan if self.required else None
        plain = self.kind(value)
        return None if plain != plain and not self.required else plain

    def parse(self, cell: str) -> Value:
        """The value of a cell of CSV; raises ValueError or KeyError for what the column does not hold."""
        if cell == "" and self.kind is not str and not self.required:
            return None
        return _FLAGS[cell] if self.kind is bool else self.kind(cell)


def columns(kind: Kind, *names: str, required: bool = False) -> list[Column[object]]:
    """Columns whose values are the attributes of their names."""
    return [Column(name, kind, required=required) for name in names]


class Table(Generic[R]):
    """A kind of table: one row for each record, which `make` makes of the values of a row by the names of columns."""

    def __init__(self, columns: Sequence[Column[R]], make: Callable[..., R]) -> None:
        self.columns = tuple(columns)
        self.names = tuple(column.name for column in columns)
        self.header = csv_record(self.names)
        self._make = make

    def values(self, record: R) -> tuple[Value, ...]:
        """The values of a row, as plain Python values."""
        return tuple(column.of(record) for column in self.columns)

    def line(self, record: R) -> bytes:
        """A row of CSV."""
        return csv_record(self.values(record))

    def rows(self, path: Path) -> Iterator[tuple[R, int]]:
        """Yield the records of a CSV table one by one, each with the byte where its row ends; see `iter_records`."""
        records = iter_records(path, self.names)
        next(records, None)
        for number, (cells, end) in enumerate(records, start=2):
            try:
                row = {column.name: column.parse(cell) for column, cell in zip(self.columns, cells, strict=True)}
                record = self._make(**row)
            except (ValueError, KeyError) as error:
                raise _damaged(path, number, str(error)) from error
            yield record, end

    def read(self, path: Path) -> Iterator[R]:
        """Yield the records of a CSV, Parquet or JSON-lines file one at a time; raises OutputError for another."""
        if path.suffix == ".csv":
            return (record for record, _ in self.rows(path))
        if path.suffix == ".jsonl":
            return self._read_jsonl(path)
        if path.suffix == ".parquet":
            return self._read_parquet(path)
        raise OutputError(f"{path}: not a table: give a .csv, .parquet or .jsonl file")

    def convert(self, table: Path, kind: Literal["parquet", "jsonl"]) -> Path:
        """Write the rows of a CSV table beside it as Parquet (row groups of 10,000) or JSON lines, few at a time."""
        out = table.with_suffix(f".{kind}")
        rows = (dict(zip(self.names, self.values(record), strict=True)) for record in self.read(table))
        with output_errors(out), replacing(out) as temporary:
            (self._to_parquet if kind == "parquet" else self._to_jsonl)(rows, temporary)
        return out

    def _to_jsonl(self, rows: Iterator[Row], out: Path) -> None:
        with out.open("w", encoding="ascii") as handle:
            for row in rows:
                known = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}
                handle.write(json.dumps(known, allow_nan=False) + "\n")

    def _to_parquet(self, rows: Iterator[Row], out: Path) -> None:
        import pyarrow.parquet

        schema = pyarrow.schema([(column.name, _ARROW[column.kind]) for column in self.columns])
        with pyarrow.parquet.ParquetWriter(out, schema) as writer:
            while chunk := list(islice(rows, ROWS_AT_ONCE)):
                encodable = [{k: _encodable(v) for k, v in row.items()} for row in chunk]
                writer.write_table(pyarrow.Table.from_pylist(encodable, schema))

    def _read_jsonl(self, path: Path) -> Iterator[R]:
        with output_errors(path), path.open(encoding="ascii") as handle:
            for number, line in enumerate(handle, start=1):
                try:
                    record = self._record(json.loads(line))
                except (ValueError, KeyError, TypeError) as error:
                    raise _damaged(path, number, str(error)) from error
                yield record

    def _read_parquet(self, path: Path) -> Iterator[R]:
        import pyarrow.parquet

        with output_errors(path):
            try:
                with pyarrow.parquet.ParquetFile(path) as file:
                    for batch in file.iter_batches(ROWS_AT_ONCE, columns=list(self.names)):
                        yield from map(self._record, batch.to_pylist())
            except (pyarrow.ArrowInvalid, KeyError) as error:
                raise OutputError(f"{path}: not as it was written ({error}): score again with --overwrite") from error

    def _record(self, row: Row) -> R:
        return self._make(**{column.name: column.plain(row[column.name]) for column in self.columns})


def csv_record(values: Sequence[Value]) -> bytes:
    """One line of CSV, with its line feed: numbers by repr, true / false, empty for None, text guarded."""
    return (",".join(map(_cell, values)) + "\n").encode("utf-8", "surrogateescape")


def iter_records(path: Path, columns: Sequence[str]) -> Iterator[tuple[list[str], int]]:
    """Yield the rows of a CSV table one by one, text as it was before guarding, each with the byte where it ends.

    The header comes first. A last row that a crash tore is left out. Raises OutputError for a table with other columns.
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


def _cell(value: Value) -> str:
    if not isinstance(value, str):
        return "" if value is None else repr(value).lower()
    text = "'" + value if value.startswith(_FORMULA) else value
    # Quoted by hand: before Python 3.13 csv.writer leaves a lone carriage return bare, and csv.reader then trips on it.
    return f'"{text.replace(_QUOTE, _QUOTE * 2)}"' if _TO_QUOTE.search(text) else text


def _unguarded(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(_FORMULA) else cell


def _encodable(value: Value) -> Value:
    # Parquet text is UTF-8; a file name that is not loses its odd bytes here and nowhere else.
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else value


def _damaged(path: Path, number: int, reason: str) -> DamagedTableError:
    return DamagedTableError(f"{path}, row {number}: not as it was written ({reason}): score again with --overwrite")


def _failure(id: str, path: str, frame: int | None, reason: str) -> Result:
    return Result(id, path, frame, "", math.nan, status=reason)


SCORES: Table[Result] = Table(
    (
        *columns(str, "id", "path"),
        Column("frame", int),
        Column("patient", str),
        Column("score", float, required=True),
        Column("p_value", float),
        Column("flagged", bool),
        *columns(str, "area", "map"),
    ),
    Result,
)
"""The images that were scored; read back they are Results without map grids."""

FAILURES: Table[Result] = Table(
    (*columns(str, "id", "path"), Column("frame", int), Column("reason", str, lambda result: result.status)),
    _failure,
)
"""The images that could not be scored; read back their score is NaN and the reason is their status."""


def read_scores(path: Path) -> list[Result]:
    """All rows of scores.csv, scores.parquet or scores.jsonl, see `Table.read`."""
    return list(SCORES.read(path))
