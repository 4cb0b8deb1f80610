"""bench.html: one self-contained page with the tables, the pictures and the maps of every method on the same images."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2

from anomalib_med.bench.cells import examples_folder
from anomalib_med.bench.sheet import LEGEND, TITLES, Sheet, sheets_of
from anomalib_med.bench.summary import ALPHA, Comparison, Row
from anomalib_med.version import __version__

ABOUT = ("title", "protocol", "split_hash", "train", "test_normal", "test_abnormal", "test_patients")


def bench_page(
    out: Path, rows: Sequence[Row], comparisons: Sequence[Comparison], pictures: Mapping[str, Sequence[bytes]]
) -> str:
    """The page as text; `out`, the folder of the bench, holds the example images, `pictures` are PNGs by data set."""
    sheets = sheets_of(rows, comparisons)
    machine = next((sheet.info for sheet in sheets if sheet.info), {}).get("machine")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("anomalib_med.bench"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("bench.html.j2").render(
        sections=[_section(out, sheet, comparisons, pictures[sheet.dataset]) for sheet in sheets],
        version=__version__,
        machine=machine if isinstance(machine, dict) else {},
        legend=LEGEND.replace("**", "").replace("*", ""),
    )


def _section(
    out: Path, sheet: Sheet, comparisons: Sequence[Comparison], pictures: Sequence[bytes]
) -> dict[str, object]:
    found = [c for c in comparisons if c.dataset == sheet.dataset and c.adjusted <= ALPHA]
    folders = {line.row.method: examples_folder(out, sheet.dataset, line.row.method) for line in sheet.lines}
    examples = {
        method: [_encoded(path.read_bytes()) for path in sorted(folder.glob("*.jpg"), key=lambda p: int(p.stem))]
        for method, folder in folders.items()
    }
    return {
        "sheet": sheet,
        "about": {k.replace("_", " "): sheet.info[k] for k in (*ABOUT, "selection_rule", "seen") if k in sheet.info},
        "differences": {
            TITLES[metric]: [_said(c) for c in found if c.metric == metric]
            for metric in dict.fromkeys(c.metric for c in found)
        },
        "pictures": [_encoded(picture) for picture in pictures],
        "examples": {method: drawn for method, drawn in examples.items() if drawn},
    }


def _said(c: Comparison) -> str:
    better, worse = (c.first, c.second) if c.difference.value > 0 else (c.second, c.first)
    low, high = sorted((abs(c.difference.low), abs(c.difference.high)))
    return (
        f"{better} above {worse} by {abs(c.difference.value):.3f} [{low:.3f}, {high:.3f}], p = {c.adjusted:.2g} (Holm)"
    )


def _encoded(picture: bytes) -> str:
    return base64.b64encode(picture).decode()
