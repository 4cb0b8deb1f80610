"""Histogram of scores, gathered one score at a time and laid out for an SVG."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

import numpy as np

BINS = 48
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 1120, 270, 46, 12, 26, 34
"""Size of the drawing and the margins around its plot, in SVG units."""


@dataclass(frozen=True, slots=True)
class Series:
    """One group of images: name, CSS class, how many, and the share of them in each bin."""

    name: str
    style: str
    count: int
    shares: np.ndarray


@dataclass(slots=True)
class Histogram:
    """Shares of images by score between `lo` and `hi`; scores above `hi` count in the last bin.

    Parameters
    ----------
    lo, hi
        Ends of the axis.
    threshold
        Where to draw the line, or None.
    overflow
        Whether some scores lie above `hi`.
    series
        The groups added.
    """

    lo: float
    hi: float
    threshold: float | None
    overflow: bool
    series: list[Series] = field(default_factory=list)

    @classmethod
    def over(cls, normals: np.ndarray, scores: Iterable[float], threshold: float | None) -> Self | None:
        """An empty histogram that spans the finite values; None where there are none.

        The axis ends at four times the spread of the normals above them, lest one wild score squeeze the rest together.
        """
        lo, hi = math.inf, -math.inf
        for score in scores:
            if math.isfinite(score):
                lo, hi = min(lo, score), max(hi, score)
        known = [float(value) for value in normals if math.isfinite(value)]
        if threshold is not None and math.isfinite(threshold):
            known.append(threshold)
        highest = hi
        if known:
            lo, hi = min(lo, *known), max(hi, *known)
            spread = max(known) - min(known)
            hi = min(hi, max(known) + 4 * spread) if spread > 0 else hi
        if not lo <= hi:
            return None
        if lo == hi:
            margin = abs(lo) / 20 or 0.5
            lo, hi = lo - margin, hi + margin
        return cls(lo, hi, threshold, highest > hi)

    def add(self, name: str, style: str, scores: Iterable[float]) -> None:
        """Add a group; one without a finite score is left out."""
        counts = np.zeros(BINS, np.int64)
        for score in scores:
            if math.isfinite(score):
                counts[min(int((score - self.lo) / (self.hi - self.lo) * BINS), BINS - 1)] += 1
        total = int(counts.sum())
        if total:
            self.series.append(Series(name, style, total, counts / total))

    @property
    def frame(self) -> dict[str, int]:
        """Size and ends of the plot in SVG units, by name."""
        return {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT, "labels": HEIGHT - BOTTOM + 20}

    @property
    def top(self) -> float:
        """The largest share of any bin: the upper end of the vertical axis."""
        return max((float(series.shares.max()) for series in self.series), default=1.0)

    def x(self, score: float) -> float:
        """Horizontal position of a score, kept inside the plot."""
        share = (score - self.lo) / (self.hi - self.lo)
        return LEFT + min(max(share, 0.0), 1.0) * (WIDTH - LEFT - RIGHT)

    def y(self, share: float) -> float:
        """Vertical position of a share of images."""
        return HEIGHT - BOTTOM - share / self.top * (HEIGHT - TOP - BOTTOM)

    def outline(self, series: Series) -> str:
        """SVG path of a group: steps along its bins, closed at the base line."""
        width = (WIDTH - LEFT - RIGHT) / BINS
        steps = " ".join(
            f"L{LEFT + i * width:.1f},{self.y(share):.1f} H{LEFT + (i + 1) * width:.1f}"
            for i, share in enumerate(series.shares)
        )
        return f"M{LEFT},{self.y(0):.1f} {steps} V{self.y(0):.1f} Z"

    def ticks(self, about: int = 7) -> list[float]:
        """Round scores to label on the axis."""
        raw = (self.hi - self.lo) / about
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
        first, last = math.ceil(self.lo / step), math.floor(self.hi / step)
        return [round(i * step, 12) for i in range(first, last + 1)]
