"""``anomed fit``: normals in, a model folder out."""

from collections.abc import Mapping
from pathlib import Path

import click
from pydantic import JsonValue

from anomalib_med.cli.fitted_output import say_fitted
from anomalib_med.cli.memory import keep_freed_memory
from anomalib_med.cli.options import EXISTING_OR_GLOB, FOLDER, device_option, parse_settings, patient_option
from anomalib_med.cli.progress import ProgressDisplay
from anomalib_med.errors import ConfigError

EPILOG = """\b
Examples:
  anomed fit normals/ -o model/
  anomed fit normals.csv -o model/ -m patchcore -s bank_size=4000 -s pooling=max
  anomed fit normals/ -o model/ -m fae --max-minutes 30
  anomed fit 'study/**/*.dcm' -o model/ --patient-pattern '(P\\d+)'
  anomed fit scans/ -o model/ --valid lung --height lung --spacing 1.5
  torchrun --nproc-per-node 4 --no-python anomed fit normals/ -o model/ -m fae
  anomed fit normals/ -o model/ --backbone resnet18 --weights resnet18.safetensors --layers layer2,layer3
"""


@click.command(epilog=EPILOG)
@click.argument("normals", type=EXISTING_OR_GLOB)
@click.option("-o", "--output", required=True, type=FOLDER, help="Folder for the model.")
@click.option("-m", "--model", "name", metavar="NAME", help="Detector, see `anomed models`.  [default: twoview]")
@click.option(
    "--recipe", type=FOLDER, help="TOML file with [detector], [preprocessing] and [fit]; options given beside it win."
)
@click.option(
    "-s", "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Setting of the detector; repeatable."
)
@click.option(
    "--backbone",
    metavar="NAME",
    help="Network of a detector on frozen features: radlite (built in) or one of timm.  [default: radlite]",
)
@click.option("--weights", metavar="FILE", help="safetensors file, `pretrained` (cache or hub) or `random`.")
@click.option("--layers", metavar="A,B", help="Layers of the backbone, by name.")
@click.option("--size", type=int, metavar="PX", help="Side of the model input.  [default: the detector's, mostly 224]")
@click.option(
    "--aspect",
    type=click.Choice(["keep", "pad", "stretch"]),
    help="How the image is fitted to it.  [default: keep; trained: stretch]",
)
@click.option(
    "--spacing", type=float, metavar="MM", help="Millimetres of a pixel of the model input, instead of --size."
)
@click.option(
    "--slices",
    type=int,
    metavar="N",
    help="2.5-D: a slice and its neighbours as channels, N in all, an odd number.  [default: 1]",
)
@click.option(
    "--height",
    type=click.Choice(["none", "volume", "lung"]),
    help="Compare slices of one height in their volume, or in the lungs (twoview, patchcore).  [default: none]",
)
@click.option(
    "--valid",
    metavar="AREA",
    help="Where to look: auto (in CT the body), body, lung, exposed (radiographs without collimation and markers), "
    "all, or a function of your own.  [default: auto]",
)
@click.option(
    "--window",
    "windows",
    multiple=True,
    metavar="NAME|LOW,HIGH",
    help="lung, mediastinum, bone, voi, percentile or two values; repeat for more channels.  "
    "[default: what suits the normals]",
)
@click.option(
    "--calibration",
    type=float,
    metavar="SHARE",
    help="Share of the normals, by patient, held out for p-values; 0 for none.  [default: 0.2]",
)
@click.option(
    "--volume-score",
    metavar="HOW",
    help="How slices make the score of a volume: max, mean, top<k>, run<mm>mm, or auto: chosen on held-out normals.  "
    "[default: auto]",
)
@click.option("--seed", type=int, help="Seed of every random choice.  [default: 0]")
@click.option("--cache", type=FOLDER, help="Folder that keeps backbone features for the next fit.")
@click.option(
    "--max-minutes",
    type=float,
    metavar="MINUTES",
    help="Stop the training of a trained detector after this time, with the model of the steps done by then.",
)
@click.option(
    "--unlabelled",
    type=EXISTING_OR_GLOB,
    metavar="IMAGES",
    help="Keep the epoch of a trained detector that has the highest AUCp, training normals against these images. "
    "This is transductive, and noted in the model.  [default: the last epoch]",
)
@click.option("--overwrite", is_flag=True, help="Replace a model that is already there.")
@patient_option
@device_option
def command(
    normals: str,
    output: Path,
    name: str | None,
    recipe: Path | None,
    settings: tuple[str, ...],
    backbone: str | None,
    weights: str | None,
    layers: str | None,
    size: int | None,
    aspect: str | None,
    spacing: float | None,
    slices: int | None,
    height: str | None,
    valid: str | None,
    windows: tuple[str, ...],
    calibration: float | None,
    volume_score: str | None,
    seed: int | None,
    cache: Path | None,
    max_minutes: float | None,
    unlabelled: str | None,
    overwrite: bool,
    patient_pattern: str | None,
    device: str,
) -> int:
    """Learn what is normal from NORMALS: a folder (searched through), a file, a glob or a CSV with a `path` column."""
    from anomalib_med import processes
    from anomalib_med.calibration import AUTO
    from anomalib_med.cards import read_recipe
    from anomalib_med.config import parse_config
    from anomalib_med.evaluation import AUCp
    from anomalib_med.fitting import fit
    from anomalib_med.model_file import check_writable
    from anomalib_med.models.registry import detector_class
    from anomalib_med.models.training.trainer import TrainedDetector
    from anomalib_med.preprocessing import Preprocessing

    planned = read_recipe(recipe) if recipe else {}
    chosen: dict[str, JsonValue] = dict(planned.get("detector", {}))
    default_name = chosen.pop("name", "twoview")
    named: dict[str, JsonValue] = {"backbone": backbone, "weights": weights, "layers": layers, "seed": seed}
    named["max_minutes"] = max_minutes
    chosen |= {key: value for key, value in named.items() if value is not None}
    chosen |= parse_settings(settings)
    detector = detector_class(name or str(default_name))(**chosen)
    images: dict[str, JsonValue] = dict(planned.get("preprocessing", {}))
    sized: dict[str, JsonValue] = {"size": size, "aspect": aspect, "spacing": spacing, "valid": valid}
    sized |= {"slices": slices, "height": height}
    sized["windows"] = [_window(w) for w in windows] or None
    images |= {key: value for key, value in sized.items() if value is not None}
    planned_share = _planned_share(planned.get("fit", {}))
    check_writable(output, overwrite=overwrite)
    checkpoint = None
    if isinstance(detector, TrainedDetector):
        checkpoint = output.absolute().with_name(f"{output.absolute().name}.training")
        keep_freed_memory()
    with ProgressDisplay(quiet=processes.number() > 0) as progress:
        model = fit(
            detector,
            normals,
            calibration=planned_share if calibration is None else calibration,
            preprocessing=parse_config(Preprocessing, images, "preprocessing"),
            volume_score=volume_score or AUTO,
            device=device,
            cache=cache,
            checkpoint=checkpoint,
            replace_checkpoint=overwrite,
            epoch_choice=None if unlabelled is None else AUCp(unlabelled, patient_pattern=patient_pattern),
            patient_pattern=patient_pattern,
            progress=progress,
        )
    if processes.number():
        return 0  # the first of several processes writes the model
    model.save(output, overwrite=overwrite)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return say_fitted(model, output)


def _planned_share(table: Mapping[str, JsonValue]) -> float:
    """The share of normals to be held out that the [fit] table of a recipe asks for."""
    for key in table:
        if key != "calibration":
            raise ConfigError(f'recipe, [fit]: there is no option "{key}"; it has calibration')
    share = table.get("calibration", 0.2)
    if not isinstance(share, int | float):
        raise ConfigError(f"recipe, [fit]: calibration {share!r} must be a share from 0 to below 1, for example 0.2")
    return share


def _window(text: str) -> JsonValue:
    low, comma, high = text.partition(",")
    try:
        return [float(low), float(high)] if comma else text
    except ValueError:
        return text  # refused by Preprocessing, which says what it takes
