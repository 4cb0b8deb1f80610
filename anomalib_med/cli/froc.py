"""``anomed froc``: the candidates of scored volumes against a list of lesions."""

from pathlib import Path

import click

from anomalib_med.cli.options import FOLDER
from anomalib_med.cli.outcome import aligned


@click.command(epilog="\b\nExamples:\n  anomed froc out/ lesions.csv\n  anomed froc out/ LUNA16/annotations.csv")
@click.argument("out", type=FOLDER)
@click.argument("lesions", type=FOLDER)
@click.option("--replicates", type=click.IntRange(100), default=1000, help="Number of draws for the intervals.")
def command(out: Path, lesions: Path, replicates: int) -> None:
    """Sensitivity against false candidates a scan, of OUT from `anomed score`.

    LESIONS is a CSV table: volume, x_mm, y_mm, z_mm, diameter_mm, or LUNA16's annotations.csv. A candidate hits a
    lesion where its centre lies within the lesion's radius. Intervals are at 95 %, resampled by patient.
    """
    from anomalib_med.evaluation.candidate_froc import candidate_froc, found_candidates, read_lesions
    from anomalib_med.outputs.volume_tables import read_volumes

    scans, patients = found_candidates(read_volumes(out), read_lesions(lesions))
    click.echo(
        f"{sum(len(s.lesions) for s in scans)} lesions in {sum(len(s.lesions) > 0 for s in scans)} of {len(scans)} "
        f"scans of {len(set(patients))} patients; {sum(len(s.false) for s in scans)} false candidates"
    )
    click.echo(aligned(candidate_froc(scans, patients, replicates=replicates)))
