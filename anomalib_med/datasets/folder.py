"""Folders, globs, lists, tables and arrays to samples. No pixel is read, and no header of a PNG or JPEG."""

import contextlib
import dataclasses
import glob
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from anomalib_med.datasets.image_table import Listed, image_id, read_image_table
from anomalib_med.datasets.readers import FORMATS, HeaderInfo, header, is_image, samples_from_array
from anomalib_med.datasets.scans import assembled
from anomalib_med.errors import ConfigError, InputError, ReadError
from anomalib_med.records import Sample

Source = str | Path | np.ndarray | Sequence[str] | Sequence[Path] | Sequence[np.ndarray] | Sequence[Sample]

TABLE_SUFFIXES = (".csv", ".tsv")
VOLUME_SUFFIXES = (".nii", ".nii.gz", ".mhd", ".mha")

_IGNORED_FOLDERS = {"__macosx"}
_IGNORED_FILES = {"dicomdir", "thumbs.db"}


def discover(
    source: Source, *, patient_pattern: str | None = None, label: int | None = None, keep_patient_ids: bool = False
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
          height], ...]``), ``crop`` (JSON, ``[top, left, height, width]``), ``runs`` (run lengths, see
          :func:`anomalib_med.datasets.masks.decode_rle`), ``id`` and ``area`` (a mask of what is to be looked at, see
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
    after the other by their place in the patient, see :func:`anomalib_med.datasets.scans.assembled`.

    Raises
    ------
    InputError
        No such path, no image in it, a table that is wrong (with its line), an image listed twice.
    ConfigError
        `patient_pattern` is not a regular expression with one group; `label` is neither 0 nor 1.
    """
    if label not in (None, 0, 1):
        raise ConfigError(f"label = {label}: 0 for normal or 1 for abnormal")
    samples = list(_samples(source, _compiled(patient_pattern), keep_patient_ids))
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


def _from_path(source: str | Path) -> list[Listed]:
    """The files behind one path: a folder, a file, a table or a glob."""
    path = Path(source).expanduser()
    if path.is_dir():
        if listed := _named(_walk(path), path):
            return listed
        text = f"no image in this folder or below it ({FORMATS} are read)"
        raise InputError(f"{path}: {text if any(path.iterdir()) else 'the folder is empty'}")
    if path.suffix.lower() in TABLE_SUFFIXES and path.is_file():
        return read_image_table(path)
    if path.exists():
        if not is_image(path):
            raise InputError(f"{path}: not an image ({FORMATS}), nor a folder or a CSV table of images")
        return [(Sample(path.name, path), False)]
    if not glob.has_magic(str(path)):
        raise InputError(f"{path}: no such file or folder: check the path for a typing error")
    matches = [Path(match) for match in glob.glob(str(path), recursive=True)]  # noqa: PTH207 - an absolute pattern
    if not matches:
        raise InputError(f"{path}: the pattern matches nothing: quote it, and check it with ls")
    files = {file for match in matches for file in (_walk(match) if match.is_dir() else filter(_is_listed, [match]))}
    fixed = itertools.takewhile(lambda part: not glob.has_magic(part), path.parts)
    if listed := _named(files, Path(*fixed)):
        return listed
    raise InputError(f"{path}: {len(matches)} matches, none of them an image ({FORMATS})")


def _from_paths(paths: list[Path]) -> list[Listed]:
    """Files and folders in the order given, named below the folder they share."""
    absent = [path for path in paths if not path.exists()]
    if absent:
        raise InputError(f"{absent[0]}: no such file or folder ({len(absent)} of {len(paths)} in the list are missing)")
    absolute = [Path(os.path.abspath(path)) for path in paths]  # noqa: PTH100 - links are kept as they are named
    root = Path(os.path.commonpath([path if path.is_dir() else path.parent for path in absolute]))
    named = (_named(_walk(path) if path.is_dir() else [path], root) for path in absolute)
    listed = list(itertools.chain.from_iterable(named))
    if not listed:
        raise InputError(f"{paths[0]}: no image in the folders of the list ({FORMATS} are read)")
    return listed


def _named(files: Iterable[Path], root: Path) -> list[Listed]:
    """Files in natural order of their path below the root."""
    names = {file.relative_to(root).as_posix(): file for file in files}
    return [(Sample(name, names[name]), False) for name in sorted(names, key=_natural)]


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
        yield from filter(_is_listed, (folder / file for file in files))


def _is_listed(file: Path) -> bool:
    return not file.name.startswith(".") and file.name.lower() not in _IGNORED_FILES and is_image(file)


def _expanded(listed: list[Listed], pattern: re.Pattern[str] | None, keep_patient_ids: bool) -> Iterator[Sample]:
    """One sample for each image of each file."""
    headers: dict[Path, HeaderInfo] = {}
    for item, patient_is_known in listed:
        assert item.path is not None
        if item.path not in headers:
            headers[item.path] = HeaderInfo()  # of a damaged file; reading it fails later, where it is listed
            with contextlib.suppress(ReadError):
                headers[item.path] = header(item.path, keep_patient_ids=keep_patient_ids)
        info = headers[item.path]
        known = {"modality": info.modality, "view": info.view, "sex": info.sex, "series": info.series}
        many = info.frames > 1 or item.frame is not None
        is_slice = many and item.crop is None and item.path.name.lower().endswith(VOLUME_SUFFIXES)
        frames: Iterable[int | None] = range(info.frames) if info.frames != 1 and item.frame is None else (item.frame,)
        for frame in frames:
            yield dataclasses.replace(
                item,
                id=image_id(item.id, frame, item.crop, width=max(3, len(str(info.frames - 1)))),
                frame=frame,
                patient=item.patient if patient_is_known else _matched(pattern, item.id) or info.patient or item.id,
                study=item.study or info.study or None,
                place=info.place if info.modality else None,
                volume=item.id if is_slice else "",
                meta={name: text for name, text in known.items() if text} | dict(item.meta),
            )


def _matched(pattern: re.Pattern[str] | None, name: str) -> str:
    match = pattern.search(name) if pattern else None
    return (match["patient" if "patient" in match.re.groupindex else 1] or "") if match else ""


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
    seen: set[object] = set()
    for sample in samples:
        keys = {sample.id, (os.path.normpath(sample.path), sample.frame, sample.crop) if sample.path else sample.id}
        if keys & seen:
            where = "" if sample.frame is None else f", frame {sample.frame}"
            raise InputError(f"{sample.path or sample.id}{where}: the image is listed twice: remove one of them")
        seen |= keys
