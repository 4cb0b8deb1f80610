"""Data sets that need code of their own: a script beside the card lists the images, as rows of a table.

A function of ``datasets/<name>/manifest.py`` gets the `Tree` of a data set, notes in `Tree.missing` what is not there,
and yields one row an image: ``split``, ``label``, and the columns of a table of images (`image_table.COLUMNS`), with
paths below the root. The script also runs alone and writes a table that ``anomed fit`` and ``anomed score`` read.
"""

import csv
import os
import runpy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import click

from anomalib_med.datasets.image_table import COLUMNS, image_id, listed_row
from anomalib_med.datasets.layout.card import Card, card_paths
from anomalib_med.datasets.layout.rows import Row
from anomalib_med.datasets.layout.tree import Tree
from anomalib_med.errors import AnomedError
from anomalib_med.records import Sample


def manifest_samples(card: Card, tree: Tree) -> Iterator[tuple[str, Sample]]:
    """Side of the split and sample of each image that the script of a card lists."""
    # Scripts come with the package: nothing in the folder of a data set is ever run.
    file, _, function = card.manifest.partition("#")
    path = card_paths()[card.name].parent / file
    script = runpy.run_path(str(path), run_name=f"manifest_of_{card.name}")
    for number, row in enumerate(script[function](tree), 1):
        split = row.pop("split")
        sample, _ = listed_row(row, tree.root, f"{path}, row {number}")
        yield split, replace(sample, id=image_id(sample.id, sample.frame, sample.crop))


def run_alone(*protocols: Callable[[Tree], Iterable[Row]]) -> None:
    """The command line of a script: write the table of one of its functions, by default the first."""
    names = {protocol.__name__: protocol for protocol in protocols}
    new_file = click.Path(dir_okay=False, path_type=Path)

    @click.command(help="List the images of the data set in the folder ROOT in a table.")
    @click.argument("root", type=click.Path(exists=True, file_okay=False, path_type=Path))
    @click.option("-o", "--out", type=new_file, default="manifest.csv", help="The table.")
    @click.option("-p", "--protocol", type=click.Choice(list(names)), default=next(iter(names)), help="What is listed.")
    def command(root: Path, out: Path, protocol: str) -> None:
        tree = Tree(root)
        try:
            rows = list(names[protocol](tree))
        except AnomedError as error:
            raise click.ClickException(str(error)) from error
        if tree.missing:
            raise click.ClickException("\n".join(tree.missing))
        for row in rows:
            row["path"] = Path(os.path.relpath(root / row["path"], out.parent)).as_posix()
        with out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["split", *COLUMNS])
            writer.writeheader()
            writer.writerows(rows)

    command()
