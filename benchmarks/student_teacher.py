"""The student-teacher family on real data sets.

    python benchmarks/student_teacher.py ROOT -o OUT [-d NAME ...] [-m NAME ...] [--seeds 3] [--size 128]

Runs `anomed bench` with the settings of METHODS, which take about half a minute of one core each at 128 pixels, on the
data sets in ROOT: all normals learnt from, the last step of each. Finished cells are not run again. The tables are
OUT/results.md and OUT/results.csv.
"""

import argparse
from pathlib import Path

from anomalib_med.cli.main import main as anomed

# Steps that cost about the same time; what is not named is the default. 16 images a step, EfficientAD one.
METHODS = {
    "stfpm": "batch_size=16 steps=250",
    "mkd": "batch_size=16 steps=160",
    "rd4ad": "steps=400",
    "rdpp": "steps=150",
    "efficientad": "steps=350",
    "dinomaly": "blocks=4 steps=80",
}
IMAGE_SETS = ("zhanglab_dev", "covid_ct")


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
    for name in options.dataset or IMAGE_SETS:
        words += ["-d", name]
    for key in options.model or METHODS:
        name, *settings = key.split()
        words += ["-m", " ".join([name, *(settings or METHODS[name].split())])]
    anomed(words)


if __name__ == "__main__":
    main()
