"""Statistics of anomaly maps: pixels and lesions. Takes maps one by one; memory does not grow with their number."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from anomalib_med.datasets.masks import read_mask
from anomalib_med.errors import ReadError
from anomalib_med.evaluation import froc
from anomalib_med.evaluation.curves import Floats
from anomalib_med.evaluation.intervals import patient_counts
from anomalib_med.evaluation.pixel_histograms import choose_edges, histogram, replicate_curve
from anomalib_med.evaluation.pixel_metrics import PIXEL_METRICS, PixelMetrics, best_dice_of_image
from anomalib_med.evaluation.replicates import Statistic
from anomalib_med.records import Progress, Result, Sample

_PEAK_RADIUS = 1 / 50  # of the longer side of the image: peaks nearer than that are one detection
SIZES = (("< 0.5 %", 0.0, 0.005), ("0.5-2 %", 0.005, 0.02), ("> 2 %", 0.02, np.inf))
"""Sizes of lesions as shares of their image: name, from, to below."""


class MapStatistics:
    """Counts maps exactly, and a second time by image for the intervals.

    Parameters
    ----------
    folder
        Empty; small copies of the maps are kept in it until `statistics`.
    samples
        All images; only those that were taken count.
    tasks
        "pixel": pixel metrics are wanted besides those of lesions.
    threshold
        Of the components of FROC's convention "overlap"; None leaves that out.

    Attributes
    ----------
    failures
        Images whose mask cannot be read, and why.
    """

    def __init__(self, folder: Path, samples: Sequence[Sample], tasks: Sequence[str], threshold: float | None) -> None:
        self.folder, self.samples, self.tasks, self.threshold = folder, samples, tasks, threshold
        self.failures: dict[str, str] = {}
        self._metrics = PixelMetrics()
        self._kept: list[tuple[int, Result]] = []
        self._dice: dict[int, float] = {}
        self._peaks: dict[int, froc.Found] = {}
        self._overlaps: dict[int, froc.Found] = {}

    def add(self, index: int, result: Result, map: np.ndarray) -> None:
        """Take the map of one image; one whose lesion is not known to lie anywhere is left out."""
        sample = self.samples[index]
        try:
            mask = read_mask(sample, (map.shape[0], map.shape[1]))
        except ReadError as error:
            self.failures[sample.id] = f"left out of the metrics of maps: {error}"
            return
        if mask is None:
            return
        lesions = list(sample.boxes) if sample.boxes else mask
        radius = max(2, round(_PEAK_RADIUS * max(map.shape)))
        self._peaks[index] = _relative(froc.found_by_peaks(map, lesions, radius), map.size)
        if self.threshold is not None:
            self._overlaps[index] = _relative(froc.found_by_overlap(map, lesions, self.threshold), map.size)
        if "pixel" in self.tasks:
            self._metrics.add(map, mask if mask.any() else None)
            if mask.any():
                self._dice[index] = best_dice_of_image(map, mask)
            assert result.grid is not None
            np.save(self.folder / f"{index}.npy", result.grid)
            light = Result(result.id, "", None, "", 0.0, geometry=result.geometry, smoothing=result.smoothing)
            self._kept.append((index, light))

    def statistics(self, progress: Progress) -> list[Statistic]:
        """Statistics of the maps taken; empty where no lesion was among them."""
        statistics = []
        at = np.array(sorted(self._peaks), int)
        peaks = [self._peaks[i] for i in at]
        with_lesions = [i for i in at if len(self._peaks[i].lesions)]
        if with_lesions:
            cases = self._patients(with_lesions)
            statistics.append(Statistic(lambda rows: _detected(peaks, rows[:, at]), cases))
            statistics += self._by_size(peaks, at)
            if self._overlaps:
                overlaps = [self._overlaps[i] for i in at]
                statistics.append(Statistic(lambda rows: _overlapped(overlaps, rows[:, at]), cases))
        if self._dice:
            statistics.append(self._pooled(progress))
            marked, values = np.array(list(self._dice)), np.array(list(self._dice.values()))
            cases = self._patients(marked)
            statistics.append(Statistic(lambda rows: {"dice_img (oracle)": _mean(rows[:, marked], values)}, cases))
        return statistics

    def _by_size(self, images: Sequence[froc.Found], at: np.ndarray) -> list[Statistic]:
        statistics = []
        for name, low, high in SIZES:
            chosen = [froc.of_size(found, low, high) for found in images]
            cases = self._patients([i for i, found in zip(at, chosen, strict=True) if len(found.lesions)])
            if cases:
                named = f"sensitivity@1fp/image (lesions {name})"
                statistics.append(Statistic(partial(_at_one, named, chosen, at), cases))
        return statistics

    def _pooled(self, progress: Progress) -> Statistic:
        curve = self._metrics.curve()
        edges = choose_edges(curve)
        histograms = []
        for done, (index, result) in enumerate(self._kept, 1):
            assert result.geometry is not None
            grid = np.load(self.folder / f"{index}.npy", allow_pickle=False)
            map = result.geometry.to_original(grid, result.smoothing)
            mask = read_mask(self.samples[index], (map.shape[0], map.shape[1]))
            assert mask is not None
            histograms.append(histogram(map, mask, edges))
            progress("intervals of maps", done, len(self._kept))
        at = np.array([index for index, _ in self._kept])
        labels = np.array([self.samples[i].label for i in at])
        cases = min(patient_counts(labels, [self.samples[i].patient for i in at]))

        def pooled(rows: Floats) -> Mapping[str, Floats]:
            drawn = replicate_curve(histograms, edges, rows[:, at])
            return {name: metric(drawn) for name, metric in PIXEL_METRICS.items()}

        return Statistic(pooled, cases, {name: float(metric(curve)) for name, metric in PIXEL_METRICS.items()})

    def _patients(self, indices: Sequence[int] | np.ndarray) -> int:
        return len({self.samples[i].patient for i in indices})


def _relative(found: froc.Found, pixels: int) -> froc.Found:
    """Sizes as shares of the image."""
    return froc.Found(found.lesions, found.sizes / pixels, found.false)


def _detected(images: Sequence[froc.Found], rows: Floats) -> Mapping[str, Floats]:
    curve = froc.froc_curve(images, rows)
    return {"froc_cpm": froc.cpm(curve), "sensitivity@1fp/image": froc.sensitivity_at(curve, 1.0)}


def _at_one(name: str, images: Sequence[froc.Found], at: np.ndarray, rows: Floats) -> Mapping[str, Floats]:
    return {name: froc.sensitivity_at(froc.froc_curve(images, rows[:, at]), 1.0)}


def _overlapped(images: Sequence[froc.Found], rows: Floats) -> Mapping[str, Floats]:
    return {"froc_cpm (overlap)": froc.cpm(froc.froc_curve(images, rows))}


def _mean(rows: Floats, values: np.ndarray) -> Floats:
    with np.errstate(invalid="ignore"):
        return np.asarray((rows @ values) / rows.sum(axis=1))
