"""``anomed info``: what a model folder holds."""

import json
from pathlib import Path

import click

from anomalib_med.cli.options import FOLDER


@click.command(epilog="\b\nExamples:\n  anomed info model/\n  anomed info model/ --json")
@click.argument("model_dir", type=FOLDER)
@click.option("--json", "as_json", is_flag=True, help="Print model.json as it is.")
def command(model_dir: Path, as_json: bool) -> int:
    """Show settings, training, calibration and fingerprints of a model, whose files are checked."""
    from anomalib_med.model_file import read_model
    from anomalib_med.outputs.run import flat_table

    files = read_model(model_dir)
    if as_json:
        click.echo(json.dumps(files.description, indent=2))
        return 0
    table = flat_table(files.description)
    width = max(map(len, table))
    for key, value in table.items():
        click.echo(f"{key:<{width}}  {value}")
    return 0
