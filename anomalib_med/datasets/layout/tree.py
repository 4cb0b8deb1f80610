"""The files of a data set below one folder: found, listed once, and what is missing collected."""

from dataclasses import dataclass, field
from pathlib import Path

from anomalib_med.datasets.layout.rows import Row, read_rows

_MAGIC = frozenset("*?[")


@dataclass
class Tree:
    """One data set on disk."""

    root: Path
    """Its top folder."""
    missing: list[str] = field(default_factory=list)
    """What was expected and is not there, in words, as it is found out."""
    _files: dict[str, dict[str, str]] = field(default_factory=dict)
    _tables: dict[tuple[Path, str], list[Row]] = field(default_factory=dict)

    def glob(self, patterns: tuple[str, ...]) -> list[str]:
        """Files that match one of the globs, as sorted paths below the root; none is a missing part."""
        found = {
            path.relative_to(self.root).as_posix()
            for pattern in patterns
            for path in self.root.glob(pattern)
            if path.is_file() and not path.name.startswith(".")
        }
        if not found:
            self.missing.append(f"no file {' or '.join(str(self.root / pattern) for pattern in patterns)}")
        return sorted(found)

    def find(self, alternatives: tuple[str, ...]) -> str | None:
        """The first of these paths that exists; the folder of each may be a glob."""
        for alternative in alternatives:
            folder, _, name = alternative.rpartition("/")
            found = self._listing(folder).get(name)
            if found is not None:
                return found
        return None

    def table(self, alternatives: tuple[str, ...]) -> tuple[list[Row], Path]:
        """Rows of the first table that exists, and its path; no row where there is none, which is a missing part."""
        for alternative in alternatives:
            name, _, keys = alternative.partition("#")
            found = self.find((name,))
            if found is not None:
                path = self.root / found
                if (path, keys) not in self._tables:
                    self._tables[path, keys] = read_rows(path, keys)
                return self._tables[path, keys], path
        names = [str(self.root / alternative.partition("#")[0]) for alternative in alternatives]
        message = f"no table {' or '.join(names)}"
        if message not in self.missing:
            self.missing.append(message)
        return [], self.root

    def _listing(self, folder: str) -> dict[str, str]:
        """Paths by file name in the folders that match a glob, the first folder winning."""
        # One listing of a folder of a hundred thousand files is far quicker than asking for each of them.
        if folder not in self._files:
            matches = sorted(self.root.glob(folder)) if _MAGIC & set(folder) else [self.root / folder]
            names: dict[str, str] = {}
            for path in matches:
                if path.is_dir():
                    below = path.relative_to(self.root).as_posix()
                    for entry in path.iterdir():
                        names.setdefault(entry.name, entry.name if below == "." else f"{below}/{entry.name}")
            self._files[folder] = names
        return self._files[folder]
