"""``anomed add``: a model and more normals in, a new model out."""

from pathlib import Path

import click

from anomalib_med.cli.fitted_output import say_fitted
from anomalib_med.cli.options import EXISTING_OR_GLOB, FOLDER, new_model_options
from anomalib_med.cli.progress import ProgressDisplay

EPILOG = """\b
Examples:
  anomed add model/ new_normals/ -o model2/
  anomed add model/ new_normals.csv -o model2/ --calibration 0.5
"""


@click.command(epilog=EPILOG)
@click.argument("model_dir", type=FOLDER)
@click.argument("normals", type=EXISTING_OR_GLOB)
@new_model_options
@click.option(
    "--calibration",
    type=float,
    default=0.2,
    show_default=True,
    metavar="SHARE",
    help="Share of the new normals, by patient, held out for new p-values; 0 for none.",
)
def command(
    model_dir: Path,
    normals: str,
    output: Path,
    calibration: float,
    cache: Path | None,
    overwrite: bool,
    patient_pattern: str | None,
    device: str,
) -> int:
    """Fit MODEL_DIR on further NORMALS, without the images that it was fitted on.

    The p-values come from held-out new normals alone: the old ones were scored with the old model.
    """
    from anomalib_med.fitted import load
    from anomalib_med.merging import add_normals
    from anomalib_med.model_file import check_writable

    check_writable(output, overwrite=overwrite)
    with ProgressDisplay() as progress:
        model = add_normals(
            load(model_dir, device=device),
            normals,
            calibration=calibration,
            device=device,
            cache=cache,
            patient_pattern=patient_pattern,
            progress=progress,
        )
    model.save(output, overwrite=overwrite)
    return say_fitted(model, output)
