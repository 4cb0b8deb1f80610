"""The pictures of a bench: ROC curves with bands, and accuracy against throughput."""

import io
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from anomalib_med.bench.cells import headline
from anomalib_med.bench.sheet import TITLES
from anomalib_med.bench.summary import Row
from anomalib_med.evaluation.curves import Curve, Floats, curve_of
from anomalib_med.evaluation.intervals import draws

GRID = np.linspace(0, 1, 101)
_BAND_REPLICATES = 300
_MOST_CURVES = 8  # more cannot be told apart


def roc_figure(rows: Sequence[Row], title: str) -> Figure:
    """ROC curves of the methods of one data set: mean over seeds, and the band that 95 % of draws of patients fill.

    Trivial baselines are drawn thin and without band.
    """
    figure = Figure(figsize=(5.2, 4.6), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="0.8", linewidth=1)
    judged = [row for row in rows if row.cells and "auroc" in row.numbers]
    methods = sorted((r for r in judged if not r.baseline), key=lambda r: -r.numbers["auroc"].interval.value)
    for row in methods[:_MOST_CURVES]:
        mean, low, high = roc_band(row)
        label = f"{row.method}  {row.numbers['auroc'].interval}"
        (line,) = axes.plot(GRID, mean, linewidth=1.8, label=label)
        axes.fill_between(GRID, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    for number, row in enumerate(r for r in judged if r.baseline):
        label = "_" if number else "trivial baselines"
        axes.plot(GRID, roc_band(row)[0], color="0.6", linewidth=0.8, linestyle=":", label=label)
    axes.set(xlabel="False-positive rate", ylabel="Sensitivity", title=title, xlim=(0, 1), ylim=(0, 1.01))
    if methods:
        axes.legend(fontsize=7, loc="lower right", frameon=False)
    return figure


def roc_band(row: Row) -> tuple[Floats, Floats, Floats]:
    """Sensitivity at each rate of `GRID`: mean over seeds, and the ends of its band over draws of patients."""
    values, drawn = [], []
    for cell in row.cells:
        values.append(_sensitivities(curve_of(cell.labels, cell.scores)))
        rows = np.concatenate(list(draws(cell.labels, cell.patients, replicates=_BAND_REPLICATES, seed=0)))
        drawn.append(_sensitivities(curve_of(cell.labels, cell.scores, rows)))
    low, high = np.quantile(np.mean(drawn, axis=0), [0.025, 0.975], axis=0)
    return np.mean(values, axis=0), low, high


def throughput_figure(rows: Sequence[Row], title: str) -> Figure:
    """Accuracy against images a second: the `headline` metric of each method with its interval."""
    figure = Figure(figsize=(5.2, 4.0), layout="constrained")
    axes = figure.add_subplot()
    metric = headline(name for row in rows for name in row.numbers)
    speeds = []
    for row in rows:
        speed = row.mean_of("images_per_s")
        if row.baseline or metric not in row.numbers or math.isnan(speed):
            continue
        m = row.numbers[metric].interval
        error = [[max(0.0, m.value - m.low)], [max(0.0, m.high - m.value)]]
        axes.errorbar(speed, m.value, yerr=error, fmt="o", capsize=3, markersize=5)
        axes.annotate(row.method, (speed, m.value), xytext=(6, 3), textcoords="offset points", fontsize=7)
        speeds.append(speed)
    axes.set(xlabel="Images a second (log scale)", ylabel=TITLES.get(metric, ""), title=title, xscale="log")
    if speeds:
        axes.set_xlim(min(speeds) / 2, max(speeds) * 4)  # room for the names
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.25)
    return figure


def figures(rows: Sequence[Row], dataset: str) -> dict[str, bytes]:
    """The pictures of one data set as PNG by the ending of their file name; without a method measured there are none.

    `rows` are those of the data set.
    """
    drawn = {}
    if any("auroc" in row.numbers for row in rows):
        drawn["roc"] = _png(roc_figure(rows, f"{dataset}: ROC"))
    if any(row.numbers and not row.baseline for row in rows):
        drawn["speed"] = _png(throughput_figure(rows, f"{dataset}: accuracy and speed"))
    return drawn


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _sensitivities(curve: Curve) -> Floats:
    """Sensitivity at each rate of `GRID`, by linear interpolation, ``(..., 101)``."""
    both = zip(np.atleast_2d(curve.fpr), np.atleast_2d(curve.tpr), strict=True)
    lines = np.array([np.interp(GRID, np.append(0, x), np.append(0, y)) for x, y in both])
    return lines.reshape(*curve.tp.shape[:-1], len(GRID))
