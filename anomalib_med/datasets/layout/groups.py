"""The groups of a card to samples."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

from anomalib_med.datasets.layout.attach import boxes_by_key, outlines_by_key
from anomalib_med.datasets.layout.card import Card, Group
from anomalib_med.datasets.layout.rows import Row, check_columns, compiled, fields, fill, matches, matches_any
from anomalib_med.datasets.layout.slices import slice_samples
from anomalib_med.datasets.layout.tree import Tree
from anomalib_med.errors import ConfigError, InputError
from anomalib_med.records import Lesion, Sample


def group_rows(group: Group, tree: Tree) -> list[Row]:
    """One row for each image of a group that exists, with ``file.path`` and what is known of it."""
    rows = _listed(group, tree) if group.files else _from_table(group, tree)
    rows = [_with_pattern(row, group, tree) for row in rows]
    for key, keep, names in _listings(group, tree):
        rows = [row for row in rows if (fill(key, row) in names) == keep]
    rows.sort(key=lambda row: row["file.path"])
    low, high = (round(share * len(rows)) for share in group.order)
    first, last = group.part
    return [row for row in rows[low:high] if first <= patient_share(patient_of(row, group)) < last]


def patient_share(patient: str) -> float:
    """Where the hash of a patient falls in [0, 1): the same on every machine, and for ever."""
    return int.from_bytes(hashlib.sha256(patient.encode()).digest()[:8], "big") / 2**64


def patient_of(row: Row, group: Group) -> str:
    """Whose image a row is."""
    if group.patient is not None:
        return fill(group.patient, row)
    return row.get("patient") or row["file.path"]


def sample_of(row: Row, group: Group, tree: Tree) -> Sample:
    """The sample of one image; a mask that should be there and is not is noted as missing."""
    name = row["file.path"]
    meta = {key: fill(template, row) for key, template in group.meta.items()}
    mask = None
    if group.mask:
        wanted = tuple(fill(template, row) for template in group.mask)
        found = tree.find(wanted)
        mask = tree.root / found if found else None
        if not found and not group.mask_optional:
            tree.missing.append(f"no mask {' or '.join(str(tree.root / path) for path in wanted)} for {name}")
    return Sample(
        id=name,
        path=tree.root / name,
        patient=patient_of(row, group),
        study=fill(group.study, row) if group.study else None,
        label=group.label,
        mask=mask,
        lesion=Lesion(values=group.mask_values) if mask is not None and group.mask_values else None,
        meta={key: text for key, text in meta.items() if text},
    )


def _file_cells(name: str) -> Row:
    path = PurePosixPath(name)
    stem = path.name.removesuffix(".gz")
    return {
        "file.path": name,
        "file.name": path.name,
        "file.stem": stem.rpartition(".")[0] or stem,
        "file.folder": path.parent.as_posix(),
    }


def _listed(group: Group, tree: Tree) -> list[Row]:
    return [_file_cells(name) for name in tree.glob(group.files)]


def _from_table(group: Group, tree: Tree) -> list[Row]:
    rows, table = tree.table(group.table)
    for join in group.join:
        rows = _joined(rows, join.table, join.on, tree)
    if not rows:
        return []
    rows = [_with_cells(row, group.cells, table) for row in rows]
    templates = [*group.path, *group.meta.values(), *(text for text in (group.patient, group.study) if text)]
    named = set(re.compile(group.pattern).groupindex) if group.pattern else set()
    used = {*group.where, *group.where_any, *(name for template in templates for name in fields(template))} - named
    check_columns(rows, used, table)
    where, where_any = compiled(group.where), compiled(group.where_any)
    kept: dict[tuple[str, ...], Row] = {}
    refused: set[tuple[str, ...]] = set()
    for row in rows:
        wanted = tuple(fill(template, row) for template in group.path)
        if matches(row, where) and (not where_any or matches_any(row, where_any)):
            kept.setdefault(wanted, row)
        elif group.rows == "all":
            refused.add(wanted)
    if not kept:
        conditions = {**group.where, **group.where_any}
        tree.missing.append(f"no row of {table} in which {', '.join(f'{k} is {v}' for k, v in conditions.items())}")
    return list(_existing({key: row for key, row in kept.items() if key not in refused}, tree, table))


def _existing(wanted: dict[tuple[str, ...], Row], tree: Tree, table: Path) -> Iterator[Row]:
    absent = []
    for alternatives, row in wanted.items():
        found = tree.find(alternatives)
        if found is None:
            absent.append(alternatives)
        else:
            yield row | _file_cells(found)
    if absent:
        first = " or ".join(str(tree.root / path) for path in absent[0])
        tree.missing.append(f"{len(absent)} of {len(wanted)} images that {table.name} lists, the first is {first}")


def _joined(rows: list[Row], table: tuple[str, ...], on: tuple[str, ...], tree: Tree) -> list[Row]:
    others, path = tree.table(table)
    if not others or not rows:
        return []
    check_columns(others, on, path)
    check_columns(rows, on, tree.root)
    index = {tuple(other[column] for column in on): other for other in others}
    empty = dict.fromkeys(others[0], "")
    return [empty | index.get(tuple(row[column] for column in on), {}) | row for row in rows]


def _with_cells(row: Row, cells: dict[str, str], table: Path) -> Row:
    for column, text in cells.items():
        found = re.fullmatch(text, row.get(column, ""))
        if found is None:
            raise InputError(f"{table}: {column} is {row.get(column, '')!r}, expected like {text}: not the table meant")
        row = row | {key: part or "" for key, part in found.groupdict().items()}
    return row


def _with_pattern(row: Row, group: Group, tree: Tree) -> Row:
    if group.pattern is None:
        return row
    try:
        found = re.search(group.pattern, row["file.path"])
    except re.error as error:
        raise ConfigError(f"pattern {group.pattern!r}: not a regular expression ({error})") from error
    if found is None:
        raise InputError(
            f"{tree.root / row['file.path']}: not a name of this data set ({group.pattern}): move the file away"
        )
    return row | {key: text or "" for key, text in found.groupdict().items()}


def _listings(group: Group, tree: Tree) -> list[tuple[str, bool, frozenset[str]]]:
    return [
        (listed.key, listed.keep, frozenset(row["item"] for row in tree.table(listed.file)[0]))
        for listed in group.listed
    ]


def card_samples(card: Card, tree: Tree) -> tuple[list[Sample], list[Sample]]:
    """The samples to train on and those to test, each in the order of their ids."""
    boxes = boxes_by_key(card.boxes, tree) if card.boxes else {}
    outlines = outlines_by_key(card.outlines, tree) if card.outlines else {}
    sides: dict[str, list[Sample]] = {"train": [], "test": []}
    for group in card.group:
        for row in group_rows(group, tree):
            sample = sample_of(row, group, tree)
            if card.boxes and group.label == 1:
                found, finding = boxes.get(fill(card.boxes.image, row), ((), ""))
                meta = {**sample.meta, "finding": finding} if finding else sample.meta
                sample = replace(sample, boxes=found, meta=meta)
            if card.outlines and group.label == 1 and (lesion := outlines.get(fill(card.outlines.image, row))):
                sample = replace(sample, lesion=lesion)
            sides[group.split] += slice_samples(sample, group.slices, tree) if group.slices else [sample]
    train, test = (sorted(samples, key=lambda sample: sample.id) for samples in sides.values())
    return train, test
