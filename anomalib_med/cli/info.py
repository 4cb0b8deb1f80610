"""``anomed info``: what a model folder holds."""

import json
from pathlib import Path

import click

from anomalib_med.cli.options import FOLDER
from anomalib_med.cli.outcome import aligned


@click.command(epilog="\b\nExamples:\n  anomed info model/\n  anomed info model/ --json")
@click.argument("model_dir", type=FOLDER)
@click.option("--json", "as_json", is_flag=True, help="Print model.json as it is.")
def command(model_dir: Path, as_json: bool) -> None:
    """Show settings, training, calibration and fingerprints of a model, whose files are checked."""
    from anomalib_med.model_file import read_model
    from anomalib_med.outputs.run import flat_table

    described = read_model(model_dir).description
    click.echo(json.dumps(described, indent=2) if as_json else aligned(flat_table(described), indent=""))
