"""``anomed bench``: data sets x detectors x seeds, and the tables that come of it."""

from pathlib import Path

import click
from pydantic import JsonValue

from anomalib_med.cli.main import EXIT_FAILED_IMAGES
from anomalib_med.cli.options import FOLDER, data_root, device_option
from anomalib_med.cli.progress import ProgressDisplay
from anomalib_med.errors import ConfigError

EPILOG = """\b
Examples:
  anomed bench --root /data -d nih_rsna -d zhanglab -m patchcore -o bench/
  anomed bench --root /data -d bmad_liver -m patchcore -m 'patchcore pooling=max' --seeds 5 -o bench/
  anomed bench --root /data -d nih_rsna -m twoview -m 'stfpm size=128 steps=500' -m 'fae size=128' -o bench/
  anomed bench --root /data -d chestxray14 --backbone resnet18 --weights resnet18.safetensors --max-train 500 -o bench/
"""


@click.command(epilog=EPILOG)
@click.option("--root", type=FOLDER, help="Folder with the data sets.  [default: ANOMED_TEST_DATA]")
@click.option("-d", "--dataset", "datasets", multiple=True, metavar="NAME", help="See `anomed datasets`; repeatable.")
@click.option(
    "-m",
    "--method",
    "methods",
    multiple=True,
    metavar="NAME",
    help="Detector, with settings (and size=PX, of its own input) behind it; repeatable.  "
    "[default: all that need no training]",
)
@click.option(
    "-o", "--output", required=True, type=FOLDER, help="Folder for the results; an earlier run in it is continued."
)
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Number of seeds.")
@click.option(
    "--backbone", metavar="NAME", help="Backbone of all detectors on frozen features: radlite or a timm network."
)
@click.option(
    "--weights", metavar="FILE", help="Its weights: a safetensors file, `pretrained` (cache or hub) or `random`."
)
@click.option("--layers", metavar="A,B", help="Layers of the backbone, by name.")
@click.option("--size", type=int, metavar="PX", help="Side of the model input.  [default: the detector's, mostly 224]")
@click.option("--calibration", type=float, default=0.2, show_default=True, help="Share of normals held out.")
@click.option(
    "--false-alarm-rate", type=float, default=0.05, show_default=True, help="False-alarm rate of the threshold."
)
@click.option("--max-train", type=click.IntRange(2), metavar="N", help="Largest number of training images of a set.")
@click.option("--max-test", type=click.IntRange(4), metavar="N", help="Largest number of test images of a set.")
@click.option("--cache", type=FOLDER, help="Folder of the backbone features.  [default: OUTPUT/features]")
@click.option("--overwrite", is_flag=True, help="Measure cells of other settings anew.")
@device_option
def command(
    root: Path | None,
    datasets: tuple[str, ...],
    methods: tuple[str, ...],
    output: Path,
    seeds: int,
    backbone: str | None,
    weights: str | None,
    layers: str | None,
    size: int | None,
    calibration: float,
    false_alarm_rate: float,
    max_train: int | None,
    max_test: int | None,
    cache: Path | None,
    overwrite: bool,
    device: str,
) -> int:
    """Measure detectors on named data sets: every number with its interval, trivial baselines beside them.

    A finished cell (data set, detector, seed) is not run again; one that fails is listed and the rest is finished.
    """
    from anomalib_med.bench.plan import Plan, methods_of, untrained
    from anomalib_med.bench.results import write_outputs
    from anomalib_med.bench.runner import run_bench
    from anomalib_med.config import parse_config
    from anomalib_med.preprocessing import Preprocessing

    given = data_root(root)
    if not datasets:
        raise ConfigError("-d: name at least one data set; `anomed datasets` lists them")
    named: dict[str, JsonValue] = {"backbone": backbone, "weights": weights, "layers": layers}
    images: dict[str, JsonValue] = {} if size is None else {"size": size}
    plan = Plan(
        root=given,
        out=output,
        datasets=tuple(dict.fromkeys(datasets)),
        methods=methods_of(methods or untrained(), {k: v for k, v in named.items() if v is not None}),
        seeds=seeds,
        preprocessing=parse_config(Preprocessing, images, "preprocessing"),
        calibration=calibration,
        false_alarm_rate=false_alarm_rate,
        max_train=max_train,
        max_test=max_test,
        device=device,
        cache=cache,
        overwrite=overwrite,
    )
    with ProgressDisplay() as progress:
        cells = run_bench(plan, progress=progress, say=click.echo)
    for path in write_outputs(output, cells):
        click.echo(f"written: {path}")
    failed = [cell for cell in cells if cell.error]
    if failed:
        first = failed[0]
        where = f"{first.dataset} / {first.method}"
        click.echo(f"anomed: {len(failed)} of {len(cells)} cells failed, first {where}: {first.error}", err=True)
    return EXIT_FAILED_IMAGES if failed else 0
