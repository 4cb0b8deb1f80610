"""``anomed fit``: normals in, a model folder out."""

import ast
from functools import cache
from itertools import pairwise
from pathlib import Path

import click
from pydantic import JsonValue

from anomalib_med.cli.memory import keep_freed_memory
from anomalib_med.cli.options import EXISTING_OR_GLOB, FOLDER, Verb, parse_settings, shared, taken
from anomalib_med.cli.outcome import say_fitted
from anomalib_med.cli.progress import with_progress
from anomalib_med.config import parse_config

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
RECIPE = "TOML file with [detector], [preprocessing] and [fit]; options given beside it win."
CALIBRATION = "Share of the normals, by patient, held out for p-values; 0 for none.  [default: 0.2]"
VOLUME_SCORE = """How the scores of slices become that of a volume: max, mean, top<k>, run<mm>mm, or auto, which is
chosen on held-out normals."""
UNLABELLED = """Images by which the epoch of a trained detector is chosen that is kept: the one with the highest AUCp,
training normals against these. Transductive, and noted in the model.  [default: the last epoch]"""

BASE, BACKBONE = "models/base.py:BaseConfig", "models/base.py:BackboneConfig"
TRAINING, PREPROCESSING = "models/training/schedule.py:TrainingConfig", "preprocessing/settings.py:Preprocessing"

# Settings that have an option of their own: the class that describes them, what the option takes, its default.
OWN_OPTION = {
    "backbone": (BACKBONE, "NAME", "radlite"),
    "weights": (BACKBONE, "FILE", "pretrained"),
    "layers": (BACKBONE, "A,B", None),
    "seed": (BASE, "N", "0"),
    "max_minutes": (TRAINING, "MINUTES", None),
    "size": (PREPROCESSING, "PX", "the detector's, mostly 224"),
    "aspect": (PREPROCESSING, "[keep|pad|stretch]", "keep; trained: stretch"),
    "spacing": (PREPROCESSING, "MM", None),
    "slices": (PREPROCESSING, "N", "1"),
    "height": (PREPROCESSING, "[none|volume|lung]", "none"),
    "valid": (PREPROCESSING, "AREA", "auto"),
    "windows": (PREPROCESSING, "NAME|LOW,HIGH", "what suits the normals"),
}


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
        self.help = described(OWN_OPTION[name][0])[name]
        return super().get_help_record(ctx)


def setting_options(verb: Verb) -> Verb:
    """Give a verb the options of settings; their values stay text, which the settings parse."""
    for name, (_, takes, default) in reversed(OWN_OPTION.items()):
        flag, many = f"--{name.replace('_', '-')}", name == "windows"  # several of them, so each is a --window
        flag = flag.removesuffix("s") if many else flag
        verb = click.option(flag, name, cls=SettingOption, metavar=takes, show_default=default, multiple=many)(verb)
    return verb


@click.command(epilog=EPILOG)
@click.argument("normals", type=EXISTING_OR_GLOB)
@shared("output")
@click.option("-m", "--model", "name", metavar="NAME", help="Detector, see `anomed models`.  [default: twoview]")
@click.option("--recipe", type=FOLDER, help=RECIPE)
@click.option(
    "-s", "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Setting of the detector; repeatable."
)
@setting_options
@click.option("--calibration", type=float, metavar="SHARE", help=CALIBRATION)
@click.option("--volume-score", default="auto", metavar="HOW", help=VOLUME_SCORE)
@click.option("--unlabelled", type=EXISTING_OR_GLOB, metavar="IMAGES", help=UNLABELLED)
@shared("cache", "overwrite", "patient_pattern", "device")
def command(
    normals: str,
    output: Path,
    name: str | None,
    recipe: Path | None,
    settings: tuple[str, ...],
    windows: tuple[str, ...],
    calibration: float | None,
    unlabelled: str | None,
    overwrite: bool,
    patient_pattern: str | None,
    **options: JsonValue,
) -> int:
    """Learn what is normal from NORMALS: a folder (searched through), a file, a glob or a CSV with a `path` column."""
    from anomalib_med import processes
    from anomalib_med.cards import read_recipe
    from anomalib_med.fitting import fit
    from anomalib_med.model_file import check_writable
    from anomalib_med.models.recipes import FitTable
    from anomalib_med.models.registry import detector_class
    from anomalib_med.models.training import TrainedDetector
    from anomalib_med.preprocessing import Preprocessing

    planned = read_recipe(recipe) if recipe else {}
    share = parse_config(FitTable, planned.get("fit", {}), "recipe, [fit]").calibration
    chosen, images = planned.get("detector", {}), planned.get("preprocessing", {})
    options["windows"] = [[*window.split(",")] if "," in window else window for window in windows] or None
    images |= taken(options, *(key for key, (home, _, _) in OWN_OPTION.items() if home == PREPROCESSING))
    chosen |= taken(options, *(key for key, (home, _, _) in OWN_OPTION.items() if home != PREPROCESSING))
    default_name = str(chosen.pop("name", "twoview"))
    detector = detector_class(name or default_name)(**chosen | parse_settings(settings))
    preprocessing = parse_config(Preprocessing, images, "preprocessing")
    check_writable(output, overwrite=overwrite)
    checkpoint = epoch_choice = None
    if unlabelled is not None:
        from anomalib_med.evaluation import AUCp  # only here: it brings SciPy

        epoch_choice = AUCp(unlabelled, patient_pattern=patient_pattern)
    if isinstance(detector, TrainedDetector):
        checkpoint = output.absolute().with_name(f"{output.absolute().name}.training")
        keep_freed_memory()
    model = with_progress(
        fit,
        detector,
        normals,
        calibration=share if calibration is None else calibration,
        preprocessing=preprocessing,
        checkpoint=checkpoint,
        replace_checkpoint=overwrite,
        epoch_choice=epoch_choice,
        patient_pattern=patient_pattern,
        **options,
    )
    if processes.number():
        return 0  # the first of several processes writes the model
    model.save(output, overwrite=overwrite)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return say_fitted(model, output)
