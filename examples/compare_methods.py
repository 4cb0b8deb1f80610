"""Two detectors on generated chest phantoms: table, significance, page.

python examples/compare_methods.py [FOLDER]
"""

import argparse
from pathlib import Path

from anomalib_med.bench.plan import Plan, methods_of
from anomalib_med.bench.results import write_outputs
from anomalib_med.bench.runner import run_bench
from anomalib_med.bench.summary import compare, rows_of
from anomalib_med.phantoms import write_chest_dataset
from anomalib_med.preprocessing import Preprocessing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("demo/compare"), help="for all that is written")
    parser.add_argument("--train", type=int, default=40, help="normal images to fit on; half are held out")
    parser.add_argument("--test", type=int, default=12, help="test images of either kind")
    parser.add_argument("--size", type=int, default=128, help="side of the model input")
    options = parser.parse_args()
    data = options.folder / "data"
    write_chest_dataset(data, train=options.train, normal=options.test, abnormal=options.test)

    # Both take their features from one pass of the backbone, kept in the feature cache.
    methods = methods_of(["patchcore", "spade"], {})
    plan = Plan(
        root=data,
        out=options.folder / "bench",
        datasets=("phantoms",),
        methods=methods,
        seeds=1,
        preprocessing=Preprocessing(size=options.size),
        calibration=0.5,  # a false-alarm rate of 5 % needs 19 held-out patients
    )
    cells = run_bench(plan, say=print)  # run it again: every finished cell is taken from its file

    rows = rows_of(cells)
    for row in rows:
        kind = "baseline" if row.baseline else "detector"
        print(f"{row.method:<26} {kind:<9} AUROC {row.numbers['auroc'].interval}")
    for c in compare(rows):
        print(f"{c.metric}: {c.first} minus {c.second}: {c.difference}, p = {c.adjusted:.3f}")
    print("page:", write_outputs(plan.out, cells)[-1])


if __name__ == "__main__":
    main()
