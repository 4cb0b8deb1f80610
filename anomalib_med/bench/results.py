"""The tables of a bench: results.csv and results.parquet, one row a metric, and results.md to be read."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from anomalib_med.bench.cells import Cell
from anomalib_med.bench.summary import COMPARED, Comparison, Number, Row, best_of, given_away
from anomalib_med.errors import OutputError
from anomalib_med.evaluation.intervals import Interval
from anomalib_med.files import output_errors, replace_with, write_atomic
from anomalib_med.outputs.tables import Value, csv_record

COLUMNS = (
    "dataset", "protocol", "split_hash", "method", "baseline", "seed", "seeds", "metric", "value", "low", "high", "sd",
    "train", "test_normal", "test_abnormal", "test_patients", "selection_rule", "threshold_rule", "seen", "settings",
    "weights_sha256", "fit_s", "score_s", "images_per_s", "peak_mb", "peak_gpu_mb", "features_extracted",
    "anomalib_med", "torch", "processor", "gpu", "date", "error",
)  # fmt: skip
ALL_SEEDS = "all"
MARKERS = ("<!-- bench -->", "<!-- /bench -->")

SHOWN = (
    ("auroc", "AUROC"),
    ("ap", "AP"),
    ("sensitivity@specificity0.95", "Sens. at 95 % spec."),
    ("sensitivity", "Sens. at threshold"),
    ("false_alarm_rate", "False alarms at threshold"),
)
SHOWN_MAPS = (
    ("pixel_auroc", "Pixel AUROC"),
    ("pixel_ap", "Pixel AP"),
    ("aupro@0.3", "AUPRO .3"),
    ("aupro@0.05", "AUPRO .05"),
    ("best_dice (oracle)", "Best Dice (oracle)"),
    ("froc_cpm", "FROC CPM"),
)


def tidy(rows: Sequence[Row]) -> list[dict[str, Value]]:
    """A record for each data set, method, seed and metric, and one over all seeds; a failure is a record too."""
    records: list[dict[str, Value]] = []
    for row in rows:
        for cell in row.cells:
            for name, m in cell.metrics.items():
                numbers: dict[str, Value] = {"value": _real(m.value), "low": _real(m.low), "high": _real(m.high)}
                records.append(_about(cell) | {"seed": str(cell.seed), "seeds": 1, "metric": name} | numbers)
        for name, number in row.numbers.items():
            records.append(_about(row.cells[0]) | {"seed": ALL_SEEDS, "metric": name} | _over_seeds(row, number))
        if row.error:
            failed: dict[str, Value] = {"dataset": row.dataset, "method": row.method, "error": row.error}
            records.append(dict.fromkeys(COLUMNS) | failed)
    return records


def write_tables(out: Path, rows: Sequence[Row], comparisons: Sequence[Comparison]) -> list[Path]:
    """Write results.csv, results.parquet, comparisons.csv and results.md.

    Raises
    ------
    OutputError
        Where a file cannot be written.
    """
    records = tidy(rows)
    table_file, parquet, markdown_file = out / "results.csv", out / "results.parquet", out / "results.md"
    write_atomic(table_file, csv_record(COLUMNS), *(csv_record([r[c] for c in COLUMNS]) for r in records))
    table = pa.table({c: [r[c] for r in records] for c in COLUMNS}, schema=_schema())
    replace_with(parquet, lambda path: pq.write_table(table, path))
    pairs = out / "comparisons.csv"
    header = ("dataset", "first", "second", "metric", "difference", "low", "high", "p_value", "p_holm")
    lines = [
        csv_record((c.dataset, c.first, c.second, c.metric, d.value, d.low, d.high, c.p_value, c.adjusted))
        for c in comparisons
        for d in (c.difference,)
    ]
    write_atomic(pairs, csv_record(header), *lines)
    write_atomic(markdown_file, markdown(rows, comparisons).encode())
    return [table_file, parquet, pairs, markdown_file]


def markdown(rows: Sequence[Row], comparisons: Sequence[Comparison]) -> str:
    """A table for each data set: every number with its interval, the best in bold, sets that are given away marked."""
    parts = []
    for dataset in dict.fromkeys(row.dataset for row in rows):
        chosen = [row for row in rows if row.dataset == dataset]
        best = {metric: best_of(rows, comparisons, dataset, metric) for metric in COMPARED}
        parts += [f"### {dataset}{' †' if given_away(rows, dataset) else ''}", "", *_heading(chosen), ""]
        columns = [c for c in (*SHOWN, *SHOWN_MAPS) if any(c[0] in row.numbers for row in chosen)]
        titles = ["Method", *(title for _, title in columns), "Fit", "Images/s", "Memory"]
        parts += [_line(titles), _line(["---"] * len(titles))]
        parts += [_line(_cells(row, [n for n, _ in columns], best)) for row in chosen]
        parts += ["", *_footnotes(rows, chosen, dataset), ""]
    return "\n".join([*parts, LEGEND, ""])


LEGEND = (
    "Value [95 % interval over patients] and standard deviation over seeds. **Bold**: the highest of a column and "
    "those not significantly below (by patient; AUROC by DeLong, the others by paired bootstrap; Holm over all "
    "comparisons in a metric, 5 %). *Italic*: trivial baselines. Oracle: the threshold was chosen on the test set. "
    "†: a trivial baseline scores on this set. -: not measured there."
)


def number_text(number: Number) -> str:
    """``0.876 [0.840, 0.910] ± 0.004``; without deviation for one seed."""
    interval, sd = number.interval, number.spread.sd
    return str(interval) if math.isnan(sd) else f"{interval} ± {sd:.3f}"


def readme_table(results: Path) -> str:
    """Two short Markdown tables from results.csv, image AUROC and pixel AP: a row a method, a column a data set.

    Over all seeds. The first row is the best trivial baseline of each data set.
    """
    with output_errors(results), results.open(encoding="utf-8", newline="") as handle:
        records = [r for r in csv.DictReader(handle) if r["seed"] == ALL_SEEDS]
    return "\n\n".join(
        _pivot(chosen, title)
        for metric, title in (("auroc", "Image AUROC"), ("pixel_ap", "Pixel AP"))
        if (chosen := [r for r in records if r["metric"] == metric])
    )


def _pivot(records: Sequence[Mapping[str, str]], title: str) -> str:
    """Methods by data sets."""
    numbers: dict[str, dict[str, str]] = {}
    best: dict[str, tuple[float, str]] = {}  # of the trivial baselines: value, and what is written
    for r in records:
        interval = Interval(*(float(r[key] or "nan") for key in ("value", "low", "high")))
        if r["baseline"] != "true":
            numbers.setdefault(r["method"], {})[r["dataset"]] = str(interval)
        elif interval.value > best.get(r["dataset"], (-1.0, ""))[0]:
            best[r["dataset"]] = (interval.value, f"*{interval} ({r['method']})*")
    sets = list(dict.fromkeys(r["dataset"] for r in records))
    rows = [["*best trivial baseline*", *(best.get(name, (0, "-"))[1] for name in sets)]]
    rows += [[method, *(found.get(name, "-") for name in sets)] for method, found in numbers.items()]
    return "\n".join(_line(row) for row in ([title, *sets], ["---"] * (len(sets) + 1), *rows))


def replace_between_markers(text: str, table: str) -> str:
    """A document with the table between its markers ``<!-- bench -->`` and ``<!-- /bench -->``.

    Raises
    ------
    OutputError
        Where the markers are not there.
    """
    before, start, rest = text.partition(MARKERS[0])
    _, end, after = rest.partition(MARKERS[1])
    if not (start and end):
        raise OutputError(f"the document has no markers {MARKERS[0]} and {MARKERS[1]} to write the table between")
    return f"{before}{start}\n{table}\n{end}{after}"


def _heading(chosen: Sequence[Row]) -> list[str]:
    cell = next((c for row in chosen for c in row.cells), None)
    if cell is None:
        return []
    i = cell.info
    return [
        f"{i['title']}. Protocol `{i['protocol']}`, split `{str(i['split_hash'])[:12]}`: {i['train']} normals to train "
        f"on, {i['test_normal']} normal and {i['test_abnormal']} abnormal images of {i['test_patients']} patients."
    ]


def _footnotes(rows: Sequence[Row], chosen: Sequence[Row], dataset: str) -> list[str]:
    lines = []
    trivial = given_away(rows, dataset)
    if trivial:
        lines.append(f"† {trivial.method} alone has AUROC {trivial.numbers['auroc'].interval}.")
    cell = next((c for row in chosen for c in row.cells), None)
    notes = cell.info.get("notes") if cell else None
    lines += [f"- {note}" for note in (notes if isinstance(notes, list) else [])]
    return lines


def _cells(row: Row, names: Sequence[str], best: Mapping[str, set[str]]) -> list[str]:
    name = f"*{row.method}*" if row.baseline else row.method
    if not row.cells:
        return [name, f"failed: {row.error}", *["-"] * (len(names) + 2)]
    numbers = []
    for metric in names:
        text = number_text(row.numbers[metric]) if metric in row.numbers else "-"
        numbers.append(f"**{text}**" if row.method in best.get(metric, ()) else text)
    costs = [_cost(row, "fit_s", " s"), _cost(row, "images_per_s", ""), _cost(row, "peak_mb", " MB")]
    return [name + (f" ({row.error})" if row.error else ""), *numbers, *costs]


def _cost(row: Row, key: str, unit: str) -> str:
    value = row.mean_of(key) if all(key in c.info for c in row.cells) else float("nan")
    return "-" if math.isnan(value) else f"{value:.1f}{unit}" if value < 100 else f"{value:.0f}{unit}"


def _line(values: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(v.split()).replace("|", "\\|") for v in values) + " |"


def _about(cell: Cell) -> dict[str, Value]:
    """What stands in every record of a cell."""
    i = cell.info
    versions, backbone, on = (i.get(key) for key in ("packages", "backbone", "machine"))
    settings = i.get("settings")
    record: dict[str, Value] = dict.fromkeys(COLUMNS)
    record |= {key: value for key, value in i.items() if key in COLUMNS and isinstance(value, str | int | float)}
    record |= {"dataset": cell.dataset, "method": cell.method, "baseline": bool(i.get("baseline"))}
    record["settings"] = " ".join(f"{k}={v}" for k, v in settings.items()) if isinstance(settings, dict) else ""
    record["torch"] = str(versions.get("torch", "")) if isinstance(versions, dict) else ""
    record["weights_sha256"] = str(backbone.get("sha256", "")) if isinstance(backbone, dict) else ""
    if isinstance(on, dict):
        record |= {"processor": str(on.get("processor", "")), "gpu": str(on.get("gpu", ""))}
    return record


def _over_seeds(row: Row, number: Number) -> dict[str, Value]:
    m = number.interval
    costs: dict[str, Value] = {
        key: _real(row.mean_of(key)) if all(key in c.info for c in row.cells) else None
        for key in ("fit_s", "score_s", "images_per_s", "peak_mb", "peak_gpu_mb", "features_extracted")
    }
    values: dict[str, Value] = {"value": _real(m.value), "low": _real(m.low), "high": _real(m.high)}
    return values | {"sd": _real(number.spread.sd), "seeds": number.spread.seeds} | costs


def _real(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _schema() -> pa.Schema:
    whole = {"seeds", "train", "test_normal", "test_abnormal", "test_patients"}
    real = {"value", "low", "high", "sd", "fit_s", "score_s", "images_per_s", "peak_mb", "peak_gpu_mb"}
    real |= {"features_extracted"}
    kinds = {c: pa.int64() if c in whole else pa.float64() if c in real else pa.string() for c in COLUMNS}
    return pa.schema([(c, pa.bool_() if c == "baseline" else kinds[c]) for c in COLUMNS])
