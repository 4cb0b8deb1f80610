"""The images of a card to samples: groups of files or rows of tables, or a manifest, with the marks of lesions."""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

from anomalib_med.datasets.layout.card import Card, Group, Join, Marks
from anomalib_med.datasets.layout.manifest import manifest_samples
from anomalib_med.datasets.layout.rows import Condition, Row, check_columns, fields, fill
from anomalib_med.datasets.layout.slices import slice_samples
from anomalib_med.datasets.layout.tree import Tree
from anomalib_med.errors import InputError
from anomalib_med.records import Box, Lesion, Sample


def card_samples(card: Card, tree: Tree) -> tuple[list[Sample], list[Sample]]:
    """The samples to train on and those to test, each in the order of their ids."""
    sides: dict[str, list[Sample]] = {"train": [], "test": []}
    marks = [(kind, _rows_by_key(kind, tree)) for kind in card.marks]
    for group in card.group:
        for row in _group_rows(group, tree):
            sample = _sample(row, group, tree)
            for kind, marked in marks if group.label == 1 else ():
                sample = _with_marks(sample, kind, marked.get(fill(kind.image, row), []))
            sides[group.split] += slice_samples(sample, group.slices, tree) if group.slices else [sample]
    for split, sample in manifest_samples(card, tree) if card.manifest else ():
        sides[split].append(sample)
    train, test = (sorted(samples, key=lambda sample: sample.id) for samples in sides.values())
    return train, test


def patient_share(patient: str) -> float:
    """Where the hash of a patient falls in [0, 1): the same on every machine, and for ever."""
    return int.from_bytes(hashlib.sha256(patient.encode()).digest()[:8], "big") / 2**64


def _group_rows(group: Group, tree: Tree) -> list[Row]:
    """One row for each image of a group that exists, with ``file.path`` and what is known of it."""
    rows = [_file_cells(name) for name in tree.glob(group.files)] if group.files else _table_rows(group, tree)
    rows = [_with_pattern(row, group, tree) for row in rows]
    rows.sort(key=lambda row: row["file.path"])
    low, high = (round(share * len(rows)) for share in group.order)
    first, last = group.part
    return [row for row in rows[low:high] if first <= patient_share(_patient(row, group)) < last]


def _patient(row: Row, group: Group) -> str:
    return row.get("patient") or row["file.path"] if group.patient is None else fill(group.patient, row)


def _sample(row: Row, group: Group, tree: Tree) -> Sample:
    """The sample of one image; a mask that should be there and is not is noted as missing."""
    name = row["file.path"]
    meta = {key: fill(template, row) for key, template in group.meta.items()}
    wanted = tuple(fill(template, row) for template in group.mask)
    mask = tree.find(wanted)
    if wanted and not mask and "" not in wanted:
        tree.missing.append(f"no mask {tree.named(wanted)} for {name}")
    return Sample(
        id=name,
        path=tree.root / name,
        patient=_patient(row, group),
        study=row.get("study") or None,
        label=group.label,
        mask=tree.root / mask if mask else None,
        meta={key: text for key, text in meta.items() if text},
    )


def _file_cells(name: str) -> Row:
    path = PurePosixPath(name)
    stem = path.name.removesuffix(".gz")
    cells = {"file.path": name, "file.name": path.name, "file.folder": path.parent.as_posix()}
    return cells | {"file.stem": stem.rpartition(".")[0] or stem}


def _with_pattern(row: Row, group: Group, tree: Tree) -> Row:
    if group.pattern is None:
        return row
    if match := re.search(group.pattern, row["file.path"]):
        return row | match.groupdict("")
    file = tree.root / row["file.path"]
    raise InputError(f"{file}: not a name of this data set ({group.pattern}): move the file away")


def _table_rows(group: Group, tree: Tree) -> list[Row]:
    rows, table = tree.table(group.table)
    for join in group.join:
        rows = _joined(rows, join, table, tree)
    if not rows:
        return []
    where = Condition(group.where)
    used = where.columns.union(*map(fields, [*group.path, *group.meta.values(), group.patient or ""]))
    check_columns(rows, used - where.groups - set(re.compile(group.pattern or "").groupindex), table)
    kept: dict[tuple[str, ...], Row] = {}
    for row in where.matched(rows):
        kept.setdefault(tuple(fill(template, row) for template in group.path), row)
    if not kept:
        tree.missing.append(f"no row of {table} in which {where.text}")
    files = {wanted: tree.find(wanted) for wanted in kept}
    tree.note_absent([wanted for wanted, file in files.items() if file is None], len(kept), "images", table)
    return [kept[wanted] | _file_cells(file) for wanted, file in files.items() if file is not None]


def _joined(rows: list[Row], join: Join, table: Path, tree: Tree) -> list[Row]:
    where, partner = Condition(join.where), join.partner or join.key
    others, _ = tree.table(join.table, where.columns | fields(partner))
    if not others:
        return []
    check_columns(rows, fields(join.key), table)
    partners = {fill(partner, other): other for other in where.matched(others)}
    if not join.keep:
        return [row for row in rows if fill(join.key, row) not in partners]
    return [partners[key] | row for row in rows if (key := fill(join.key, row)) in partners]


def _rows_by_key(marks: Marks, tree: Tree) -> dict[str, list[Row]]:
    where = Condition(marks.where)
    used = {*marks.columns, *where.columns, *fields(marks.key), *fields(marks.finding or "")}
    by_key: dict[str, list[Row]] = defaultdict(list)
    for row in where.matched(tree.table(marks.table, used)[0]):
        by_key[fill(marks.key, row)].append(row)
    return by_key


def _with_marks(sample: Sample, marks: Marks, rows: list[Row]) -> Sample:
    """A sample with the boxes, run lengths or outlines of its rows."""
    findings = dict.fromkeys(fill(marks.finding, row) for row in rows) if marks.finding else {}
    finding = "|".join(text for text in findings if text)
    meta = {**sample.meta, "finding": finding} if finding else sample.meta
    cells = [[row.get(column, "") for column in marks.columns] for row in rows]
    if marks.kind in ("boxes", "corners"):
        return replace(sample, meta=meta, boxes=tuple(box for texts in cells for box in _boxes(texts, marks)))
    outlines = [texts[0] for texts in cells if texts[0] not in ("", "-1", "[]")]
    if not outlines:
        return sample
    if marks.kind != "polygons":
        return replace(sample, meta=meta, lesion=Lesion(runs=tuple(outlines), relative=marks.kind == "rle_relative"))
    polygons = [polygon for text in outlines for polygon in json.loads(text)]
    points = tuple(tuple((float(x), float(y)) for x, y in polygon) for polygon in polygons)
    return replace(sample, meta=meta, lesion=Lesion(polygons=points))


def _boxes(cells: list[str], marks: Marks) -> Iterator[Box]:
    """The boxes of one row."""
    try:
        stated = cells if len(cells) > 1 else json.loads(cells[0] or "[]")
        boxes = stated if stated and isinstance(stated[0], list) else [stated] if stated and any(cells) else []
        for box in boxes:
            x, y, width, height = (float(number) * marks.scale for number in box)
            yield (x, y, width - x, height - y) if marks.kind == "corners" else (x, y, width, height)
    except (ValueError, TypeError) as error:
        text = " ".join(cells)
        raise InputError(f"{marks.table[0]}: box {text!r} is not four numbers: copy the table again") from error
