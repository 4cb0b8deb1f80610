"""``anomed add``: a model and more normals in, a new model out."""

from pathlib import Path

import click

from anomalib_med.cli.options import EXISTING_OR_GLOB, FOLDER, shared
from anomalib_med.cli.outcome import write_made

EPILOG = """\b
Examples:
  anomed add model/ new_normals/ -o model2/
  anomed add model/ new_normals.csv -o model2/ --calibration 0.5
"""


@click.command(epilog=EPILOG)
@click.argument("model_dir", type=FOLDER)
@click.argument("normals", type=EXISTING_OR_GLOB)
@shared(calibration="Share of the new normals, by patient, held out for new p-values; 0 for none.")
@shared("output", "cache", "overwrite", "patient_pattern", "device")
def command(model_dir: Path, normals: str, output: Path, overwrite: bool, device: str, **options: object) -> int:
    """Fit MODEL_DIR on further NORMALS, without the images that it was fitted on.

    The p-values come from held-out new normals alone: the old ones were scored with the old model.
    """
    from anomalib_med.merging import add_normals

    return write_made(add_normals, [model_dir], normals, output=output, overwrite=overwrite, device=device, **options)
