"""What fit, add and merge say of the model that they wrote."""

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

from anomalib_med.cli.main import EXIT_FAILED_IMAGES

if TYPE_CHECKING:
    from anomalib_med.fitted import FittedModel

LISTED = 10  # unreadable images that are named


def say_fitted(model: "FittedModel", output: Path) -> int:
    """Print counts, notes, what was left out and where the model is; returns the exit code."""
    t = model.training
    click.echo(
        f"fitted {model.detector.name} on {t['images']} images of {t['patients']} patients; "
        f"{t['held_out_images']} images of {t['held_out_patients']} patients held out for calibration"
    )
    for note in model.notes:
        click.echo(f"note: {note}")
    for identity, reason in islice(model.failures.items(), LISTED):
        text = reason if identity in reason else f"{identity}: {reason}"
        click.echo(f"anomed: left out: {text}", err=True)
    if len(model.failures) > LISTED:
        click.echo(f"anomed: left out: {len(model.failures) - LISTED} more", err=True)
    click.echo(f"model: {output}")
    return EXIT_FAILED_IMAGES if model.failures else 0
