"""Tables of images, one row an image or a file of images: what their columns mean, and errors with the line."""

import csv
import io
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter

from anomalib_med.errors import InputError
from anomalib_med.records import Box, Lesion, Sample

COLUMNS = ("path", "id", "patient", "study", "label", "mask", "frame", "boxes", "area", "crop", "runs")
LABELS = {"0": 0, "0.0": 0, "normal": 0, "1": 1, "1.0": 1, "abnormal": 1, "": None}

Crop = tuple[int, int, int, int]
T = TypeVar("T")
_BOXES, _CROP = TypeAdapter(tuple[Box, ...]), TypeAdapter(Crop)
Listed = tuple[Sample, bool]
"""A file as it was found or as a row of a table lists it, and whether its patient is known."""


def image_id(name: str, frame: int | None, crop: Crop | None = None, *, width: int = 3) -> str:
    """The id of an image in a file: ``<name>#<frame>``, and ``@<top>,<left>,<height>,<width>`` for a part of it."""
    part = "" if crop is None else f"@{','.join(map(str, crop))}"
    return name + ("" if frame is None else f"#{frame:0{width}d}") + part


def read_image_table(table: Path) -> list[Listed]:
    """The rows of a table whose files are all there.

    Raises InputError where it is no CSV table with a column ``path``, where a cell makes no sense (with its line), or
    where a file is missing.
    """
    try:
        text = table.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{table}: not a text table in UTF-8 ({error.reason}): save it as CSV UTF-8") from error
    except OSError as error:
        raise InputError(f"{table}: cannot be opened ({error.strerror}): check its permissions") from error
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, restkey="")
    try:
        columns = [name.strip() for name in rows.fieldnames or []]
        known = [name.lower() if name.lower() in COLUMNS else name for name in columns]
        if "path" not in known:
            raise InputError(f"{table}: no column named path; the columns are: {', '.join(columns) or 'none'}")
        if len(set(known)) < len(known):
            raise InputError(f"{table}: two columns have the same name: {', '.join(columns)}")
        rows.fieldnames = known
        listed = [_row(row, table.parent, f"{table}, line {rows.line_num}") for row in rows]
    except csv.Error as error:
        where = f"{table}, line {rows.line_num}"
        raise InputError(f"{where}: not a row of a CSV table ({error}): check the quotes") from error
    if not listed:
        raise InputError(f"{table}: the table has a header and no row: list at least one image")
    for what, all_files in (("file", [row.path for row, _ in listed]), ("mask", [row.mask for row, _ in listed])):
        files = [file for file in all_files if file is not None]
        absent = [file for file in files if not file.is_file()]
        if absent:
            raise InputError(f"{table}: no such {what}: {absent[0]} ({len(absent)} of {len(files)} are missing)")
    return listed


def _row(row: Mapping[str, str | list[str] | None], root: Path, where: str) -> Listed:
    if isinstance(row.get(""), list):
        raise InputError(f"{where}: more cells than the header has columns: quote cells with the delimiter")
    return listed_row({name: cell.strip() for name, cell in row.items() if isinstance(cell, str)}, root, where)


def listed_row(cells: Mapping[str, str], root: Path, where: str) -> Listed:
    """One row of a table, with the paths below `root`; an InputError for a cell that makes no sense names `where`."""
    if not cells.get("path"):
        raise InputError(f"{where}: the path is empty")
    label, frame = cells.get("label", "").lower(), cells.get("frame", "")
    if label not in LABELS:
        raise InputError(f"{where}: label {label!r} is not one of 0, 1, normal, abnormal, or empty")
    if frame and not re.fullmatch(r"[0-9]+(\.0)?", frame):
        raise InputError(f"{where}: frame {frame!r} is not a whole number from 0")
    files = {name: root / Path(cells[name]).expanduser() for name in ("path", "mask", "area") if cells.get(name)}
    sample = Sample(
        id=cells.get("id") or _below(files["path"], root),
        path=files["path"],
        frame=int(float(frame)) if frame else None,
        patient=cells.get("patient", ""),
        study=cells.get("study") or None,
        label=LABELS[label],
        mask=files.get("mask"),
        boxes=_json(cells, "boxes", _BOXES, "[[x, y, width, height]]", where) if cells.get("boxes") else (),
        crop=_json(cells, "crop", _CROP, "[top, left, height, width]", where) if cells.get("crop") else None,
        area=files.get("area"),
        lesion=Lesion(runs=(cells["runs"],)) if cells.get("runs") else None,
        meta={name: cell for name, cell in cells.items() if name not in COLUMNS and name and cell},
    )
    return sample, bool(cells.get("patient"))


def _below(path: Path, root: Path) -> str:
    """The path below the root as posix text, or the whole path of a file that lies elsewhere."""
    normal, folder = Path(os.path.normpath(path)), Path(os.path.normpath(root))
    return (normal.relative_to(folder) if normal.is_relative_to(folder) else normal).as_posix()


def _json(cells: Mapping[str, str], name: str, wanted: TypeAdapter[T], like: str, where: str) -> T:
    try:
        return wanted.validate_json(cells[name])
    except ValueError as error:
        raise InputError(f"{where}: {name} {cells[name]!r} is not JSON like {like}") from error
