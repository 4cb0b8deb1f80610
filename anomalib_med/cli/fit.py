"""``anomed fit``: normals in, a model folder out."""

import ast
from functools import cache
from itertools import pairwise
from pathlib import Path

import click
from pydantic import JsonValue

from anomalib_med.cli.fitted_output import say_fitted
from anomalib_med.cli.memory import keep_freed_memory
from anomalib_med.cli.options import EXISTING_OR_GLOB, FOLDER, device_option, parse_settings, patient_option
from anomalib_med.cli.progress import ProgressDisplay

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

# Settings that have an option of their own, by the class that describes them.
DETECTOR = {
    "backbone": "models/base.py:BackboneConfig",
    "weights": "models/base.py:BackboneConfig",
    "layers": "models/base.py:BackboneConfig",
    "seed": "models/base.py:BaseConfig",
    "max_minutes": "models/training/schedule.py:TrainingConfig",
}
PREPROCESSING = dict.fromkeys(
    ("size", "aspect", "spacing", "slices", "height", "valid", "windows"), "preprocessing/settings.py:Preprocessing"
)


@cache
def described(home: str) -> dict[str, str]:
    """Descriptions of the fields of a settings class, ``file:class`` within the package, without importing it.

    The import would bring torch, which takes longer than a reader of `--help` waits.
    """
    file, _, name = home.partition(":")
    tree = ast.parse((Path(__file__).parent.parent / file).read_text(encoding="utf-8"))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    texts = {}
    for field, below in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            texts[ast.unparse(field.target)] = " ".join(str(below.value.value).split())
    return texts


class SettingOption(click.Option):
    """An option for a setting, whose help is the description of the setting."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The option and its help, which is read only now."""
        name = str(self.name)
        self.help = described((DETECTOR | PREPROCESSING)[name]).get(name, "")
        return super().get_help_record(ctx)


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
@click.option("--backbone", metavar="NAME", cls=SettingOption, show_default="radlite")
@click.option("--weights", metavar="FILE", cls=SettingOption, show_default="pretrained")
@click.option("--layers", metavar="A,B", cls=SettingOption)
@click.option("--size", type=int, metavar="PX", cls=SettingOption, show_default="the detector's, mostly 224")
@click.option(
    "--aspect", type=click.Choice(["keep", "pad", "stretch"]), cls=SettingOption, show_default="keep; trained: stretch"
)
@click.option("--spacing", type=float, metavar="MM", cls=SettingOption)
@click.option("--slices", type=int, metavar="N", cls=SettingOption, show_default="1")
@click.option("--height", type=click.Choice(["none", "volume", "lung"]), cls=SettingOption, show_default="none")
@click.option("--valid", metavar="AREA", cls=SettingOption, show_default="auto")
@click.option(
    "--window",
    "windows",
    multiple=True,
    metavar="NAME|LOW,HIGH",
    cls=SettingOption,
    show_default="what suits the normals",
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
    help="How the scores of slices become that of a volume: max, mean, top<k>, run<mm>mm, or auto, which is chosen on "
    "held-out normals.  [default: auto]",
)
@click.option("--seed", type=int, cls=SettingOption, show_default="0")
@click.option("--cache", type=FOLDER, help="Folder that keeps backbone features for the next fit.")
@click.option("--max-minutes", type=float, metavar="MINUTES", cls=SettingOption)
@click.option(
    "--unlabelled",
    type=EXISTING_OR_GLOB,
    metavar="IMAGES",
    help="Images by which the epoch of a trained detector is chosen that is kept: the one with the highest AUCp, "
    "training normals against these. Transductive, and noted in the model.  [default: the last epoch]",
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
    windows: tuple[str, ...],
    calibration: float | None,
    volume_score: str | None,
    cache: Path | None,
    unlabelled: str | None,
    overwrite: bool,
    patient_pattern: str | None,
    device: str,
    **options: JsonValue,
) -> int:
    """Learn what is normal from NORMALS: a folder (searched through), a file, a glob or a CSV with a `path` column."""
    from anomalib_med import processes
    from anomalib_med.calibration import AUTO
    from anomalib_med.cards import read_recipe
    from anomalib_med.config import parse_config
    from anomalib_med.evaluation import AUCp
    from anomalib_med.fitting import fit
    from anomalib_med.model_file import check_writable
    from anomalib_med.models.recipes import FitTable
    from anomalib_med.models.registry import detector_class
    from anomalib_med.models.training.trainer import TrainedDetector
    from anomalib_med.preprocessing import Preprocessing

    planned = read_recipe(recipe) if recipe else {}
    options["windows"] = [_window(window) for window in windows] or None
    given = {key: value for key, value in options.items() if value is not None}
    chosen = planned.get("detector", {}) | {key: value for key, value in given.items() if key in DETECTOR}
    images = planned.get("preprocessing", {}) | {key: value for key, value in given.items() if key in PREPROCESSING}
    default_name = chosen.pop("name", "twoview")
    detector = detector_class(name or str(default_name))(**chosen | parse_settings(settings))
    planned_share = parse_config(FitTable, planned.get("fit", {}), "recipe, [fit]").calibration
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


def _window(text: str) -> JsonValue:
    low, comma, high = text.partition(",")
    try:
        return [float(low), float(high)] if comma else text
    except ValueError:
        return text  # refused by Preprocessing, which says what it takes
