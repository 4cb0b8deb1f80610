"""``anomed demo``: the main job on generated phantoms."""

from pathlib import Path

import click

from anomalib_med.cli.options import FOLDER, device_option
from anomalib_med.cli.progress import ProgressDisplay


@click.command(epilog="\b\nExample:\n  anomed demo -o demo")
@click.option(
    "-o", "--output", default="demo", show_default=True, type=FOLDER, help="Folder for phantoms, model and results."
)
@click.option("--train", default=160, show_default=True, help="Number of normal phantoms to fit on.")
@click.option("--test", default=40, show_default=True, help="Number of normal and of abnormal phantoms to score.")
@click.option("--seed", default=0, show_default=True, help="Seed of phantoms and detector.")
@device_option
def command(output: Path, train: int, test: int, seed: int, device: str) -> int:
    """Generate chest phantoms with planted lesions, fit on the normal ones, score the others, say how well it went."""
    from anomalib_med.demo import run_demo

    with ProgressDisplay() as progress:
        outcome = run_demo(output, train=train, test=test, seed=seed, device=device, progress=progress)
    click.echo(
        f"image AUROC {outcome.image_auroc:.3f}\npixel AUROC {outcome.pixel_auroc:.3f}\nreport: {outcome.report}\n\n"
        "The same on your own images:\n  anomed fit NORMALS -o model\n  anomed score model IMAGES -o out --report"
    )
    return 0
