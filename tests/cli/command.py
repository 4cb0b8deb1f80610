"""Runs the command inside this process and says what came of it."""

import csv
import io
import re
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from anomalib_med.cli.main import main

SMALL_FIT = ("--weights", "random", "--size", "64", "-s", "bank_size=100", "--device", "cpu")


@dataclass(frozen=True)
class Outcome:
    """Exit code, standard output and standard error of a command."""

    code: int
    out: str
    err: str


def anomed(*arguments: object) -> Outcome:
    """Run ``anomed`` with these arguments."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = main([str(argument) for argument in arguments])
    return Outcome(code, out.getvalue(), err.getvalue())


def assert_refused(outcome: Outcome, message: str, code: int = 2) -> None:
    """The command ended with this code and one line that matches `message`; no traceback, nothing done."""
    said = [line for line in outcome.err.splitlines() if not line.startswith("anomed: warning: ")]
    lines = [line for line in said if not re.match(r"[a-z -]+: \d+ / \d+, ", line)]  # progress
    assert outcome.code == code, outcome.err
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("anomed: ")
    assert re.search(message, lines[0]), lines[0]
    assert "Traceback" not in outcome.err


def rows(table: Path) -> list[dict[str, str]]:
    """The rows of a CSV table."""
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
