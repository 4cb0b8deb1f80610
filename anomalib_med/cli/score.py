"""``anomed score``: a model folder and images in, a folder of results out."""

from pathlib import Path
from typing import cast

import click

from anomalib_med.cli.main import EXIT_FAILED_IMAGES
from anomalib_med.cli.options import EXISTING_OR_GLOB, FOLDER, device_option, patient_option
from anomalib_med.cli.progress import ProgressDisplay

EPILOG = """\b
Examples:
  anomed score model/ new_images/ -o out/ --report
  anomed score model/ scan.nii.gz -o out/ --maps nifti
  anomed score model/ list.csv -o out/ --false-alarm-rate 0.01 --maps none --no-overlays --table parquet
"""


@click.command(epilog=EPILOG)
@click.argument("model_dir", type=FOLDER)
@click.argument("images", type=EXISTING_OR_GLOB)
@click.option(
    "-o",
    "--output",
    required=True,
    type=FOLDER,
    help="Folder for the results; an interrupted run in it is resumed.",
)
@click.option(
    "--false-alarm-rate",
    type=float,
    default=0.05,
    show_default=True,
    metavar="RATE",
    help="Share of normal images that may be flagged.",
)
@click.option(
    "--maps",
    type=click.Choice(["npy", "png", "nifti", "dicom", "none"]),
    default="npy",
    show_default=True,
    help="Anomaly maps, in the geometry of the original image; of volumes as one NIfTI or as a DICOM series.",
)
@click.option("--overlays/--no-overlays", default=True, show_default=True, help="Pictures: image, map, both.")
@click.option(
    "--table",
    type=click.Choice(["csv", "parquet", "jsonl"]),
    default="csv",
    show_default=True,
    help="Further form of scores.csv.",
)
@click.option("--report", is_flag=True, help="One HTML file to look at, report.html.")
@click.option("--keep-patient-ids", is_flag=True, help="Write DICOM patient identifiers instead of pseudonyms.")
@click.option("--cache", type=FOLDER, help="Folder that keeps backbone features.")
@click.option("--overwrite", is_flag=True, help="Replace the results of another run.")
@patient_option
@device_option
def command(
    model_dir: Path,
    images: str,
    output: Path,
    false_alarm_rate: float,
    maps: str,
    overlays: bool,
    table: str,
    report: bool,
    keep_patient_ids: bool,
    cache: Path | None,
    overwrite: bool,
    patient_pattern: str | None,
    device: str,
) -> int:
    """Score IMAGES (a folder, a file, a glob or a CSV with a `path` column) with the model of `anomed fit`.

    Higher scores are more anomalous. scores.csv has a row for each image; images that cannot be read are in
    failures.csv and the exit code is 3.
    """
    from anomalib_med.fitted import load
    from anomalib_med.outputs.writer import MapKind, TableKind
    from anomalib_med.scoring import score_to_folder

    model = load(model_dir, device=device)
    if cache is not None:
        model.use_cache(cache)
    with ProgressDisplay() as progress:
        summary = score_to_folder(
            model,
            images,
            output,
            false_alarm_rate=false_alarm_rate,
            table=cast(TableKind, table),
            maps=cast(MapKind, maps),
            overlays=overlays,
            report=report,
            overwrite=overwrite,
            patient_pattern=patient_pattern,
            keep_patient_ids=keep_patient_ids,
            progress=progress,
        )
    resumed = f" ({summary.resumed} by an earlier run)" if summary.resumed else ""
    flagged = (
        ""
        if model.calibration is None
        else f", {summary.flagged} flagged at a false-alarm rate of {false_alarm_rate:g}"
    )
    click.echo(f"scored {summary.scored} images{resumed}{flagged}")
    click.echo(f"table: {output / 'scores.csv'}")
    if summary.volumes:
        click.echo(f"volumes: {output / 'volumes.csv'}, their candidates: {output / 'candidates.csv'}")
    if summary.report:
        click.echo(f"report: {summary.report}")
    if summary.failed:
        click.echo(f"anomed: {summary.failed} images could not be scored, see {output / 'failures.csv'}", err=True)
        return EXIT_FAILED_IMAGES
    return 0
