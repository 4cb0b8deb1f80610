"""``anomed merge``: two models in, one out."""

from pathlib import Path

import click

from anomalib_med.cli.fitted_output import say_fitted
from anomalib_med.cli.options import EXISTING_OR_GLOB, FOLDER, new_model_options
from anomalib_med.cli.progress import ProgressDisplay

EPILOG = """\b
Examples:
  anomed merge model_a/ model_b/ -o model/ --calibration-normals other_normals/
  anomed merge model_a/ model_b/ -o model/
"""


@click.command(epilog=EPILOG)
@click.argument("model_a", type=FOLDER)
@click.argument("model_b", type=FOLDER)
@new_model_options
@click.option(
    "--calibration-normals",
    type=EXISTING_OR_GLOB,
    metavar="NORMALS",
    help="Normals that neither model was fitted on; without them the new model gives no p-values.",
)
def command(
    model_a: Path,
    model_b: Path,
    output: Path,
    calibration_normals: str | None,
    cache: Path | None,
    overwrite: bool,
    patient_pattern: str | None,
    device: str,
) -> int:
    """Make one model of MODEL_A and MODEL_B, which were fitted with the same settings, without their images."""
    from anomalib_med.fitted import load
    from anomalib_med.merging import merge_models
    from anomalib_med.model_file import check_writable

    check_writable(output, overwrite=overwrite)
    with ProgressDisplay() as progress:
        model = merge_models(
            load(model_a, device=device),
            load(model_b, device=device),
            calibration_normals=calibration_normals,
            device=device,
            cache=cache,
            patient_pattern=patient_pattern,
            progress=progress,
        )
    model.save(output, overwrite=overwrite)
    return say_fitted(model, output)
