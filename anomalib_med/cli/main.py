"""``anomed``: the entry point, and what a user sees of errors, warnings and interruptions."""

import importlib
import os
import sys
import traceback
import warnings

import click

from anomalib_med.errors import AnomedError, ConfigError
from anomalib_med.version import __version__

EXIT_UNEXPECTED, EXIT_ERROR, EXIT_FAILED_IMAGES, EXIT_INTERRUPTED = 1, 2, 3, 130

VERBS = {
    "fit": "Learn what is normal from a folder of normal images.",
    "score": "Score images with a fitted model: table, maps, overlays, report.",
    "evaluate": "Measure a fitted model on labelled images, every number with its interval.",
    "froc": "Measure candidates of scored volumes against a list of lesions.",
    "bench": "Compare detectors on named data sets.",
    "add": "Fit a model on further normals, without the old ones.",
    "merge": "Make one model of two, for example of two hospitals, without their images.",
    "info": "Show what a model folder holds.",
    "models": "List the detectors; show settings and card of one.",
    "datasets": "List the named data sets; show the card of one; check a folder against it.",
    "demo": "Fit and score generated phantoms with planted lesions.",
}


class Verbs(click.Group):
    """Imports a verb when it is used, so that ``--help`` and ``--version`` answer at once."""

    def list_commands(self, context: click.Context) -> list[str]:
        """All verbs."""
        return list(VERBS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """The command of a verb."""
        if name not in VERBS:
            return None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and name != "fit":  # processes.count() would import torch
            raise ConfigError(f"anomed {name} runs in one process: only anomed fit is started by torchrun")
        command: click.Command = importlib.import_module(f"anomalib_med.cli.{name}").command
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True},
    epilog="\b\nStart here:\n  anomed demo -o demo\n  anomed fit normals/ -o model/\n"
    "  anomed score model/ new_images/ -o out/ --report",
)
@click.version_option(__version__, prog_name="anomed")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Unsupervised anomaly detection for medical images: train on the healthy, find what is not.

    Research software, not a medical device.
    """


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0 done; 2 wrong use or input, in one line; 3 done, but some images could not be read; 130 interrupted; 1 an error
    that the program did not expect.
    """
    arguments = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    debug = "--debug" in arguments
    if debug:  # wherever it stands
        arguments = ["--debug", *(a for a in arguments if a != "--debug")]
    warnings.showwarning = _show_warning
    try:
        return int(cli.main(arguments, prog_name="anomed", standalone_mode=False) or 0)
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        return _report(error)


def _report(error: BaseException) -> int:
    """Say in one line what went wrong; returns the exit code."""
    if isinstance(error, KeyboardInterrupt | click.exceptions.Abort):
        _say("interrupted: run the same command again to continue a training, anomed score or anomed bench")
        return EXIT_INTERRUPTED
    if isinstance(error, BrokenPipeError):
        return EXIT_UNEXPECTED
    if isinstance(error, click.ClickException):
        context = error.ctx if isinstance(error, click.UsageError) else None
        _say(error.format_message() + (f" See {context.command_path} --help" if context else ""))
        return EXIT_ERROR
    if isinstance(error, AnomedError):
        _say(str(error))
        return EXIT_ERROR
    _say(f"unexpected {type(error).__name__}: {error}; run again with --debug for the traceback")
    return EXIT_UNEXPECTED


def _say(message: str) -> None:
    click.echo(f"anomed: {' '.join(message.splitlines())}", err=True)


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    if issubclass(category, UserWarning):
        _say(f"warning: {message}")


def run() -> None:
    """Console entry point."""
    sys.exit(main())
