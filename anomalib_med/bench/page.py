"""bench.html: one self-contained page with the tables, the pictures and the maps of every method on the same images."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2

from anomalib_med.bench.cells import examples_folder
from anomalib_med.bench.sheet import LEGEND, TITLES, Sheet
from anomalib_med.bench.summary import Comparison
from anomalib_med.version import __version__

ABOUT = (
    "title", "protocol", "split_hash", "train", "test_normal", "test_abnormal", "test_patients", "selection_rule",
    "seen",
)  # fmt: skip


def bench_page(out: Path, sheets: Sequence[Sheet], pictures: Mapping[str, Sequence[bytes]]) -> str:
    """The page as text; `out`, the folder of the bench, holds the example images, `pictures` are PNGs by data set."""
    machine = next((sheet.info for sheet in sheets if sheet.info), {}).get("machine")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("anomalib_med.bench"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("bench.html.j2").render(
        sections=[_section(out, sheet, pictures[sheet.dataset]) for sheet in sheets],
        version=__version__,
        machine=machine if isinstance(machine, dict) else {},
        legend=LEGEND.replace("*", ""),
    )


def _section(out: Path, sheet: Sheet, pictures: Sequence[bytes]) -> dict[str, object]:
    examples = {
        row.method: sorted(examples_folder(out, sheet.dataset, row.method).glob("*.jpg"), key=lambda p: int(p.stem))
        for row in sheet.rows
    }
    metrics = dict.fromkeys(c.metric for c in sheet.differences)
    return {
        "sheet": sheet,
        "about": {key.replace("_", " "): sheet.info[key] for key in ABOUT if key in sheet.info},
        "differences": {TITLES[m]: [_said(c) for c in sheet.differences if c.metric == m] for m in metrics},
        "pictures": map(_encoded, pictures),
        "examples": {m: [_encoded(path.read_bytes()) for path in paths] for m, paths in examples.items() if paths},
    }


def _said(c: Comparison) -> str:
    better, worse = (c.first, c.second) if c.difference.value > 0 else (c.second, c.first)
    low, high = sorted((abs(c.difference.low), abs(c.difference.high)))
    value = abs(c.difference.value)
    return f"{better} above {worse} by {value:.3f} [{low:.3f}, {high:.3f}], p = {c.adjusted:.2g} (Holm)"


def _encoded(picture: bytes) -> str:
    return base64.b64encode(picture).decode()
