"""Boxes and outlines of a card, attached to the rows of images."""

import json
from collections import defaultdict

from anomalib_med.datasets.layout.card import Boxes, Outlines
from anomalib_med.datasets.layout.rows import Row, check_columns, compiled, fields, fill, matches
from anomalib_med.datasets.layout.tree import Tree
from anomalib_med.errors import InputError
from anomalib_med.records import Box, Lesion


def boxes_by_key(card: Boxes, tree: Tree) -> dict[str, tuple[tuple[Box, ...], str]]:
    """Boxes and what they show, in words, for each key of the box table."""
    boxes: dict[str, list[Box]] = defaultdict(list)
    findings: dict[str, list[str]] = defaultdict(list)
    rows, table = tree.table(card.table)
    if rows:
        check_columns(rows, [*card.columns, *card.where, *fields(card.key), *fields(card.finding or "")], table)
    where = compiled(card.where)
    for row in rows:
        if not matches(row, where):
            continue
        key = fill(card.key, row)
        boxes[key] += [_box(numbers, card) for numbers in _numbers(row, card, str(table))]
        if card.finding and (finding := fill(card.finding, row)) and finding not in findings[key]:
            findings[key].append(finding)
    return {key: (tuple(found), "|".join(findings[key])) for key, found in boxes.items()}


def outlines_by_key(card: Outlines, tree: Tree) -> dict[str, Lesion]:
    """The lesion for each key of the table."""
    texts: dict[str, list[str]] = defaultdict(list)
    rows, table = tree.table(card.table)
    if rows:
        check_columns(rows, [card.column, *card.where, *fields(card.key)], table)
    where = compiled(card.where)
    for row in rows:
        text = row.get(card.column, "")
        if text not in ("", "-1", "[]") and matches(row, where):
            texts[fill(card.key, row)].append(text)
    return {key: _lesion(found, card) for key, found in texts.items()}


def _lesion(texts: list[str], card: Outlines) -> Lesion:
    if card.kind != "polygons":
        return Lesion(runs=tuple(texts), relative=card.kind == "rle_relative")
    outlines = [outline for text in texts for outline in json.loads(text)]
    return Lesion(polygons=tuple(tuple((float(x), float(y)) for x, y in outline) for outline in outlines))


def _numbers(row: Row, card: Boxes, table: str) -> list[list[float]]:
    cells = [row.get(column, "") for column in card.columns]
    if not any(cells):
        return []
    try:
        if len(cells) > 1:
            return [[float(cell) for cell in cells]]
        found = json.loads(cells[0])
        listed = found if found and isinstance(found[0], list) else [found] if found else []
        return [[float(number) for number in numbers] for numbers in listed]
    except (ValueError, TypeError) as error:
        raise InputError(f"{table}: box {' '.join(cells)!r} is not four numbers: copy the table again") from error


def _box(numbers: list[float], card: Boxes) -> Box:
    if len(numbers) != 4:
        raise InputError(f"box {numbers}: not four numbers")
    x, y, width, height = (number * card.scale for number in numbers)
    return (x, y, width - x, height - y) if card.corners else (x, y, width, height)
