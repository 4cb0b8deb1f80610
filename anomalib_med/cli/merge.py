"""``anomed merge``: two models in, one out."""

from pathlib import Path

import click

from anomalib_med.cli.options import EXISTING_OR_GLOB, FOLDER, shared
from anomalib_med.cli.outcome import write_made

EPILOG = """\b
Examples:
  anomed merge model_a/ model_b/ -o model/ --calibration-normals other_normals/
  anomed merge model_a/ model_b/ -o model/
"""
NORMALS = "Normals that neither model was fitted on; without them the new model gives no p-values."


@click.command(epilog=EPILOG)
@click.argument("models", nargs=2, type=FOLDER, metavar="MODEL_A MODEL_B")
@click.option("--calibration-normals", type=EXISTING_OR_GLOB, metavar="NORMALS", help=NORMALS)
@shared("output", "cache", "overwrite", "patient_pattern", "device")
def command(models: tuple[Path, Path], output: Path, overwrite: bool, device: str, **options: object) -> int:
    """Make one model of MODEL_A and MODEL_B, which were fitted with the same settings, without their images."""
    from anomalib_med.merging import merge_models

    return write_made(merge_models, models, output=output, overwrite=overwrite, device=device, **options)
