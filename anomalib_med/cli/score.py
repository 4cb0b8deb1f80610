"""``anomed score``: a model folder and images in, a folder of results out."""

from pathlib import Path

import click

from anomalib_med.cli.options import EXISTING_OR_GLOB, FOLDER, shared
from anomalib_med.cli.outcome import say_failed
from anomalib_med.cli.progress import with_progress

EPILOG = """\b
Examples:
  anomed score model/ new_images/ -o out/ --report
  anomed score model/ scan.nii.gz -o out/ --maps nifti
  anomed score model/ list.csv -o out/ --false-alarm-rate 0.01 --maps none --no-overlays --table parquet
"""
MAPS = "Anomaly maps, in the geometry of the original image; those of a volume as one NIfTI or as a DICOM series."


@click.command(epilog=EPILOG)
@click.argument("model_dir", type=FOLDER)
@click.argument("images", type=EXISTING_OR_GLOB)
@shared(output="Folder for the results; an interrupted run in it is resumed.")
@shared(false_alarm_rate="Share of normal images that may be flagged.")
@click.option("--maps", type=click.Choice(["npy", "png", "nifti", "dicom", "none"]), default="npy", help=MAPS)
@click.option("--overlays/--no-overlays", default=True, help="Pictures: image, map, both.")
@click.option(
    "--table", type=click.Choice(["csv", "parquet", "jsonl"]), default="csv", help="Further form of scores.csv."
)
@click.option("--report", is_flag=True, help="One HTML file to look at, report.html.")
@click.option("--keep-patient-ids", is_flag=True, help="Write DICOM patient identifiers instead of pseudonyms.")
@shared("cache", overwrite="Replace the results of another run.")
@shared("patient_pattern", "device")
def command(model_dir: Path, images: str, output: Path, cache: Path | None, device: str, **options: object) -> int:
    """Score IMAGES (a folder, a file, a glob or a CSV with a `path` column) with the model of `anomed fit`.

    Higher scores are more anomalous. scores.csv has a row for each image; images that cannot be read are in
    failures.csv and the exit code is 3.
    """
    from anomalib_med.fitted import load
    from anomalib_med.scoring import score_to_folder

    model = load(model_dir, device=device)
    if cache is not None:
        model.use_cache(cache)
    summary = with_progress(score_to_folder, model, images, output, **options)
    resumed = f" ({summary.resumed} by an earlier run)" if summary.resumed else ""
    rate = f"a false-alarm rate of {options['false_alarm_rate']:g}"
    flagged = f", {summary.flagged} flagged at {rate}" if model.calibration else ""
    click.echo(f"scored {summary.scored} images{resumed}{flagged}\ntable: {output / 'scores.csv'}")
    if summary.volumes:
        click.echo(f"volumes: {output / 'volumes.csv'}, their candidates: {output / 'candidates.csv'}")
    if summary.report:
        click.echo(f"report: {summary.report}")
    if summary.failed:
        return say_failed(f"{summary.failed} images could not be scored, see {output / 'failures.csv'}")
    return 0
