"""All that is written of a bench: tables, pictures and the page."""

from collections.abc import Sequence
from pathlib import Path

from anomalib_med.bench.cells import Cell
from anomalib_med.bench.page import write_bench_report
from anomalib_med.bench.plots import figures, png
from anomalib_med.bench.results import write_tables
from anomalib_med.bench.runner import examples_folder
from anomalib_med.bench.summary import compare, rows_of
from anomalib_med.files import output_errors, write_atomic


def write_outputs(out: Path, cells: Sequence[Cell]) -> list[Path]:
    """Write results.csv, results.parquet, comparisons.csv, results.md, plots/ and bench.html.

    Parameters
    ----------
    out
        Folder of the bench.
    cells
        From :func:`.bench.run_bench`.

    Returns
    -------
    What was written.

    Raises
    ------
    OutputError
        Where a file cannot be written.
    """
    rows = rows_of(cells)
    comparisons = compare(rows)
    with output_errors(out):
        (out / "plots").mkdir(parents=True, exist_ok=True)
    written = write_tables(out, rows, comparisons)
    for dataset in dict.fromkeys(row.dataset for row in rows):
        for kind, figure in figures(rows, dataset).items():
            path = out / "plots" / f"{dataset}-{kind}.png"
            write_atomic(path, png(figure))
            written.append(path)
    examples = {(row.dataset, row.method): examples_folder(out, row.dataset, row.method) for row in rows}
    return [*written, write_bench_report(out, rows, comparisons, examples)]
