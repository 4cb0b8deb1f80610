"""Results: all that is written of a bench. Tables with one row a metric, a table to be read, pictures and the page."""

import math
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from anomalib_med.bench.cells import Cell
from anomalib_med.bench.page import bench_page
from anomalib_med.bench.plots import figures
from anomalib_med.bench.sheet import markdown, sheets_of
from anomalib_med.bench.summary import Row, compare, rows_of
from anomalib_med.files import output_errors, replacing, write_atomic
from anomalib_med.outputs.tables import Value, csv_record

COLUMNS = (
    "dataset", "protocol", "split_hash", "method", "baseline", "seed", "seeds", "metric", "value", "low", "high", "sd",
    "train", "test_normal", "test_abnormal", "test_patients", "selection_rule", "threshold_rule", "seen", "settings",
    "weights_sha256", "fit_s", "score_s", "images_per_s", "peak_mb", "peak_gpu_mb", "features_extracted",
    "anomalib_med", "torch", "processor", "gpu", "date", "error",
)  # fmt: skip
COSTS = ("fit_s", "score_s", "images_per_s", "peak_mb", "peak_gpu_mb", "features_extracted")
NESTED = {
    "torch": ("packages", "torch"),
    "weights_sha256": ("backbone", "sha256"),
    "processor": ("machine", "processor"),
    "gpu": ("machine", "gpu"),
}
"""Columns that stand one level down in what is known of a cell."""
REAL = ("value", "low", "high", "sd", *COSTS)
WHOLE = ("seeds", "train", "test_normal", "test_abnormal", "test_patients")
ALL_SEEDS = "all"


def write_outputs(out: Path, cells: Sequence[Cell]) -> list[Path]:
    """Write results.csv, results.parquet, comparisons.csv, results.md, plots/ and bench.html; returns their paths.

    `out` is the folder of the bench, `cells` what :func:`.runner.run_bench` returned.

    Raises
    ------
    OutputError
        A file cannot be written.
    """
    rows = rows_of(cells)
    comparisons = compare(rows)
    sheets = sheets_of(rows, comparisons)
    with output_errors(out):
        (out / "plots").mkdir(parents=True, exist_ok=True)
    written: list[Path] = []

    def write(name: str, *parts: bytes) -> None:
        write_atomic(out / name, *parts)
        written.append(out / name)

    records = tidy(rows)
    table = pa.table({c: [r[c] for r in records] for c in COLUMNS}, schema=_schema())
    write("results.csv", csv_record(COLUMNS), *(csv_record([r[c] for c in COLUMNS]) for r in records))
    written.append(out / "results.parquet")
    with output_errors(written[-1]), replacing(written[-1]) as temporary:
        pq.write_table(table, temporary)
    header = ("dataset", "first", "second", "metric", "difference", "low", "high", "p_value", "p_holm")
    pairs = [
        (c.dataset, c.first, c.second, c.metric, *vars(c.difference).values(), c.p_value, c.adjusted)
        for c in comparisons
    ]
    write("comparisons.csv", csv_record(header), *map(csv_record, pairs))
    write("results.md", markdown(sheets).encode())
    pictures = {sheet.dataset: figures(sheet.rows, sheet.dataset) for sheet in sheets}
    for dataset, drawn in pictures.items():
        for kind, picture in drawn.items():
            write(f"plots/{dataset}-{kind}.png", picture)
    write("bench.html", bench_page(out, sheets, {name: [*drawn.values()] for name, drawn in pictures.items()}).encode())
    return written


def tidy(rows: Sequence[Row]) -> list[dict[str, Value]]:
    """A record for each data set, method, seed and metric, and one over all seeds; a failure is a record too."""
    records: list[dict[str, Value]] = []
    for row in rows:
        for cell in row.cells:
            about = _about(cell) | {"seed": str(cell.seed), "seeds": 1}
            records += [{**about, "metric": name, **interval.known()} for name, interval in cell.metrics.items()]
        costs = {key: _real(row.mean_of(key)) for key in COSTS}
        for name, number in row.numbers.items():
            over = {"seed": ALL_SEEDS, "metric": name, "sd": _real(number.sd), "seeds": number.seeds}
            records.append({**_about(row.cells[0]), **over, **number.interval.known(), **costs})
        if row.error:
            blank: dict[str, Value] = dict.fromkeys(COLUMNS)
            records.append(blank | {"dataset": row.dataset, "method": row.method, "error": row.error})
    return records


def _about(cell: Cell) -> dict[str, Value]:
    """What stands in every record of a cell."""
    i = cell.info
    record: dict[str, Value] = dict.fromkeys(COLUMNS)
    record |= {key: value for key, value in i.items() if key in COLUMNS and isinstance(value, str | int | float)}
    record |= {"dataset": cell.dataset, "method": cell.method, "baseline": bool(i.get("baseline"))}
    nested = {key: value for key, value in i.items() if isinstance(value, dict)}
    record["settings"] = " ".join(f"{k}={v}" for k, v in nested.get("settings", {}).items())
    return record | {column: str(nested.get(key, {}).get(part, "")) for column, (key, part) in NESTED.items()}


def _real(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _schema() -> pa.Schema:
    kinds = dict.fromkeys(COLUMNS, pa.string()) | dict.fromkeys(REAL, pa.float64()) | dict.fromkeys(WHOLE, pa.int64())
    return pa.schema(list((kinds | {"baseline": pa.bool_()}).items()))
