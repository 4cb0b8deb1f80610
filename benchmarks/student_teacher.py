"""The student-teacher family on real data sets.

    python benchmarks/student_teacher.py ROOT -o OUT [-d NAME ...] [-m NAME ...] [--seeds 3] [--size 128]

Runs `anomed bench` with the settings of METHODS, which take about half a minute of one core each at 128 pixels, on the
data sets in ROOT: all normals learnt from, the last step of each. Finished cells are not run again. The tables are
OUT/results.md and OUT/results.csv. Then the tables of the cards are printed, from all cells in OUT: value and 95 %
interval by patient over all seeds, and the best of the trivial baselines.
"""

import argparse
import math
from collections.abc import Mapping
from pathlib import Path

from anomalib_med.cli.main import main as anomed
from anomalib_med.evaluation.cells import read_cell
from anomalib_med.evaluation.summary import Row, rows_of

# Steps that cost about the same time; what is not named is the default. 16 images a step, EfficientAD one.
METHODS = {
    "stfpm": "batch_size=16 steps=250",
    "mkd": "batch_size=16 steps=160",
    "rd4ad": "steps=400",
    "rdpp": "steps=150",
    "efficientad": "steps=350",
    "dinomaly": "blocks=4 steps=80",
}
DATASETS = ("zhanglab_dev", "covid_ct", "brats2013", "nih_rsna", "ct_lung_patches", "covid_cxr_lesions")
SHOWN = {"auroc": "AUROC", "ap": "AP", "pixel_auroc": "pixel AUROC", "aupro@0.3": "AUPRO to .3"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("-d", "--dataset", action="append")
    parser.add_argument("-m", "--model", action="append")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, default=128)
    options = parser.parse_args()
    words = ["bench", "--root", str(options.root), "-o", str(options.output), "--size", str(options.size)]
    words += ["--seeds", str(options.seeds), "--calibration", "0"]
    for name in options.dataset or DATASETS:
        words += ["-d", name]
    for key in options.model or METHODS:
        name, *settings = key.split()
        words += ["-m", " ".join([name, *(settings or METHODS[name].split())])]
    anomed(words)
    print_tables(options.output)


def print_tables(out: Path) -> None:
    """A table for each method: a row for each data set."""
    rows = rows_of([read_cell(path) for path in sorted(out.glob("cells/*/*/seed-*.json"))])
    trivial = [row for row in rows if row.baseline]
    for method in dict.fromkeys(row.method for row in rows if not row.baseline):
        print(
            f"\n{method}\n\n| data set | seeds | {' | '.join(SHOWN.values())} | trivial |\n|{'---|' * (len(SHOWN) + 3)}"
        )
        for row in sorted((r for r in rows if r.method == method), key=lambda r: DATASETS.index(r.dataset)):
            numbers = [number(row.numbers, key) for key in SHOWN]
            print(f"| `{row.dataset}` | {len(row.cells)} | {' | '.join(numbers)} | {best(trivial, row.dataset)} |")


def number(numbers: Mapping, key: str) -> str:
    """``.897 (.860 to .925) ± .002``."""
    if key not in numbers:
        return ""
    interval, sd = numbers[key].interval, numbers[key].spread.sd
    text = f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})".replace("0.", ".")
    return text if math.isnan(sd) else f"{text} ± {sd:.3f}".replace("± 0.", "± .")


def best(trivial: list[Row], dataset: str) -> str:
    """The highest of the trivial baselines, by image or else by pixel."""
    own = [row for row in trivial if row.dataset == dataset]
    key = next((key for key in ("auroc", "pixel_auroc") if any(key in row.numbers for row in own)), None)
    if key is None:
        return ""
    highest = max((row for row in own if key in row.numbers), key=lambda row: row.numbers[key].interval.value)
    value = f"{highest.numbers[key].interval.value:.3f}".replace("0.", ".")
    return f"{highest.method} {value}{' (pixel)' if key == 'pixel_auroc' else ''}"


if __name__ == "__main__":
    main()
