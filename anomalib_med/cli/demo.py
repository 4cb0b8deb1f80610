"""``anomed demo``: the main job on generated phantoms."""

from pathlib import Path

import click

from anomalib_med.cli.options import FOLDER, device_option
from anomalib_med.cli.progress import ProgressDisplay


@click.command(epilog="\b\nExample:\n  anomed demo -o demo")
@click.option(
    "-o", "--output", default="demo", show_default=True, type=FOLDER, help="Folder for phantoms, model and results."
)
@click.option("--train", default=160, show_default=True, help="Normal phantoms to fit on.")
@click.option("--test", default=40, show_default=True, help="Normal and abnormal phantoms to score, of each.")
@click.option("--seed", default=0, show_default=True, help="Of phantoms and detector.")
@device_option
def command(output: Path, train: int, test: int, seed: int, device: str) -> int:
    """Generate chest phantoms with planted lesions, fit on the normal ones, score the others, say how well it went."""
    from anomalib_med.demo import run_demo

    with ProgressDisplay() as progress:
        outcome = run_demo(output, train=train, test=test, seed=seed, device=device, progress=progress)
    click.echo(f"image AUROC {outcome.image_auroc:.3f}")
    click.echo(f"pixel AUROC {outcome.pixel_auroc:.3f}")
    click.echo(f"report: {outcome.report}")
    click.echo("\nThe same on your own images:")
    click.echo("  anomed fit NORMALS -o model")
    click.echo("  anomed score model IMAGES -o out --report")
    return 0
