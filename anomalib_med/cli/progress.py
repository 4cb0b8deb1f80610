"""Progress of long work: a bar with rate and time left on a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

LINE_EVERY = 10.0  # seconds between plain lines


class ProgressDisplay:
    """A progress callback ``(stage, done, total, note)`` that shows each stage on standard error, unless `quiet`."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._live = sys.stderr.isatty() and not quiet
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, tuple[float, int]] = {}
        self._printed: dict[str, float] = {}
        self._done: dict[str, int] = {}

    def __enter__(self) -> "ProgressDisplay":
        if self._live:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
            )
            self._bars = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, stage: str, done: int, total: int, note: str = "", /) -> None:
        """Show how far a stage is."""
        if self._quiet:
            return
        now = time.monotonic()
        if done < self._done.get(stage, 0):  # the same stage of the next piece of work
            self._forget(stage)
        self._done[stage] = done
        # What an interrupted run had done before is no measure of how fast this one is.
        start, before = self._started.setdefault(stage, (now, done if done > 1 else 0))
        elapsed, here = now - start, done - before
        rate = f"{here / elapsed:.1f}/s" if elapsed > 0.5 else ""
        if note:
            rate = f"{rate}, {note}" if rate else note
        if self._bars is not None:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage, total=total, rate="")
            self._bars.update(self._tasks[stage], completed=done, total=total, rate=rate)
        elif done == total or now - self._printed.setdefault(stage, now) >= LINE_EVERY:
            left = f", {elapsed / max(1, here) * (total - done):.0f} s left" if done < total else f", {elapsed:.1f} s"
            click.echo(f"{stage}: {done} / {total}{', ' + rate if rate else ''}{left}", err=True)
            self._printed[stage] = now

    def _forget(self, stage: str) -> None:
        del self._started[stage]
        self._printed.pop(stage, None)
        if self._bars is not None:
            self._bars.reset(self._tasks[stage])
