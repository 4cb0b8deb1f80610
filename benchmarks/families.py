"""The trained families on real data sets: the tables of docs/FAMILY.md and of the cards.

    python benchmarks/families.py run ROOT -o OUT [-f FAMILY ...] [-d NAME ...] [-m METHOD ...] [--seeds 3]
    python benchmarks/families.py write -o OUT
    python benchmarks/families.py quick ROOT -o OUT [-d NAME ...]

``run`` is `anomed bench` with the settings of METHODS, about half a minute of one idle core each: all normals learnt
from, last step. Finished cells are not run again, so families, data sets and more seeds can be added to one OUT later,
also by several processes at once. ``write`` puts what lies in OUT between the markers of docs/FAMILY.md, a table a data
set, and of models/NAME/README.md: value and 95 % interval by patient over the seeds, their standard deviation and
number, and the best of the trivial baselines. ``quick`` runs every detector, those without training too, on every set:
60 normals, 40 images, 64 pixels and 20 steps of 4 images, two seconds each; what it shows is that all of them run.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from shared import TOP, command_line, write_between_markers

from anomalib_med.bench.cells import read_cell
from anomalib_med.bench.plan import untrained
from anomalib_med.bench.summary import Row, rows_of
from anomalib_med.cli.main import main as anomed

# What is not named is the default. Networks are cut where the default ones would take a minute a step; learning rates
# are those with which the tests find lesions in phantoms.
METHODS = {
    "reconstruction": {
        "autoencoder ssim": "size=64 loss=ssim learning_rate=3e-3 batch_size=8 schedule=cosine steps=400",
        "autoencoder l2": "size=64 loss=l2 learning_rate=3e-3 batch_size=8 schedule=cosine steps=400",
        "autoencoder perceptual": "size=64 learning_rate=3e-3 batch_size=8 schedule=cosine steps=400",
        "aeu": "size=64 learning_rate=2e-3 batch_size=8 schedule=cosine steps=400",
        "vae": "size=64 learning_rate=3e-3 batch_size=8 schedule=cosine steps=400",
        "vae dirichlet": "size=64 prior=dirichlet learning_rate=3e-3 batch_size=8 schedule=cosine steps=400",
        "memae": "size=64 learning_rate=3e-3 batch_size=8 schedule=cosine steps=400",
        "fae": "size=64 grid=16 learning_rate=2e-3 batch_size=8 schedule=cosine steps=400",
        "dae": "size=64 widths=16,32,64,128 learning_rate=2e-3 batch_size=8 schedule=cosine steps=400",
        "cevae": "size=64 widths=16,64,128,256 learning_rate=1e-3 batch_size=8 schedule=cosine steps=400",
        "fanogan": "size=32 widths=16,32,32 latent=32 critic_steps=1 gan_share=0.6 learning_rate=2e-3 batch_size=8"
        " steps=1000 smoothing=0",
        "ganomaly": "size=64 learning_rate=2e-3 batch_size=8 schedule=cosine steps=400",
        "cvad": "size=64 widths=16,32,64,64 latent=128 fine_latent=128 learning_rate=3e-3 batch_size=8 schedule=cosine"
        " steps=400",
    },
    "student_teacher": {
        "stfpm": "size=128 batch_size=16 steps=250",
        "mkd": "size=128 batch_size=16 steps=160",
        "rd4ad": "size=128 steps=400",
        "rdpp": "size=128 steps=150",
        "efficientad": "size=128 steps=350",
        "dinomaly": "size=128 blocks=4 steps=80",
    },
    "inpainting": {
        "squid": "size=128 width=8 learning_rate=5e-4 steps=400",
        "riad": "size=64 width=16 learning_rate=1e-3 batch_size=4 steps=240",
        "mae": "size=64 patch=8 parts=2 learning_rate=1e-3 batch_size=16 steps=800",
        "mae plain": "size=64 patch=8 parts=2 memory=0 multilevel=false learning_rate=1e-3 batch_size=16 steps=800",
        "autopaint": "size=64 width=16 learning_rate=1e-3 batch_size=8 steps=500",
        "pddpm": "size=64 widths=16,32,32 learning_rate=1e-3 batch_size=16 steps=300",
        "anoddpm": "size=64 widths=16,32,32,64 learning_rate=1e-3 longest=250 denoising_steps=4 draws=2 average=0.99"
        " steps=300",
    },
}
SIX = ("zhanglab_dev", "nih_rsna", "covid_ct", "ct_lung_patches", "covid_cxr_lesions", "brats2013")
DATASETS = {
    "reconstruction": SIX,
    "student_teacher": SIX,
    "inpainting": ("zhanglab_dev", "covid_ct", "digit_anatomy", "phantoms"),
}
SHOWN = {"auroc": "AUROC", "ap": "AP", "pixel_auroc": "pixel AUROC", "aupro@0.3": "AUPRO to .3"}


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("what", choices=("run", "write", "quick"))
    parser.add_argument("root", type=Path, nargs="?")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("-f", "--family", action="append", choices=METHODS)
    parser.add_argument("-d", "--dataset", action="append")
    parser.add_argument("-m", "--model", action="append", help="a key of METHODS")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    if options.what == "write":
        write_tables(options.output)
        return
    if options.root is None:
        parser.error(f"{options.what} needs ROOT, the folder with the data sets")
    if options.what == "quick":
        sys.exit(quick(options.root, options.output, options.dataset or SIX))
    code = 0
    for family in options.family or METHODS:
        named = {label: key for label, key in labels(family).items() if not options.model or key in options.model}
        words = ["bench", "--root", str(options.root), "-o", str(options.output), "--calibration", "0"]
        words += ["--seeds", str(options.seeds)]
        words += [word for name in options.dataset or DATASETS[family] for word in ("-d", name)]
        words += [word for label in named for word in ("-m", label)]
        code = max(code, anomed(words) if named else 0)
    sys.exit(code)


def quick(root: Path, out: Path, datasets: Sequence[str]) -> int:
    """All detectors on all data sets, with little of everything."""
    words = ["bench", "--root", str(root), "-o", str(out), "--calibration", "0", "--seeds", "1"]
    words += ["--max-train", "60", "--max-test", "40", "--size", "64"]
    words += [word for name in datasets for word in ("-d", name)]
    for method in [label for family in METHODS for label in labels(family)]:
        name, *settings = method.split()
        kept = [s for s in settings if s.split("=")[0] not in ("size", "steps", "batch_size")]
        words += ["-m", " ".join([name, *kept, "steps=20", "batch_size=4"])]
    return anomed([*words, *(word for name in untrained() for word in ("-m", name))])


def labels(family: str) -> dict[str, str]:
    """Keys of METHODS by their labels in a bench."""
    return {f"{key.split()[0]} {words}": key for key, words in METHODS[family].items()}


def write_tables(out: Path) -> None:
    """The pages of the families and the cards, from the cells in a folder."""
    rows = rows_of([read_cell(path) for path in sorted(out.glob("cells/*/*/seed-*.json"))])
    for family, methods in METHODS.items():
        named = labels(family)
        datasets = list(dict.fromkeys([*DATASETS[family], *(row.dataset for row in rows)]))
        own = [row for row in rows if row.method in named]
        if not own:
            continue
        tables = []
        for name in datasets:
            chosen = sorted((row for row in own if row.dataset == name), key=lambda row: -shown_value(row))
            if chosen:
                trivial = [row for row in rows if row.dataset == name and row.baseline]
                tables.append(f"`{name}`\n\n" + table("detector", [named[r.method] for r in chosen], chosen, trivial))
        write_between_markers(TOP / "docs" / f"{family}.md", "\n\n".join(tables))
        for name in {key.split()[0] for key in methods}:
            chosen = [row for row in own if row.method.split()[0] == name]
            chosen.sort(key=lambda row: (datasets.index(row.dataset), -shown_value(row)))
            heads = [f"`{row.dataset}`" + named[row.method].removeprefix(name).replace(" ", ", ") for row in chosen]
            write_between_markers(TOP / "models" / name / "README.md", table("data set", heads, chosen, []))


def table(title: str, heads: Sequence[str], rows: Sequence[Row], trivial: Sequence[Row]) -> str:
    """A line a row, under the best trivial baseline where there are some."""
    metrics = [key for key in SHOWN if any(key in row.numbers for row in rows)]
    columns = [title, *(SHOWN[key] for key in metrics), "sd", "seeds", "fit, s", "images/s"]
    lines = [columns, ["---"] * len(columns)]
    if trivial:
        lines.append(["*best trivial baseline*", *(best(trivial, key) for key in metrics), "", "", "", ""])
    for head, row in zip(heads, rows, strict=True):
        first = next((row.numbers[key] for key in metrics if key in row.numbers), None)
        spread = f"{first.sd:.3f}" if first and len(row.cells) > 1 else ""
        cost = [f"{row.mean_of(key):.0f}".replace("nan", "-") for key in ("fit_s", "images_per_s")]
        lines.append([head, *(number(row, key) for key in metrics), spread, str(len(row.cells)), *cost])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shown_value(row: Row) -> float:
    """Of the first column, by which rows are ordered."""
    return next((row.numbers[key].interval.value for key in SHOWN if key in row.numbers), -1.0)


def number(row: Row, key: str) -> str:
    """``.897 [.860, .925]``; nothing where it was not measured."""
    if key not in row.numbers:
        return row.error
    interval = row.numbers[key].interval
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def best(trivial: Sequence[Row], key: str) -> str:
    """The highest of the trivial baselines."""
    found = [row for row in trivial if key in row.numbers]
    if not found:
        return ""
    highest = max(found, key=lambda row: row.numbers[key].interval.value)
    return f"*{highest.numbers[key].interval.value:.3f} ({highest.method})*"


if __name__ == "__main__":
    main()
