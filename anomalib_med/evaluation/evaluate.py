"""Evaluate a fitted model on labelled images: every metric with its interval, from one pass over the images.

What is measured follows from what is known: image metrics always; decisions where the model is calibrated; patients
where a patient has several images; pixels and lesions where masks or boxes are there. All intervals come from the same
draws of patients, so replicates of two models on the same images are paired.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from anomalib_med.datasets.masks import has_mask, read_mask
from anomalib_med.datasets.sample import Sample
from anomalib_med.errors import InputError, ReadError
from anomalib_med.evaluation import froc, patients
from anomalib_med.evaluation.curves import Floats, curve_of
from anomalib_med.evaluation.image_metrics import RANKING_METRICS
from anomalib_med.evaluation.intervals import LEVEL, Interval, draws, percentile_interval, wilson
from anomalib_med.evaluation.pixel_histograms import choose_edges, histogram, replicate_curve
from anomalib_med.evaluation.pixel_metrics import PIXEL_METRICS, PixelMetrics, best_dice_of_image
from anomalib_med.fitted import DEFAULT_RATE, FittedModel
from anomalib_med.models.base import Progress, silent
from anomalib_med.outputs.result import Result

REPLICATES = 1000
_PEAK_RADIUS = 1 / 50  # of the longer side of the image: peaks nearer than that are one detection

Statistic = Callable[[Floats], Mapping[str, Floats]]
"""From image weights ``(r, N)`` to values ``(r,)`` by name of the metric."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was measured.

    Parameters
    ----------
    ids, labels, patients, scores
        Of the images that could be scored; `patients` are numbers, only equality matters.
    flagged
        Decisions at the false-alarm rate, None without calibration.
    metrics
        Value and interval by name.
    replicates
        Of each metric ``(R,)``: the same draws of patients for every model on the same samples.
    failures
        Images that could not be scored, and why.
    seconds
        Spent on scoring, reading included and metrics left out.
    """

    ids: list[str]
    labels: np.ndarray
    patients: np.ndarray
    scores: np.ndarray
    flagged: np.ndarray | None
    metrics: dict[str, Interval]
    replicates: dict[str, Floats]
    failures: dict[str, str]
    seconds: float


def evaluate_model(
    model: FittedModel,
    samples: Sequence[Sample],
    *,
    tasks: Sequence[str] = ("image", "pixel", "box"),
    false_alarm_rate: float = DEFAULT_RATE,
    aggregation: str = "max",
    replicates: int = REPLICATES,
    level: float = LEVEL,
    progress: Progress = silent,
) -> Evaluation:
    """Score labelled images and measure.

    Parameters
    ----------
    model
        A fitted model.
    samples
        Labelled 0 or 1, both among them. Those without a label are refused.
    tasks
        "pixel": metrics of maps where masks are known; "box": FROC where masks or boxes are known.
    false_alarm_rate
        Of the decisions, from the model's held-out normals.
    aggregation
        From images to patients, see :func:`.patients.aggregate`.
    replicates, level
        Of the intervals.
    progress
        Called with stage, done and total.

    Raises
    ------
    InputError
        Samples without label, or of one kind only.
    """
    unlabelled = [sample.id for sample in samples if sample.label not in (0, 1)]
    if unlabelled:
        raise InputError(f"{len(unlabelled)} images have no label, first {unlabelled[0]}: label them 0 or 1")
    if len({sample.label for sample in samples}) < 2:
        raise InputError("normal and abnormal images are needed to evaluate: give some of both")
    located = [s for s in samples if s.label == 1 and has_mask(s)]
    with TemporaryDirectory(prefix="anomed-maps-") as folder:
        pixels = _Pixels(Path(folder), tasks) if located and {"pixel", "box"} & set(tasks) else None
        scored, seconds = _scored(model, samples, false_alarm_rate, pixels, progress)
        kept = [i for i, result in enumerate(scored) if result.ok]
        labels = np.array([sample.label for sample in samples])
        whose = np.unique([sample.patient for sample in samples], return_inverse=True)[1]
        scores = np.array([scored[i].score for i in kept])
        if len(np.unique(labels[kept])) < 2:
            reason = next((r.status for r in scored if not r.ok), "")
            raise InputError(f"too few images could be read to evaluate, first: {reason}")
        flagged = np.array([bool(scored[i].flagged) for i in kept]) if model.calibration is not None else None
        statistics = _statistics(labels[kept], scores, flagged, whose[kept], np.array(kept), aggregation)
        exact: dict[str, float] = {}
        failures = {result.id: result.status for result in scored if not result.ok}
        if pixels is not None:
            statistics += pixels.statistics(progress)
            exact, failures = pixels.exact, failures | pixels.failures
        values, drawn = replicated(labels, whose, statistics, replicates)
    metrics = {
        name: _interval(exact.get(name, values[name]), drawn[name], level, len(np.unique(whose[kept])))
        for name in values
    }
    return Evaluation(
        [samples[i].id for i in kept],
        labels[kept],
        whose[kept],
        scores,
        flagged,
        metrics,
        drawn,
        failures,
        seconds,
    )


def evaluate_scores(
    labels: np.ndarray, patients: np.ndarray, scores: np.ndarray, *, replicates: int = REPLICATES, level: float = LEVEL
) -> tuple[dict[str, Interval], dict[str, Floats]]:
    """Image metrics of scores that are there already, with the draws of `evaluate_model`.

    Parameters
    ----------
    labels, patients
        Of each image, ``(N,)``.
    scores
        ``(N,)``; images with NaN are left out.
    replicates, level
        Of the intervals.

    Returns
    -------
    Intervals and replicates by name of the metric.
    """
    kept = np.flatnonzero(np.isfinite(scores))
    whose = np.unique(patients, return_inverse=True)[1]
    statistics = _statistics(labels[kept], scores[kept], None, np.arange(len(kept)), kept, "max")
    values, drawn = replicated(labels, whose, statistics, replicates)
    return {name: _interval(values[name], drawn[name], level, len(kept)) for name in values}, drawn


def replicated(
    labels: np.ndarray, whose: np.ndarray, statistics: Sequence[Statistic], replicates: int
) -> tuple[dict[str, float], dict[str, Floats]]:
    """The value of every statistic, and its replicates."""
    values = {name: float(v[0]) for s in statistics for name, v in s(np.ones((1, len(labels)))).items()}
    drawn: dict[str, list[Floats]] = {name: [] for name in values}
    for rows in draws(labels, whose, replicates=replicates, seed=0):
        for statistic in statistics:
            for name, value in statistic(rows).items():
                drawn[name].append(np.asarray(value))
    return values, {name: np.concatenate(parts) for name, parts in drawn.items()}


def _interval(value: float, drawn: Floats, level: float, cases: int) -> Interval:
    """Percentiles; a share that no replicate changes, being 0 or 1, has Wilson's interval instead."""
    interval = percentile_interval(value, drawn, level)
    if interval.low == interval.high and value in (0.0, 1.0):
        edge = wilson(round(value * cases), cases, level)
        return Interval(value, edge.low, edge.high)
    return interval


def _scored(
    model: FittedModel, samples: Sequence[Sample], rate: float, pixels: "_Pixels | None", progress: Progress
) -> tuple[list[Result], float]:
    """Results without their maps, which go to `pixels`; and the seconds that scoring took."""
    results: list[Result] = []
    seconds = 0.0
    stream = model.score_each(samples, false_alarm_rate=rate, progress=progress)
    for index, sample in enumerate(samples):
        start = time.perf_counter()
        result, _ = next(stream)
        map = result.anomaly_map() if result.ok else None
        seconds += time.perf_counter() - start
        if pixels is not None and map is not None:
            pixels.add(index, sample, result, map)
        # The map would be held for nothing.
        results.append(
            Result(result.id, result.path, result.frame, result.patient, result.score, result.p_value, result.flagged,
                   result.status)
        )  # fmt: skip
    return results, seconds


def _statistics(
    labels: np.ndarray,
    scores: np.ndarray,
    flagged: np.ndarray | None,
    whose: np.ndarray,
    kept: np.ndarray,
    aggregation: str,
) -> list[Statistic]:
    """Statistics of images, of decisions, and of patients where they differ from images."""

    def images(rows: Floats) -> Mapping[str, Floats]:
        curve = curve_of(labels, scores, rows[:, kept])
        return {name: metric(curve) for name, metric in RANKING_METRICS.items()}

    statistics: list[Statistic] = [images]
    if flagged is not None:
        statistics.append(lambda rows: _decided(labels.astype(float), flagged.astype(float), rows[:, kept]))
    if len(np.unique(whose)) < len(whose):
        numbers, first = np.unique(whose, return_index=True)
        joined = patients.aggregate(labels, scores, [f"{n:09}" for n in whose], aggregation)
        assert len(joined.patients) == len(numbers)
        statistics.append(lambda rows: _of_patients(joined, rows[:, kept[first]]))
    return statistics


def _decided(y: Floats, f: Floats, rows: Floats) -> Mapping[str, Floats]:
    tp, positives = rows @ (y * f), rows @ y
    fp, negatives = rows @ ((1 - y) * f), rows @ (1 - y)
    return {
        "sensitivity": tp / positives,
        "false_alarm_rate": fp / negatives,
        "accuracy": (tp + negatives - fp) / (positives + negatives),
        "f1": 2 * tp / (tp + fp + positives),
        "flagged_rate": (tp + fp) / (positives + negatives),
    }


def _of_patients(joined: patients.PatientScores, rows: Floats) -> Mapping[str, Floats]:
    if len(np.unique(joined.labels)) < 2:
        return {}
    plain = curve_of(joined.labels, joined.scores, rows)
    ptp = curve_of(joined.labels, joined.scores, rows * patients.prevalence_weights(joined.labels))
    values = {f"patient_{name}": metric(plain) for name, metric in RANKING_METRICS.items()}
    return values | {f"ptp_{name}": RANKING_METRICS[name](ptp) for name in ("ap", "f1_max (oracle)")}


class _Pixels:
    """Takes maps as they come; counts them exactly, and a second time by image for the intervals."""

    def __init__(self, folder: Path, tasks: Sequence[str]) -> None:
        self.folder, self.tasks = folder, tasks
        self.exact: dict[str, float] = {}
        self.failures: dict[str, str] = {}
        self._metrics = PixelMetrics()
        self._kept: list[tuple[int, Sample, Result]] = []
        self._dice: dict[int, float] = {}
        self._found: dict[int, froc.Found] = {}

    def add(self, index: int, sample: Sample, result: Result, map: np.ndarray) -> None:
        """Take the map of one image; one whose lesion is not known to lie anywhere is left out."""
        try:
            mask = read_mask(sample, (map.shape[0], map.shape[1]))
        except ReadError as error:
            self.failures[sample.id] = f"left out of the metrics of maps: {error}"
            return
        if mask is None:
            return
        lesions = list(sample.boxes) if sample.boxes else mask
        radius = max(2, round(_PEAK_RADIUS * max(map.shape)))
        self._found[index] = froc.found_by_peaks(map, lesions, radius)
        if "pixel" in self.tasks:
            self._metrics.add(map, mask if mask.any() else None)
            if mask.any():
                self._dice[index] = best_dice_of_image(map, mask)
            assert result.grid is not None
            np.save(self.folder / f"{index}.npy", result.grid)
            light = Result(result.id, "", None, "", 0.0, geometry=result.geometry, smoothing=result.smoothing)
            self._kept.append((index, sample, light))

    def statistics(self, progress: Progress) -> list[Statistic]:
        """Statistics of the maps taken; empty where no lesion was among them."""
        statistics: list[Statistic] = []
        at = np.array(sorted(self._found))
        images = [self._found[i] for i in at]
        if sum(len(f.lesions) for f in images):
            statistics.append(lambda rows: _detected(images, rows[:, at]))
        if self._dice:
            statistics.append(self._pooled(progress))
            of_lesions, values = np.array(list(self._dice)), np.array(list(self._dice.values()))
            statistics.append(lambda rows: {"dice_img (oracle)": _mean(rows[:, of_lesions], values)})
        return statistics

    def _pooled(self, progress: Progress) -> Statistic:
        curve = self._metrics.curve()
        self.exact = {name: float(metric(curve)) for name, metric in PIXEL_METRICS.items()}
        edges = choose_edges(curve)
        histograms = []
        for done, (index, sample, result) in enumerate(self._kept, 1):
            assert result.geometry is not None
            grid = np.load(self.folder / f"{index}.npy", allow_pickle=False)
            map = result.geometry.to_original(grid, result.smoothing)
            mask = read_mask(sample, (map.shape[0], map.shape[1]))
            assert mask is not None
            histograms.append(histogram(map, mask, edges))
            progress("intervals of maps", done, len(self._kept))
        at = np.array([index for index, _, _ in self._kept])

        def pooled(rows: Floats) -> Mapping[str, Floats]:
            drawn = replicate_curve(histograms, edges, rows[:, at])
            return {name: metric(drawn) for name, metric in PIXEL_METRICS.items()}

        return pooled


def _detected(images: Sequence[froc.Found], rows: Floats) -> Mapping[str, Floats]:
    curve = froc.froc_curve(images, rows)
    return {"froc_cpm": froc.cpm(curve), "sensitivity@1fp/image": froc.sensitivity_at(curve, 1.0)}


def _mean(rows: Floats, values: np.ndarray) -> Floats:
    with np.errstate(invalid="ignore"):
        return np.asarray((rows @ values) / rows.sum(axis=1))
