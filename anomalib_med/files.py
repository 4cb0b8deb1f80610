"""Files that appear whole or not at all, and disk errors that say what to do."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from anomalib_med.errors import OutputError

TEMPORARY = ".anomed-tmp"
"""Ending of every file that is still being written; one left by a crash may be removed."""

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn an OSError inside the block into an OutputError that names `path` and the remedy.

    Raises
    ------
    OutputError
        For a full disk, a folder that is not writable and any other refusal of the system.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _FULL:
            text = f"{path}: the disk is full ({reason}): free some space and run the same command again, it resumes"
        elif error.errno in _FORBIDDEN:
            text = f"{path}: not writable ({reason}): choose another output folder or change its permissions"
        else:
            text = f"{path}: cannot be written ({reason}): check the output folder or choose another"
        raise OutputError(text) from error


def write_atomic(path: Path, *parts: bytes | memoryview) -> None:
    """Write the bytes to `path` by way of a temporary file beside it.

    Raises
    ------
    OutputError
        The file cannot be written; what `path` held before is untouched.
    """

    def write(temporary: Path) -> None:
        with temporary.open("wb") as handle:
            for part in parts:
                handle.write(part)

    replace_with(path, write)


def replace_with(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file, then rename it to `path`.

    Raises
    ------
    OutputError
        The file cannot be written; what `path` held before is untouched and the temporary file is gone.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    with output_errors(path):
        try:
            write(temporary)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


class AppendFile:
    """A table that grows by whole rows: a row that cannot be written entirely leaves no trace.

    Parameters
    ----------
    path
        Created if absent; rows go to its end.
    keep
        Bytes of an existing file to keep; the rest is cut off.

    Raises
    ------
    OutputError
        The file cannot be opened or cut.
    """

    def __init__(self, path: Path, keep: int = 0) -> None:
        self.path = path
        with output_errors(path):
            self._handle = path.open("ab", buffering=0)
            self._handle.truncate(keep)

    def append(self, rows: bytes) -> None:
        """Hand `rows` to the system at once, without a buffer that a crash could lose.

        Raises
        ------
        OutputError
            The disk is full or the file cannot be written; the table is as before.
        """
        with output_errors(self.path):
            start = self._handle.seek(0, os.SEEK_END)
            try:
                rest = memoryview(rows)
                while rest:
                    rest = rest[self._handle.write(rest) :]
            except OSError:
                self._handle.truncate(start)
                raise

    def close(self) -> None:
        """Close the file; closing twice does nothing."""
        self._handle.close()
