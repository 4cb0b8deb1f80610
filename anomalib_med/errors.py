"""Errors that a user can act on: each names the file, the field or the option, and the remedy, in one line.

On the command line they end a run with exit code 2 and without a traceback; in Python they are ordinary exceptions.
"""


class AnomedError(Exception):
    """Base of every error the package raises on purpose."""


class InputError(AnomedError):
    """The images asked for cannot be found or listed: no such path, an empty folder, a table without its columns."""


class ReadError(AnomedError):
    """One file cannot be read as an image. It never ends a run: the file is listed in ``failures.csv``."""


class ConfigError(AnomedError):
    """An option is unknown or has a value that makes no sense."""


class FitError(AnomedError):
    """The normals at hand do not allow what was asked: too few images, no usable pixel."""


class ModelError(AnomedError):
    """A model folder is incomplete, altered, of an unknown format, or not a model."""


class OutputError(AnomedError):
    """A result cannot be written: folder not writable, disk full, results of another run in the way."""
