"""Statistics of anomaly maps: pixels and lesions. Takes maps one by one; memory does not grow with their number."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from anomalib_med.datasets.masks import read_mask
from anomalib_med.errors import ReadError
from anomalib_med.evaluation import froc
from anomalib_med.evaluation.curves import Floats, values_of
from anomalib_med.evaluation.intervals import Statistic, patient_counts, ratio
from anomalib_med.evaluation.pixel_metrics import (
    PIXEL_METRICS,
    PixelMetrics,
    best_dice_of_image,
    choose_edges,
    histogram,
    replicate_curve,
)
from anomalib_med.records import Geometry, Progress, Result, Sample

_PEAK_RADIUS = 1 / 50  # of the longer side of the image: peaks nearer than that are one detection
SIZES = (("< 0.5 %", 0.0, 0.005), ("0.5-2 %", 0.005, 0.02), ("> 2 %", 0.02, np.inf))
"""Sizes of lesions as shares of their image: name, from, to below."""


class MapStatistics:
    """Counts maps exactly, and a second time by image for the intervals.

    Parameters
    ----------
    folder
        Empty folder; small copies of maps are kept in it until `statistics`.
    samples
        All images; only those that were taken count.
    tasks
        Pixel metrics are wanted besides those of lesions where "pixel" is among them.
    threshold
        Threshold of the components of FROC's convention "overlap"; None leaves that out.
    """

    def __init__(self, folder: Path, samples: Sequence[Sample], tasks: Sequence[str], threshold: float | None) -> None:
        self.folder, self.samples, self.tasks, self.threshold = folder, samples, tasks, threshold
        self._metrics = PixelMetrics()
        # What brings the copy of a map back to its image, and the mask, which takes a kilobyte when it is packed.
        self._kept: dict[int, tuple[Geometry, float, bytes]] = {}
        self._dice: dict[int, float] = {}
        self._peaks: dict[int, froc.Found] = {}
        self._overlaps: dict[int, froc.Found] = {}
        self.failures: dict[str, str] = {}
        """Images whose mask cannot be read, by id, and why."""

    def add(self, index: int, result: Result, map: np.ndarray) -> None:
        """Take the map ``(H, W)`` of sample number `index`, if it is known where lesions are in it."""
        sample = self.samples[index]
        try:
            mask = read_mask(sample, (map.shape[0], map.shape[1]))
        except ReadError as error:
            self.failures[sample.id] = f"left out of the metrics of maps: {error}"
            return
        if mask is None:
            return
        lesions = sample.boxes or mask
        peaks = froc.found_by_peaks(map, lesions, max(2, round(_PEAK_RADIUS * max(map.shape))))
        self._peaks[index] = replace(peaks, sizes=peaks.sizes / map.size)
        if self.threshold is not None:
            self._overlaps[index] = froc.found_by_overlap(map, lesions, self.threshold)
        if "pixel" in self.tasks:
            self._metrics.add(map, mask if mask.any() else None)
            if mask.any():
                self._dice[index] = best_dice_of_image(map, mask)
            assert result.grid is not None and result.geometry is not None
            np.save(self.folder / f"{index}.npy", result.grid)
            self._kept[index] = result.geometry, result.smoothing, zlib.compress(np.packbits(mask).tobytes())

    def statistics(self, progress: Progress) -> list[Statistic]:
        """Statistics of the maps taken; empty where no lesion was among them."""
        at_one = partial(froc.sensitivity_at, false_per_image=1.0)
        statistics = self._lesions(self._peaks, {"froc_cpm": froc.cpm, "sensitivity@1fp/image": at_one})
        for name, low, high in SIZES:
            chosen = {i: image.of_size(low, high) for i, image in self._peaks.items()}
            statistics += self._lesions(chosen, {f"sensitivity@1fp/image (lesions {name})": at_one})
        statistics += self._lesions(self._overlaps, {"froc_cpm (overlap)": froc.cpm})
        if self._dice:
            statistics += [self._pooled(progress), self._best_dice()]
        return statistics

    def _lesions(self, images: Mapping[int, froc.Found], metrics: Mapping[str, froc.FrocMetric]) -> list[Statistic]:
        """Metrics of a FROC curve, where there is a lesion."""
        cases = len({self.samples[i].patient for i, image in images.items() if len(image.lesions)})
        at = np.array(sorted(images), int)
        return [froc.lesion_statistic([images[i] for i in at], at, metrics, cases)] if cases else []

    def _best_dice(self) -> Statistic:
        at, dice = np.array(list(self._dice)), np.array(list(self._dice.values()))
        return ratio("dice_img (oracle)", at, dice, np.ones(len(at)), len({self.samples[i].patient for i in at}))

    def _pooled(self, progress: Progress) -> Statistic:
        curve = self._metrics.curve()
        edges = choose_edges(curve)
        histograms = []
        for done, (index, (geometry, smoothing, packed)) in enumerate(self._kept.items(), 1):
            map = geometry.to_original(np.load(self.folder / f"{index}.npy", allow_pickle=False), smoothing)
            bits = np.frombuffer(zlib.decompress(packed), np.uint8)
            histograms.append(histogram(map, np.unpackbits(bits, count=map.size).reshape(map.shape), edges))
            progress("intervals of maps", done, len(self._kept))
        at = np.array(list(self._kept))
        labels = np.array([self.samples[i].label for i in at])
        cases = min(patient_counts(labels, [self.samples[i].patient for i in at]))

        def pooled(rows: Floats) -> Mapping[str, Floats]:
            drawn = replicate_curve(histograms, edges, rows[:, at])
            return {name: metric(drawn) for name, metric in PIXEL_METRICS.items()}

        return Statistic(pooled, cases, values_of(PIXEL_METRICS, curve))
