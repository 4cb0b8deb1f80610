"""The files of a data set below one folder: found, listed once, and what is missing collected."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from anomalib_med.datasets.layout.rows import Row, check_columns, read_rows

_MAGIC = frozenset("*?[")


@dataclass
class Tree:
    """One data set on disk: its top folder, and what was expected in it and is not there, in words."""

    root: Path
    missing: list[str] = field(default_factory=list)
    _files: dict[str, dict[str, str]] = field(default_factory=dict)
    _tables: dict[tuple[Path, str], list[Row]] = field(default_factory=dict)

    def glob(self, patterns: tuple[str, ...]) -> list[str]:
        """Files that match one of the globs, as sorted paths below the root; none is a missing part."""
        paths = {
            path.relative_to(self.root).as_posix()
            for pattern in patterns
            for path in self.root.glob(pattern)
            if path.is_file() and not path.name.startswith(".")
        }
        if not paths:
            self.missing.append(f"no file {self.named(patterns)}")
        return sorted(paths)

    def find(self, alternatives: tuple[str, ...]) -> str | None:
        """The first of these paths that exists; the folder of each may be a glob."""
        parts = (alternative.rpartition("/") for alternative in alternatives)
        return next((path for folder, _, name in parts if (path := self._listing(folder).get(name))), None)

    def table(self, alternatives: tuple[str, ...], columns: Iterable[str] = ()) -> tuple[list[Row], Path]:
        """Rows of the first table that exists, and its path; no row where there is none, which is a missing part.

        Raises InputError where the table lacks one of the columns.
        """
        for alternative in alternatives:
            name, _, keys = alternative.partition("#")
            if file := self.find((name,)):
                path = self.root / file
                rows = self._tables[path, keys] = self._tables.get((path, keys)) or read_rows(path, keys)
                check_columns(rows, columns, path)
                return rows, path
        message = f"no table {self.named(alternative.partition('#')[0] for alternative in alternatives)}"
        if message not in self.missing:
            self.missing.append(message)
        return [], self.root

    def named(self, alternatives: Iterable[str]) -> str:
        """The paths of alternatives in words."""
        return " or ".join(str(self.root / name) for name in alternatives)

    def note_absent(self, absent: Sequence[tuple[str, ...]], total: int, what: str, table: Path) -> None:
        """Note the files that a table lists and that are not there as missing."""
        if absent:
            first = self.named(absent[0])
            self.missing.append(f"{len(absent)} of {total} {what} that {table.name} lists, the first is {first}")

    def _listing(self, folder: str) -> dict[str, str]:
        """Paths by file name in the folders that match a glob, the first folder winning."""
        # One listing of a folder of a hundred thousand files is far quicker than asking for each of them.
        if folder not in self._files:
            matches = sorted(self.root.glob(folder)) if _MAGIC & set(folder) else [self.root / folder]
            names: dict[str, str] = {}
            for entry in (entry for path in matches if path.is_dir() for entry in path.iterdir()):
                names.setdefault(entry.name, entry.relative_to(self.root).as_posix())
            self._files[folder] = names
        return self._files[folder]
