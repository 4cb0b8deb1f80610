"""``anomed froc``: the candidates of scored volumes against a list of lesions."""

from pathlib import Path

import click

from anomalib_med.cli.options import FOLDER

EPILOG = """\b
Examples:
  anomed froc out/ lesions.csv
  anomed froc out/ LUNA16/annotations.csv
"""


@click.command(epilog=EPILOG)
@click.argument("out", type=FOLDER)
@click.argument("lesions", type=FOLDER)
@click.option(
    "--replicates", type=click.IntRange(100), default=1000, show_default=True, help="Draws for the intervals."
)
def command(out: Path, lesions: Path, replicates: int) -> int:
    """Sensitivity against false candidates a scan, of OUT from `anomed score`.

    LESIONS is a CSV table: volume, x_mm, y_mm, z_mm, diameter_mm, or LUNA16's annotations.csv. A candidate hits a
    lesion where its centre lies within the lesion's radius. Intervals are at 95 %, resampled by patient.
    """
    from anomalib_med.evaluation.candidate_froc import candidate_froc, found_candidates, read_lesions
    from anomalib_med.outputs.volume_tables import read_volumes

    found, patients = found_candidates(read_volumes(out), read_lesions(lesions))
    click.echo(
        f"{sum(len(f.lesions) for f in found)} lesions in {sum(len(f.lesions) > 0 for f in found)} of {len(found)} "
        f"scans of {len(set(patients))} patients; {sum(len(f.false) for f in found)} false candidates"
    )
    metrics = candidate_froc(found, patients, replicates=replicates)
    width = max(map(len, metrics))
    for name, interval in metrics.items():
        click.echo(f"  {name:<{width}}  {interval}")
    return 0
