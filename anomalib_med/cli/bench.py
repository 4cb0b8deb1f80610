"""``anomed bench``: data sets x detectors x seeds, and the tables that come of it."""

from pathlib import Path

import click
from pydantic import JsonValue

from anomalib_med.cli.options import FOLDER, data_root, shared, taken
from anomalib_med.cli.outcome import say_failed
from anomalib_med.cli.progress import with_progress
from anomalib_med.errors import ConfigError

EPILOG = """\b
Examples:
  anomed bench --root /data -d nih_rsna -d zhanglab -m patchcore -o bench/
  anomed bench --root /data -d bmad_liver -m patchcore -m 'patchcore pooling=max' --seeds 5 -o bench/
  anomed bench --root /data -d nih_rsna -m twoview -m 'stfpm size=128 steps=500' -m 'fae size=128' -o bench/
  anomed bench --root /data -d chestxray14 --backbone resnet18 --weights resnet18.safetensors --max-train 500 -o bench/
"""
METHOD = """Detector, with settings (and size=PX, of its own input) behind it; repeatable.
[default: all that need no training]"""
BACKBONE = "Backbone of all detectors on frozen features: radlite or a timm network."
WEIGHTS = "Its weights: a safetensors file, `pretrained` (cache or hub) or `random`."
SIZE = "Side of the model input.  [default: the detector's, mostly 224]"


@click.command(epilog=EPILOG)
@click.option("--root", type=FOLDER, help="Folder with the data sets.  [default: ANOMED_TEST_DATA]")
@click.option("-d", "--dataset", "datasets", multiple=True, metavar="NAME", help="See `anomed datasets`; repeatable.")
@click.option("-m", "--method", "methods", multiple=True, metavar="NAME", help=METHOD)
@shared(output="Folder for the results; an earlier run in it is continued.")
@click.option("--seeds", type=click.IntRange(1), default=3, help="Number of seeds.")
@click.option("--backbone", metavar="NAME", help=BACKBONE)
@click.option("--weights", metavar="FILE", help=WEIGHTS)
@click.option("--layers", metavar="A,B", help="Layers of the backbone, by name.")
@click.option("--size", type=int, metavar="PX", help=SIZE)
@shared(calibration="Share of normals held out.", false_alarm_rate="False-alarm rate of the threshold.")
@click.option("--max-train", type=click.IntRange(2), metavar="N", help="Largest number of training images of a set.")
@click.option("--max-test", type=click.IntRange(4), metavar="N", help="Largest number of test images of a set.")
@shared(cache="Folder of the backbone features.  [default: OUTPUT/features]")
@shared("device", overwrite="Measure cells of other settings anew.")
def command(
    root: Path | None, datasets: tuple[str, ...], methods: tuple[str, ...], output: Path, **options: JsonValue
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
    chosen = methods_of(methods or untrained(), taken(options, "backbone", "weights", "layers"))
    images = parse_config(Preprocessing, taken(options, "size"), "preprocessing")
    names = tuple(dict.fromkeys(datasets))
    plan = Plan(root=given, out=output, datasets=names, methods=chosen, preprocessing=images, **options)  # type: ignore[arg-type]
    cells = with_progress(run_bench, plan, say=click.echo)
    for path in write_outputs(output, cells):
        click.echo(f"written: {path}")
    failed = [f"{cell.dataset} / {cell.method}: {cell.error}" for cell in cells if cell.error]
    return say_failed(*[f"{len(failed)} of {len(cells)} cells failed, first {text}" for text in failed[:1]])
