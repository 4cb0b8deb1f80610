"""``anomed demo``: the main job on generated phantoms."""

from pathlib import Path

import click

from anomalib_med.cli.options import FOLDER, shared
from anomalib_med.cli.progress import with_progress


@click.command(epilog="\b\nExample:\n  anomed demo -o demo")
@click.option("-o", "--output", default="demo", type=FOLDER, help="Folder for phantoms, model and results.")
@click.option("--train", default=160, help="Number of normal phantoms to fit on.")
@click.option("--test", default=40, help="Number of normal and of abnormal phantoms to score.")
@click.option("--seed", default=0, help="Seed of phantoms and detector.")
@shared("device")
def command(output: Path, **options: object) -> None:
    """Generate chest phantoms with planted lesions, fit on the normal ones, score the others, say how well it went."""
    from anomalib_med.demo import run_demo

    outcome = with_progress(run_demo, output, **options)
    click.echo(
        f"image AUROC {outcome.image_auroc:.3f}\npixel AUROC {outcome.pixel_auroc:.3f}\nreport: {outcome.report}\n\n"
        "The same on your own images:\n  anomed fit NORMALS -o model\n  anomed score model IMAGES -o out --report"
    )
