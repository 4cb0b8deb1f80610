"""Histogram of scores, drawn as an SVG that follows the colours of the page around it."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

BINS = 48
GROUPS = {
    "calibration": "Calibration normals",
    "scored": "Scored images",
    "normal": "Scored, labelled normal",
    "abnormal": "Scored, labelled abnormal",
    "unlabelled": "Scored, no label",
}
"""What a group of images is called, by the id of its bars in the SVG, in the order in which they are drawn."""


@dataclass(slots=True)
class Histogram:
    """How many images of each group lie in each bin between `lo` and `hi`; scores above `hi` count in the last bin."""

    lo: float
    hi: float
    threshold: float | None  # score at which a line is drawn
    overflow: bool  # whether some scores lie above `hi`
    counts: dict[str, np.ndarray]  # of each group, int (BINS,)

    @classmethod
    def of(cls, groups: Mapping[str, Sequence[float]], threshold: float | None) -> Self | None:
        """The histogram of the finite scores of each group, "calibration" among them; None where none is finite.

        The axis ends at four times the spread of the normals above them, so that one wild score squeezes nothing.
        """
        scores = {
            group: np.array([score for score in given if math.isfinite(score)]) for group, given in groups.items()
        }
        line = [] if threshold is None or not math.isfinite(threshold) else [threshold]
        known = np.append(scores["calibration"], line)
        every = np.concatenate([known, *scores.values()])
        if not every.size:
            return None
        lo, hi = float(every.min()), float(every.max())
        if known.size and known.max() > known.min():
            hi = min(hi, float(known.max() + 4 * (known.max() - known.min())))
        overflow = bool(every.max() > hi)
        if lo == hi:
            margin = abs(lo) / 20 or 0.5
            lo, hi = lo - margin, hi + margin
        bins = {group: np.minimum((own - lo) / (hi - lo) * BINS, BINS - 1).astype(int) for group, own in scores.items()}
        counts = {group: np.bincount(numbers, minlength=BINS) for group, numbers in bins.items()}
        return cls(lo, hi, threshold, overflow, counts)

    @property
    def totals(self) -> dict[str, int]:
        """How many images each group has, without groups that have none."""
        return {group: int(counts.sum()) for group, counts in self.counts.items() if counts.any()}

    def svg(self) -> str:
        """The histogram as an SVG element: the share of each group's images in each bin, and the threshold.

        It holds no link and no date. The bars of a group have its id, the threshold the id "threshold".
        """
        import matplotlib
        from matplotlib.figure import Figure

        with matplotlib.rc_context({"svg.hashsalt": "anomed", "svg.fonttype": "none", "font.size": 12}):
            figure = Figure(figsize=(15.5, 3.6), layout="constrained")
            axes = figure.add_subplot()
            for group, total in self.totals.items():
                edges = np.linspace(self.lo, self.hi, BINS + 1)
                axes.stairs(self.counts[group] / total, edges, fill=True, gid=group, clip_on=False)
            if self.threshold is not None:
                at = min(max(self.threshold, self.lo), self.hi)
                left = at - self.lo > 0.8 * (self.hi - self.lo)
                axes.axvline(at, gid="threshold", clip_on=False)
                text, offset = f"threshold {self.threshold:.4g}", (-6 if left else 6, -2)
                note = axes.annotate(text, (at, 1), offset, axes.get_xaxis_transform(), "offset points")
                note.set(ha="right" if left else "left", va="top", weight="bold")
            axes.set_xlim(self.lo, self.hi)
            axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
            axes.locator_params(axis="y", nbins=5)
            axes.grid(axis="y", color="0.5", alpha=0.25, clip_on=False)
            axes.tick_params(bottom=False, left=False)
            axes.spines[["top", "left", "right"]].set_visible(False)
            axes.spines.bottom.set_color("0.5")
            figure.patch.set_visible(False)
            axes.patch.set_visible(False)
            page = io.StringIO()
            figure.savefig(page, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        svg = page.getvalue()
        return re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg[svg.index("<svg") :])
