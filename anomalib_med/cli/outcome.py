"""What verbs say of their work, and the exit code where a part of it failed."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from anomalib_med.cli.main import EXIT_FAILED_IMAGES
from anomalib_med.cli.progress import with_progress

if TYPE_CHECKING:
    from anomalib_med.fitted import FittedModel

    Make = Callable[..., FittedModel]

LISTED = 10  # unreadable images that are named


def aligned(table: Mapping[str, object], indent: str = "  ") -> str:
    """A line for each entry of a table, the values below one another."""
    width = max(map(len, table))
    return "\n".join(f"{indent}{key:<{width}}  {value}" for key, value in table.items())


def say_failed(*problems: str) -> int:
    """Say on standard error what failed while the rest was done; returns the exit code, 0 where nothing failed."""
    for problem in problems:
        click.echo(f"anomed: {problem}", err=True)
    return EXIT_FAILED_IMAGES if problems else 0


def say_fitted(model: "FittedModel", output: Path) -> int:
    """Print counts, notes, where the model is and what was left out; returns the exit code."""
    t = model.training
    click.echo(
        f"fitted {model.detector.name} on {t['images']} images of {t['patients']} patients; "
        f"{t['held_out_images']} images of {t['held_out_patients']} patients held out for calibration"
    )
    for note in model.notes:
        click.echo(f"note: {note}")
    click.echo(f"model: {output}")
    named = [reason if name in reason else f"{name}: {reason}" for name, reason in model.failures.items()]
    more = [f"{len(named) - LISTED} more"] if len(named) > LISTED else []
    return say_failed(*(f"left out: {text}" for text in [*named[:LISTED], *more]))


def write_made(
    make: "Make", models: Sequence[Path], *normals: str, output: Path, overwrite: bool, device: str, **options: object
) -> int:
    """Make a model of models, as add and merge do, save it and say what it is; returns the exit code."""
    from anomalib_med.fitted import load
    from anomalib_med.model_file import check_writable

    check_writable(output, overwrite=overwrite)
    loaded = [load(folder, device=device) for folder in models]
    model = with_progress(make, *loaded, *normals, device=device, **options)
    model.save(output, overwrite=overwrite)
    return say_fitted(model, output)
