"""Files and folders that appear whole or not at all, and disk errors that say what to do."""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anomalib_med.errors import OutputError

TEMPORARY = ".anomed-tmp"
"""Ending of everything that is still being written; what a crash left may be removed."""

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn an OSError inside the block into an OutputError that names `path` and the remedy."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        what, remedy = "cannot be written", "check the output folder or choose another"
        if error.errno in _FULL:
            what, remedy = "the disk is full", "free some space and run the same command again, it resumes"
        elif error.errno in _FORBIDDEN:
            what, remedy = "not writable", "choose another output folder or change its permissions"
        raise OutputError(f"{path}: {what} ({reason}): {remedy}") from error


def temporary_beside(path: Path) -> Path:
    """A name in the same folder for what is to become `path`: no other process or call gets the same one."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")


@contextmanager
def replacing(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """Give the block a temporary file to fill, and rename it to `path` where the block ends well.

    If the block fails, the temporary file is removed and what `path` held is untouched. With `sync` the content is on
    the disk before the renaming, so that a power cut leaves the old file or the new. Raises OSError.
    """
    temporary = temporary_beside(path)
    try:
        yield temporary
        if sync:
            with temporary.open("rb+") as handle:
                os.fsync(handle.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomic(path: Path, *parts: bytes | memoryview) -> None:
    """Write bytes by way of a temporary file; raises OutputError, and what `path` held before is then untouched."""
    with output_errors(path), replacing(path) as temporary, temporary.open("wb") as handle:
        handle.writelines(parts)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Give the block an empty temporary folder to fill with files, and rename it to `folder` where the block ends well.

    The content is on the disk before the renaming. Where the block does not end well, the temporary folder is removed
    and what `folder` held is untouched. Raises OSError.
    """
    temporary = temporary_beside(folder)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.iterdir():
            with file.open("rb+") as handle:
                os.fsync(handle.fileno())
        move_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def move_folder(new: Path, folder: Path) -> None:
    """Rename a finished folder to `folder`; raises OSError.

    What lay there is removed when the new one is in its place, and comes back where the renaming fails.
    """
    old = temporary_beside(folder)
    if folder.exists():
        folder.replace(old)
    try:
        new.replace(folder)
    except BaseException:
        if old.exists():
            old.replace(folder)
        raise
    if old.is_symlink():
        old.unlink()
    elif old.exists():
        shutil.rmtree(old)


class AppendFile:
    """A table that grows by whole rows: a row that cannot be written entirely leaves no trace.

    An existing file keeps its first `keep` bytes. Raises OutputError where it cannot be opened or cut.
    """

    def __init__(self, path: Path, keep: int = 0) -> None:
        self.path = path
        with output_errors(path):
            self._handle = path.open("ab", buffering=0)
            self._handle.truncate(keep)

    def append(self, rows: bytes) -> None:
        """Hand `rows` to the system at once, without a buffer that a crash could lose.

        Raises OutputError, and the table is then as before.
        """
        with output_errors(self.path):
            start, rest = self._handle.seek(0, os.SEEK_END), memoryview(rows)
            try:
                while rest:
                    rest = rest[self._handle.write(rest) :]
            except OSError:
                self._handle.truncate(start)
                raise

    def close(self) -> None:
        """Close the file; closing twice does nothing."""
        self._handle.close()
