"""Progress of long work: a bar with rate and time left on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

T = TypeVar("T")

LINE_EVERY = 10.0  # seconds between plain lines


@dataclass
class _Stage:
    """When a stage began, what had been done before, and what was shown of it."""

    task: TaskID  # its bar
    started: float
    before: int
    printed: float
    done: int = 0


class ProgressDisplay:
    """A progress callback ``(stage, done, total, note)`` that shows each stage on standard error, unless `quiet`."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet, self._plain = quiet, quiet or not sys.stderr.isatty()
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}")
        self._bars = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=self._plain)
        self._stages: dict[str, _Stage] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._plain:
            self._bars.stop()

    def __call__(self, stage: str, done: int, total: int, note: str = "", /) -> None:
        """Show how far a stage is."""
        if self._quiet:
            return
        now = time.monotonic()
        state = self._stages.get(stage)
        if state is None or done < state.done:  # or the same stage of the next piece of work
            task = self._bars.add_task(stage, rate="") if state is None else state.task
            self._bars.reset(task)
            # What an interrupted run had done before is no measure of how fast this one is.
            state = self._stages[stage] = _Stage(task, now, done if done > 1 else 0, now)
        state.done = done
        elapsed, here = now - state.started, done - state.before
        rate = ", ".join([*([f"{here / elapsed:.1f}/s"] if elapsed > 0.5 else []), *([note] if note else [])])
        self._bars.update(state.task, completed=done, total=total, rate=rate)
        if self._plain and (done == total or now - state.printed >= LINE_EVERY):
            state.printed = now
            left = f"{elapsed / max(1, here) * (total - done):.0f} s left" if done < total else f"{elapsed:.1f} s"
            click.echo(", ".join(part for part in (f"{stage}: {done} / {total}", rate, left) if part), err=True)


def with_progress(work: Callable[..., T], *inputs: object, **options: object) -> T:
    """Call a function of the package with options of the command line, which have the same names, and show progress."""
    from anomalib_med import processes

    with ProgressDisplay(quiet=processes.number() > 0) as progress:
        return work(*inputs, progress=progress, **options)
