"""Rows of CSV, TSV, text and JSON files, and templates filled in from them."""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import JsonValue

from anomalib_med.errors import InputError

Row = dict[str, str]

_FIELD = re.compile(r"\{([^{}]+)\}")


def read_rows(path: Path, keys: str = "") -> list[Row]:
    """Read a table: ``.csv``, ``.tsv``, ``.json``, also ``.gz``, or a text file with one name a line (column ``item``).

    `keys` says where the list lies in a JSON file: ``train.0``. A dictionary there gives one row a key, the key being
    the column ``key``. Raises InputError where the file cannot be read, or is not such a table.
    """
    name = path.name.lower()
    try:
        content = gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error}): copy it again") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    if name.endswith(".json"):
        return _json_rows(path, text, keys)
    if not name.removesuffix(".gz").endswith((".csv", ".tsv")):
        return [{"item": line.strip()} for line in text.splitlines() if line.strip()]
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    # Rows longer than the header (unnamed trailing columns) are common in published tables, and carry nothing.
    table = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        header = [name.strip() for name in next(table, [])]
        short = [""] * len(header)  # a row may end before the header does
        return [dict(zip(header, [cell.strip() for cell in row] + short, strict=False)) for row in table if any(row)]
    except csv.Error as error:
        raise InputError(f"{path}, line {table.line_num}: not a row of a table ({error})") from error


def _json_rows(path: Path, text: str, keys: str) -> list[Row]:
    try:
        value: JsonValue = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}): copy it again") from error
    for key in keys.split(".") if keys else ():
        if not isinstance(value, dict) or key not in value:
            there = ", ".join(list(value)[:10]) if isinstance(value, dict) else "a list"
            raise InputError(f"{path}: no entry {keys} ({key} is missing; there is: {there})")
        value = value[key]
    if isinstance(value, dict):
        return [{"key": key} | _cells(item) for key, item in value.items()]
    if not isinstance(value, list):
        raise InputError(f"{path}: {keys or 'the file'} is no list of images")
    return [_cells(item) for item in value]


def _cells(item: JsonValue) -> Row:
    cells = item if isinstance(item, dict) else {"item": item}
    return {key: cell if isinstance(cell, str) else json.dumps(cell) for key, cell in cells.items()}


def fields(template: str) -> set[str]:
    """Names in braces."""
    return set(_FIELD.findall(template))


def fill(template: str, row: Mapping[str, str]) -> str:
    """Put the cells of a row in for the names in braces; raises KeyError where there is no such cell."""
    return _FIELD.sub(lambda match: row[match[1]], template)


def check_columns(rows: list[Row], names: Iterable[str], path: Path) -> None:
    """Raise InputError where the rows lack a column, those of the file itself aside; no row lacks none."""
    for name in sorted(names) if rows else ():
        if name not in rows[0] and not name.startswith("file."):
            raise InputError(f"{path}: no column named {name!r}; the columns are: {', '.join(sorted(rows[0]))}")


class Condition:
    """The regular expressions of a card's ``where``, each for a column or for text with columns in braces."""

    def __init__(self, where: Mapping[str, str]) -> None:
        self.text = ", ".join(f"{column} is {text}" for column, text in where.items())
        self.columns = {name for column in where for name in fields(column) or {column}}
        self._patterns = {column: re.compile(text, re.DOTALL) for column, text in where.items()}
        self.groups = {name for pattern in self._patterns.values() for name in pattern.groupindex}

    def matched(self, rows: list[Row]) -> list[Row]:
        """The rows of which every cell matches as a whole, with the named groups as columns."""
        for column, pattern in self._patterns.items():
            cells = [fill(column, row) if "{" in column else row.get(column, "") for row in rows]
            matches = zip(rows, map(pattern.fullmatch, cells), strict=True)
            rows = [row | match.groupdict("") if self.groups else row for row, match in matches if match]
        return rows
