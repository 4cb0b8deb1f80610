"""The bench on the data sets of a folder, and the results table in README refreshed from it.

    python benchmarks/bench.py [--root FOLDER] [-o bench] [--weights FILE] [other options of `anomed bench`]

The folder is that of ANOMED_TEST_DATA by default. All named data sets that are found in it are run, unless -d names
some. Ends with the table between the markers in README.md, written from results.csv.
"""

import os
import sys
from pathlib import Path

from anomalib_med.bench.results import readme_table, replace_between_markers
from anomalib_med.cli.main import main as anomed
from anomalib_med.datasets.benchmarks import benchmark_names, open_benchmark
from anomalib_med.errors import AnomedError

README = Path(__file__).parent.parent / "README.md"


def main(arguments: list[str]) -> int:
    root = Path(arguments[arguments.index("--root") + 1] if "--root" in arguments else os.environ["ANOMED_TEST_DATA"])
    out = Path(arguments[arguments.index("-o") + 1] if "-o" in arguments else "bench")
    extra = [] if "-o" in arguments else ["-o", str(out)]
    if not {"-d", "--dataset"} & set(arguments):
        extra += [word for name in benchmark_names() if usable(name, root) for word in ("-d", name)]
    code = anomed(["bench", *arguments, *extra])
    if code in (0, 3):
        text = README.read_text(encoding="utf-8")
        README.write_text(replace_between_markers(text, readme_table(out / "results.csv")), encoding="utf-8")
        print(f"refreshed: {README.name}")
    return code


def usable(name: str, root: Path) -> bool:
    """Whether the set lies in the folder, with normals to train on and something to judge by."""
    try:
        benchmark = open_benchmark(name, root)
    except AnomedError:
        return False
    labels = {sample.label for sample in benchmark.test}
    return len(benchmark.train) > 1 and (labels == {0, 1} if "image" in benchmark.tasks else 1 in labels)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
