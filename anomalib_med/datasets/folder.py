"""Folders, globs, lists, tables and arrays to samples. No pixel is read, and no header of a PNG or JPEG."""

import csv
import dataclasses
import glob
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anomalib_med.datasets.readers import FORMATS, HeaderInfo, header, is_image, samples_from_array
from anomalib_med.datasets.series import assembled
from anomalib_med.errors import ConfigError, InputError, ReadError
from anomalib_med.records import Box, Sample

Source = str | Path | np.ndarray | Sequence[str] | Sequence[Path] | Sequence[np.ndarray] | Sequence[Sample]

TABLE_SUFFIXES = (".csv", ".tsv")
COLUMNS = ("path", "id", "patient", "study", "label", "mask", "frame", "boxes", "area")
VOLUME_SUFFIXES = (".nii", ".nii.gz", ".mhd", ".mha")
LABELS = {"0": 0, "0.0": 0, "normal": 0, "1": 1, "1.0": 1, "abnormal": 1, "": None}

_IGNORED_FOLDERS = {"__macosx"}
_IGNORED_FILES = {"dicomdir", "thumbs.db"}


@dataclass(frozen=True, slots=True)
class _Listed:
    """One file as it was found or as a row of a table lists it."""

    path: Path
    id: str
    patient: str = ""
    study: str | None = None
    label: int | None = None
    mask: Path | None = None
    frame: int | None = None
    boxes: tuple[Box, ...] = ()
    area: Path | None = None
    meta: Mapping[str, str] = dataclasses.field(default_factory=dict)


def discover(
    source: Source,
    *,
    patient_pattern: str | None = None,
    label: int | None = None,
    keep_patient_ids: bool = False,
) -> list[Sample]:
    """List the images of a source.

    Parameters
    ----------
    source
        - a folder, searched through, in natural order (``2.png`` before ``10.png``); hidden files, ``DICOMDIR`` and
          files that are no images are left out;
        - a glob, quoted on the command line, or one file;
        - a table, ``.csv`` or ``.tsv``: a column ``path``, relative to the table's folder, and optionally ``patient``,
          ``study``, ``label`` (0, 1, normal, abnormal), ``mask``, ``frame``, ``boxes`` (JSON, ``[[x, y, width,
          height], ...]``), ``id`` and ``area`` (a mask of what is to be looked at, see
          :func:`anomalib_med.datasets.masks.read_area`); every other column goes to `Sample.meta`;
        - a list of files and folders; a file listed by name is kept whatever it is, and fails when it is read;
        - an array ``(N, H, W)`` or ``(N, H, W, 3)``, or a list of arrays;
        - samples, which are passed through.
    patient_pattern
        A regular expression with one group, or one named ``patient``, searched in the path below the root. The patient
        is, in this order: the table's, the pattern's, the DICOM header's, the file.
    label
        0 or 1 for all samples whose label is not known otherwise.
    keep_patient_ids
        Keep the PatientID and the UIDs of DICOM files instead of pseudonyms.

    Returns
    -------
    Samples with unique ids. A file of several images gives one for each frame, ``<id>#000``. A file whose header cannot
    be read gives one sample, so that reading it fails where failures are listed. Slices of a DICOM series come one
    after the other by their place in the patient, see :func:`anomalib_med.datasets.series.assembled`.

    Raises
    ------
    InputError
        No such path, no image in it, a table that is wrong (with its line), an image listed twice.
    ConfigError
        `patient_pattern` is not a regular expression with one group; `label` is neither 0 nor 1.
    """
    if label not in (None, 0, 1):
        raise ConfigError(f"label = {label}: 0 for normal or 1 for abnormal")
    pattern = _compiled(patient_pattern)
    samples = list(_samples(source, pattern, keep_patient_ids))
    if label is not None:
        samples = [s if s.label is not None else dataclasses.replace(s, label=label) for s in samples]
    _check_unique(samples)
    return assembled(samples)


def _samples(source: Source, pattern: re.Pattern[str] | None, keep_patient_ids: bool) -> Iterable[Sample]:
    """The samples of a source of any kind."""
    if isinstance(source, np.ndarray):
        return samples_from_array(source)
    if isinstance(source, str | Path):
        listed = _from_path(source)
    else:
        items = list(source)
        if not items:
            raise InputError("the list of images is empty: give at least one")
        samples = [item for item in items if isinstance(item, Sample)]
        arrays = [item for item in items if isinstance(item, np.ndarray)]
        paths = [item for item in items if isinstance(item, str | Path)]
        if len(samples) == len(items):
            return samples
        if len(arrays) == len(items):
            return samples_from_array(arrays)
        if len(paths) != len(items):
            kinds = ", ".join(sorted({type(item).__name__ for item in items}))
            raise InputError(f"a list of {kinds}: give only paths, only arrays or only samples")
        listed = _from_paths([Path(path).expanduser() for path in paths])
    return _expanded(listed, pattern, keep_patient_ids)


def _from_path(source: str | Path) -> list[_Listed]:
    """The files behind one path: a folder, a file, a table or a glob."""
    path = Path(source).expanduser()
    if path.is_dir():
        return _named(_walk(path), path, _empty(path))
    if path.suffix.lower() in TABLE_SUFFIXES and path.is_file():
        return _from_table(path)
    if path.exists():
        if not is_image(path):
            raise InputError(f"{path}: not an image ({FORMATS}), nor a folder or a CSV table of images")
        return [_Listed(path, path.name)]
    if not glob.has_magic(str(path)):
        raise InputError(f"{path}: no such file or folder: check the path for a typing error")
    matches = [Path(match) for match in glob.glob(str(path), recursive=True)]  # noqa: PTH207 - an absolute pattern
    if not matches:
        raise InputError(f"{path}: the pattern matches nothing: quote it, and check it with ls")
    found = {file for match in matches for file in (_walk(match) if match.is_dir() else _images([match]))}
    fixed = [part for part in path.parts[: next(i for i, p in enumerate(path.parts) if glob.has_magic(p))]]
    return _named(found, Path(*fixed), f"{path}: {len(matches)} matches, none of them an image ({FORMATS})")


def _from_paths(paths: list[Path]) -> list[_Listed]:
    """Files and folders in the order given, named below the folder they share."""
    absent = [path for path in paths if not path.exists()]
    if absent:
        raise InputError(f"{absent[0]}: no such file or folder ({len(absent)} of {len(paths)} in the list are missing)")
    absolute = [Path(os.path.abspath(path)) for path in paths]  # noqa: PTH100 - links are kept as they are named
    root = _shared_folder(absolute)
    listed = [
        _Listed(file, file.relative_to(root).as_posix())
        for path in absolute
        for file in (sorted(_walk(path), key=lambda f: _natural(f.as_posix())) if path.is_dir() else [path])
    ]
    if not listed:
        raise InputError(f"{paths[0]}: no image in the folders of the list ({FORMATS} are read)")
    return listed


def _shared_folder(paths: Iterable[Path]) -> Path:
    return Path(os.path.commonpath([path if path.is_dir() else path.parent for path in paths]))


def _named(files: Iterable[Path], root: Path, empty: str) -> list[_Listed]:
    """Files in natural order of their path below the root."""
    names = {file.relative_to(root).as_posix(): file for file in files}
    if not names:
        raise InputError(empty)
    return [_Listed(names[name], name) for name in sorted(names, key=_natural)]


def _natural(name: str) -> tuple[list[str | int], str]:
    """Numbers by value, and names that differ by leading zeros only still in one order."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def _walk(root: Path) -> Iterator[Path]:
    """Images at any depth. Links to folders are followed, each folder is entered once."""

    def fail(error: OSError) -> None:
        raise InputError(f"{error.filename}: the folder cannot be listed ({error.strerror}): check its permissions")

    entered: set[tuple[int, int]] = set()
    for name, folders, files in os.walk(root, onerror=fail, followlinks=True):
        folder = Path(name)
        stat = folder.stat()
        if (stat.st_dev, stat.st_ino) in entered:
            folders.clear()
            continue
        entered.add((stat.st_dev, stat.st_ino))
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f.lower() not in _IGNORED_FOLDERS)
        yield from _images(folder / file for file in files)


def _images(files: Iterable[Path]) -> Iterator[Path]:
    for file in files:
        if not file.name.startswith(".") and file.name.lower() not in _IGNORED_FILES and is_image(file):
            yield file


def _empty(folder: Path) -> str:
    if any(folder.iterdir()):
        return f"{folder}: no image in this folder or below it ({FORMATS} are read)"
    return f"{folder}: the folder is empty"


def _from_table(table: Path) -> list[_Listed]:
    """The rows of a table, with every file in it there."""
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
        listed = [_row(row, table, rows.line_num) for row in rows]
    except csv.Error as error:
        raise InputError(
            f"{table}, line {rows.line_num}: not a row of a CSV table ({error}): check the quotes"
        ) from error
    if not listed:
        raise InputError(f"{table}: the table has a header and no row: list at least one image")
    for what, files in (("file", [row.path for row in listed]), ("mask", [row.mask for row in listed if row.mask])):
        absent = [file for file in files if not file.is_file()]
        if absent:
            raise InputError(f"{table}: no such {what}: {absent[0]} ({len(absent)} of {len(files)} are missing)")
    return listed


def _row(row: Mapping[str, str | list[str] | None], table: Path, line: int) -> _Listed:
    """One row of a table; a cell that makes no sense is an error with its line."""
    if "" in row and isinstance(row[""], list):
        raise InputError(
            f"{table}, line {line}: more cells than the header has columns: quote cells with the delimiter"
        )
    cells = {name: cell.strip() for name, cell in row.items() if isinstance(cell, str)}
    if not cells.get("path"):
        raise InputError(f"{table}, line {line}: the path is empty")
    label, frame = cells.get("label", "").lower(), cells.get("frame", "")
    if label not in LABELS:
        raise InputError(f"{table}, line {line}: label {label!r} is not one of 0, 1, normal, abnormal, or empty")
    if frame and not re.fullmatch(r"[0-9]+(\.0)?", frame):
        raise InputError(f"{table}, line {line}: frame {frame!r} is not a whole number from 0")
    path = table.parent / Path(cells["path"]).expanduser()
    return _Listed(
        path=path,
        id=cells.get("id") or _below(path, table.parent),
        patient=cells.get("patient", ""),
        study=cells.get("study") or None,
        label=LABELS[label],
        mask=table.parent / Path(cells["mask"]).expanduser() if cells.get("mask") else None,
        frame=int(float(frame)) if frame else None,
        boxes=_boxes(cells.get("boxes", ""), table, line),
        area=table.parent / Path(cells["area"]).expanduser() if cells.get("area") else None,
        meta={name: cell for name, cell in cells.items() if name not in COLUMNS and name and cell},
    )


def _below(path: Path, root: Path) -> str:
    """The path below the root as posix text, or the whole path of a file that lies elsewhere."""
    normal = Path(os.path.normpath(path))
    folder = Path(os.path.normpath(root))
    return (normal.relative_to(folder) if normal.is_relative_to(folder) else normal).as_posix()


def _boxes(cell: str, table: Path, line: int) -> tuple[Box, ...]:
    try:
        return tuple(
            (float(x), float(y), float(width), float(height)) for x, y, width, height in json.loads(cell or "[]")
        )
    except (ValueError, TypeError) as error:
        raise InputError(f"{table}, line {line}: boxes {cell!r} is not JSON like [[x, y, width, height]]") from error


def _expanded(listed: list[_Listed], pattern: re.Pattern[str] | None, keep_patient_ids: bool) -> Iterator[Sample]:
    """One sample for each image of each file."""
    headers: dict[Path, HeaderInfo] = {}
    for item in listed:
        if item.path not in headers:
            headers[item.path] = _header(item.path, keep_patient_ids)
        info = headers[item.path]
        patient = item.patient or _matched(pattern, item.id) or info.patient or item.id
        known = {"modality": info.modality, "view": info.view, "sex": info.sex, "series": info.series}
        slices = item.path.name.lower().endswith(VOLUME_SUFFIXES) and (info.frames > 1 or item.frame is not None)
        sample = Sample(
            id=item.id,
            path=item.path,
            frame=item.frame,
            patient=patient,
            study=item.study or info.study or None,
            label=item.label,
            mask=item.mask,
            boxes=item.boxes,
            place=info.place if info.modality else None,
            volume=item.id if slices else "",
            area=item.area,
            meta={name: text for name, text in known.items() if text} | dict(item.meta),
        )
        frames: Iterable[int] = range(info.frames) if item.frame is None else (item.frame,)
        if info.frames == 1 and item.frame is None:
            yield sample
            continue
        width = max(3, len(str(info.frames - 1)))
        for frame in frames:
            yield dataclasses.replace(sample, id=f"{item.id}#{frame:0{width}d}", frame=frame)


def _header(path: Path, keep_patient_ids: bool) -> HeaderInfo:
    """The header, or that of one nameless image for a damaged file: reading it fails later, where it is listed."""
    try:
        return header(path, keep_patient_ids=keep_patient_ids)
    except ReadError:
        return HeaderInfo()


def _matched(pattern: re.Pattern[str] | None, name: str) -> str:
    found = pattern.search(name) if pattern else None
    if pattern is None or found is None:
        return ""
    return found["patient" if "patient" in pattern.groupindex else 1] or ""


def _compiled(pattern: str | None) -> re.Pattern[str] | None:
    if pattern is None:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"patient_pattern {pattern!r}: not a regular expression ({error})") from error
    if compiled.groups != 1 and "patient" not in compiled.groupindex:
        raise ConfigError(f"patient_pattern {pattern!r}: needs one group around the patient, for example ([0-9]+)_")
    return compiled


def _check_unique(samples: list[Sample]) -> None:
    """No image twice: neither an id nor a frame of a file."""
    keys: tuple[Callable[[Sample], object], ...] = (
        lambda sample: sample.id,
        lambda sample: sample.path and (os.path.normpath(sample.path), sample.frame),
    )
    for key in keys:
        seen: set[object] = set()
        for sample in samples:
            value = key(sample)
            if value is not None and value in seen:
                where = "" if sample.frame is None else f", frame {sample.frame}"
                raise InputError(f"{sample.path or sample.id}{where}: the image is listed twice: remove one of them")
            seen.add(value)
