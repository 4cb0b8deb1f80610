"""bench.html: one self-contained page with the tables, the pictures and the maps of every method on the same images."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from anomalib_med.bench.plots import figures, png
from anomalib_med.bench.results import LEGEND, SHOWN, SHOWN_MAPS, number_text
from anomalib_med.bench.summary import ALPHA, COMPARED, Comparison, Row, best_of, given_away
from anomalib_med.files import write_atomic
from anomalib_med.version import __version__

BENCH_HTML = "bench.html"


@dataclass(frozen=True)
class _Line:
    method: str
    baseline: bool
    numbers: tuple[tuple[str, bool], ...]
    costs: tuple[str, ...]
    error: str


@dataclass(frozen=True)
class _Section:
    dataset: str
    about: dict[str, str]
    notes: tuple[str, ...]
    marked: str
    columns: tuple[str, ...]
    lines: tuple[_Line, ...]
    differences: tuple[tuple[str, tuple[str, ...]], ...]
    pictures: tuple[str, ...]
    examples: tuple[tuple[str, tuple[str, ...]], ...]


def write_bench_report(
    out: Path, rows: Sequence[Row], comparisons: Sequence[Comparison], examples: dict[tuple[str, str], Path]
) -> Path:
    """Write the page.

    Parameters
    ----------
    out
        Folder of the bench.
    rows, comparisons
        See :mod:`anomalib_med.bench.summary`.
    examples
        Folder with ``0.jpg`` and so on, by data set and method.

    Returns
    -------
    The file written.

    Raises
    ------
    OutputError
        Where it cannot be written.
    """
    sections = [_section(rows, comparisons, examples, d) for d in dict.fromkeys(row.dataset for row in rows)]
    first = next((cell for row in rows for cell in row.cells), None)
    machine = first.info.get("machine") if first else None
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("anomalib_med.bench"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("bench.html.j2").render(
        sections=sections,
        version=__version__,
        machine=machine if isinstance(machine, dict) else {},
        legend=LEGEND.replace("**", "").replace("*", ""),
    )
    write_atomic(out / BENCH_HTML, page.encode())
    return out / BENCH_HTML


def _section(
    rows: Sequence[Row], comparisons: Sequence[Comparison], examples: dict[tuple[str, str], Path], dataset: str
) -> _Section:
    chosen = [row for row in rows if row.dataset == dataset]
    best = {metric: best_of(rows, comparisons, dataset, metric) for metric in COMPARED}
    columns = [c for c in (*SHOWN, *SHOWN_MAPS) if any(c[0] in row.numbers for row in chosen)]
    names = [name for name, _ in columns]
    trivial = given_away(rows, dataset)
    info = next((c.info for row in chosen for c in row.cells), {})
    notes = info.get("notes")
    keys = ("title", "protocol", "split_hash", "train", "test_normal", "test_abnormal", "test_patients")
    return _Section(
        dataset,
        {key.replace("_", " "): str(info[key]) for key in (*keys, "selection_rule", "seen") if key in info},
        tuple(str(note) for note in notes) if isinstance(notes, list) else (),
        f"{trivial.method} alone has AUROC {trivial.numbers['auroc'].interval}" if trivial else "",
        tuple(title for _, title in columns),
        tuple(_line(row, names, best) for row in chosen),
        _differences([c for c in comparisons if c.dataset == dataset and c.adjusted <= ALPHA]),
        tuple(base64.b64encode(png(figure)).decode() for figure in figures(rows, dataset).values()),
        tuple(
            (row.method, pictures_of)
            for row in chosen
            if (pictures_of := _pictures(examples.get((dataset, row.method))))
        ),
    )


def _line(row: Row, names: Sequence[str], best: Mapping[str, set[str]]) -> _Line:
    numbers = tuple(
        (number_text(row.numbers[n]) if n in row.numbers else "-", row.method in best.get(n, ())) for n in names
    )
    costs = []
    for key, form in (("fit_s", "{:.1f} s"), ("images_per_s", "{:.1f}"), ("peak_mb", "{:.0f} MB")):
        measured = row.cells and all(key in c.info for c in row.cells)
        costs.append(form.format(row.mean_of(key)) if measured else "-")
    return _Line(row.method, row.baseline, numbers, tuple(costs), row.error)


def _differences(found: Sequence[Comparison]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """What is said of each metric, by its title."""
    titles = dict((*SHOWN, *SHOWN_MAPS))
    metrics = dict.fromkeys(c.metric for c in found)
    return tuple((titles[metric], tuple(_said(c) for c in found if c.metric == metric)) for metric in metrics)


def _said(c: Comparison) -> str:
    better, worse = (c.first, c.second) if c.difference.value > 0 else (c.second, c.first)
    low, high = sorted((abs(c.difference.low), abs(c.difference.high)))
    return (
        f"{better} above {worse} by {abs(c.difference.value):.3f} [{low:.3f}, {high:.3f}], p = {c.adjusted:.2g} (Holm)"
    )


def _pictures(folder: Path | None) -> tuple[str, ...]:
    if folder is None or not folder.is_dir():
        return ()
    files = sorted(folder.glob("*.jpg"), key=lambda p: int(p.stem))
    return tuple(base64.b64encode(path.read_bytes()).decode() for path in files)
