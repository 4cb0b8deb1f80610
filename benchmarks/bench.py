"""The bench on the data sets of a folder, and the results table in README refreshed from it.

    python benchmarks/bench.py [--root FOLDER] [-o bench] [--weights FILE] [other options of `anomed bench`]

The folder is that of ANOMED_TEST_DATA by default. All named data sets that are found in it are run, unless -d names
some. Ends with the table between the markers in README.md, written from results.csv.
"""

import csv
import os
import sys
from pathlib import Path

from shared import TOP, write_between_markers

from anomalib_med.cli.main import main as anomed
from anomalib_med.datasets.benchmarks import benchmark_names, open_benchmark
from anomalib_med.errors import AnomedError
from anomalib_med.evaluation.intervals import Interval


def main(arguments: list[str]) -> int:
    root = Path(arguments[arguments.index("--root") + 1] if "--root" in arguments else os.environ["ANOMED_TEST_DATA"])
    out = Path(arguments[arguments.index("-o") + 1] if "-o" in arguments else "bench")
    extra = [] if "-o" in arguments else ["-o", str(out)]
    if not {"-d", "--dataset"} & set(arguments):
        extra += [word for name in benchmark_names() if usable(name, root) for word in ("-d", name)]
    code = anomed(["bench", *arguments, *extra])
    if code in (0, 3):
        write_between_markers(TOP / "README.md", readme_table(out / "results.csv"))
        print("refreshed: README.md")
    return code


def usable(name: str, root: Path) -> bool:
    """Whether the set lies in the folder, with normals to train on and something to judge by."""
    try:
        benchmark = open_benchmark(name, root)
    except AnomedError:
        return False
    labels = {sample.label for sample in benchmark.test}
    return len(benchmark.train) > 1 and (labels == {0, 1} if "image" in benchmark.tasks else 1 in labels)


def readme_table(results: Path) -> str:
    """Two short Markdown tables from results.csv, image AUROC and pixel AP: a row a method, a column a data set.

    Over all seeds. The first row is the best trivial baseline of each data set.
    """
    with results.open(encoding="utf-8", newline="") as handle:
        records = [r for r in csv.DictReader(handle) if r["seed"] == "all"]
    titles = (("auroc", "Image AUROC"), ("pixel_ap", "Pixel AP"))
    chosen = [(title, [r for r in records if r["metric"] == metric]) for metric, title in titles]
    return "\n\n".join(pivot(found, title) for title, found in chosen if found)


def pivot(records: list[dict[str, str]], title: str) -> str:
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
    return "\n".join(f"| {' | '.join(row)} |" for row in ([title, *sets], ["---"] * (len(sets) + 1), *rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
