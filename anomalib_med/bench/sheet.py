"""Sheet: the table of one data set as a person reads it, for Markdown and HTML alike; and the Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan

from anomalib_med.bench.cells import Json
from anomalib_med.bench.summary import ALPHA, COMPARED, Comparison, Row, best_of, given_away

TITLES = {
    "auroc": "AUROC",
    "ap": "AP",
    "sensitivity@specificity0.95": "Sens. at 95 % spec.",
    "sensitivity": "Sens. at threshold",
    "false_alarm_rate": "False alarms at threshold",
    "pixel_auroc": "Pixel AUROC",
    "pixel_ap": "Pixel AP",
    "aupro@0.3": "AUPRO .3",
    "aupro@0.05": "AUPRO .05",
    "best_dice (oracle)": "Best Dice (oracle)",
    "froc_cpm": "FROC CPM",
}
"""Metrics that are shown, in this order."""

COSTS = (("Fit", "fit_s", " s"), ("Images/s", "images_per_s", ""), ("Memory", "peak_mb", " MB"))

LEGEND = (
    "Value [95 % interval over patients] and standard deviation over seeds. **Bold**: the highest of a column and "
    "those not significantly below (by patient; AUROC by DeLong, the others by paired bootstrap; Holm over all "
    "comparisons in a metric, 5 %). *Italic*: trivial baselines. Oracle: the threshold was chosen on the test set. "
    "†: a trivial baseline scores on this set. -: not measured there."
)


@dataclass(frozen=True)
class Line:
    """One row as text: each number with whether it is among the best of its column, and the costs."""

    row: Row
    numbers: list[tuple[str, bool]]
    costs: list[str]


@dataclass(frozen=True)
class Sheet:
    """One data set."""

    dataset: str
    columns: list[str]
    """Titles of the numbers and of the costs."""
    lines: list[Line]
    """One for each method and trivial baseline."""
    differences: list[Comparison]
    """Those that are significant."""
    marked: str
    """What is said of a trivial baseline that scores on the set; "" where none does."""
    info: Json
    """Information of any finished cell; empty without one."""

    @property
    def rows(self) -> list[Row]:
        """The rows behind the lines."""
        return [line.row for line in self.lines]

    @property
    def notes(self) -> list[str]:
        """Known traps of the data set."""
        notes = self.info.get("notes")
        return list(map(str, notes)) if isinstance(notes, list) else []


def sheets_of(rows: Sequence[Row], comparisons: Sequence[Comparison]) -> list[Sheet]:
    """A sheet for each data set, in the order of the rows."""
    return [
        _sheet(dataset, [r for r in rows if r.dataset == dataset], [c for c in comparisons if c.dataset == dataset])
        for dataset in dict.fromkeys(row.dataset for row in rows)
    ]


def markdown(sheets: Sequence[Sheet]) -> str:
    """A table for each data set: every number with its interval, the best in bold, sets that are given away marked."""
    parts = []
    for sheet in sheets:
        parts += [f"### {sheet.dataset}{' †' if sheet.marked else ''}", ""]
        if i := sheet.info:
            parts.append(
                f"{i['title']}. Protocol `{i['protocol']}`, split `{str(i['split_hash'])[:12]}`: {i['train']} normals "
                f"to train on, {i['test_normal']} normal and {i['test_abnormal']} abnormal images of "
                f"{i['test_patients']} patients."
            )
        titles = ["Method", *sheet.columns]
        parts += ["", _joined(titles), _joined(["---"] * len(titles)), *map(_markdown_line, sheet.lines), ""]
        parts += [f"† {sheet.marked}."] if sheet.marked else []
        parts += [*(f"- {note}" for note in sheet.notes), ""]
    return "\n".join([*parts, LEGEND, ""])


def _sheet(dataset: str, rows: Sequence[Row], comparisons: Sequence[Comparison]) -> Sheet:
    differences = [c for c in comparisons if c.adjusted <= ALPHA]
    best = {metric: best_of(rows, differences, metric) for metric in COMPARED}
    metrics = [metric for metric in TITLES if any(metric in row.numbers for row in rows)]
    lines = [
        Line(
            row,
            [(str(row.numbers.get(m, "-")), m in row.numbers and row.method in best.get(m, ())) for m in metrics],
            [_cost(row.mean_of(key), unit) for _, key, unit in COSTS],
        )
        for row in rows
    ]
    trivial = given_away(rows)
    marked = f"{trivial.method} alone has AUROC {trivial.numbers['auroc'].interval}" if trivial else ""
    columns = [*(TITLES[metric] for metric in metrics), *(title for title, _, _ in COSTS)]
    info = next((cell.info for row in rows for cell in row.cells), {})
    return Sheet(dataset, columns, lines, differences, marked, info)


def _cost(value: float, unit: str) -> str:
    return "-" if isnan(value) else f"{value:.{1 if value < 100 else 0}f}{unit}"


def _markdown_line(line: Line) -> str:
    row = line.row
    name = f"*{row.method}*" if row.baseline else row.method
    if not row.cells:
        return _joined([name, f"failed: {row.error}", *["-"] * (len(line.numbers) + len(line.costs) - 1)])
    numbers = [f"**{text}**" if best else text for text, best in line.numbers]
    return _joined([name + (f" ({row.error})" if row.error else ""), *numbers, *line.costs])


def _joined(values: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(v.split()).replace("|", "\\|") for v in values) + " |"
