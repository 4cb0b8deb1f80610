"""Evaluate a fitted model on labelled images: every metric with its interval, from one pass over the images.

What is measured follows from what is known: image metrics where images are labelled normal and abnormal; decisions
where the model is calibrated; patients where a patient has several images; pixels and lesions where masks or boxes are
there. All intervals come from the same draws of patients, so replicates of two models on the same images are paired.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from anomalib_med.datasets.masks import has_mask, read_mask
from anomalib_med.errors import InputError, ReadError
from anomalib_med.evaluation.image_statistics import image_statistics
from anomalib_med.evaluation.intervals import LEVEL, Interval, Measured, replicated
from anomalib_med.evaluation.map_statistics import MapStatistics
from anomalib_med.evaluation.patients import aggregated_share
from anomalib_med.fitted import DEFAULT_RATE, FittedModel
from anomalib_med.records import Progress, Result, Sample, silent

REPLICATES = 1000
TASKS = ("image", "pixel", "box")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was measured.

    Parameters
    ----------
    ids, labels, patients, scores
        Of the images that could be scored; `patients` are numbers, only equality matters.
    flagged
        Decisions at the false-alarm rate, None without calibration.
    measured
        Every metric with its interval, its replicates and the patients behind it.
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
    measured: Measured
    failures: dict[str, str]
    seconds: float

    @property
    def metrics(self) -> dict[str, Interval]:
        """Value and interval of each metric by name."""
        return self.measured.metrics


def evaluate_model(
    model: FittedModel,
    samples: Sequence[Sample],
    *,
    tasks: Sequence[str] = TASKS,
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
        Labelled 0 or 1; those without a label are refused.
    tasks
        "image": metrics of images, which need both kinds; "pixel": metrics of maps where masks are known; "box": FROC
        where masks or boxes are known.
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
        As `evaluate_results`.
    ConfigError
        An aggregation that is not known.
    """
    _check(samples, tasks)
    aggregated_share(aggregation)
    stream = model.score_each(samples, false_alarm_rate=false_alarm_rate, progress=progress)
    return evaluate_results(
        (result for result, _ in stream),
        samples,
        tasks=tasks,
        map_threshold=model.normal_peak,
        aggregation=aggregation,
        replicates=replicates,
        level=level,
        progress=progress,
    )


def evaluate_results(
    results: Iterable[Result],
    samples: Sequence[Sample],
    *,
    tasks: Sequence[str] = TASKS,
    map_threshold: float | None = None,
    aggregation: str = "max",
    replicates: int = REPLICATES,
    level: float = LEVEL,
    progress: Progress = silent,
) -> Evaluation:
    """Measure results from anywhere.

    Parameters
    ----------
    results
        One a sample, in their order; taken one by one and not held.
    samples, tasks, aggregation, replicates, level, progress
        As for `evaluate_model`.
    map_threshold
        What normal maps stay below, for FROC's convention "overlap"; None leaves that out.

    Raises
    ------
    InputError
        Samples without label; of one kind only where image metrics are wanted; without mask or box where those are not
        wanted; too few that could be read.
    """
    _check(samples, tasks)
    labels = np.array([sample.label for sample in samples])
    whose = np.unique([sample.patient for sample in samples], return_inverse=True)[1]
    with TemporaryDirectory(prefix="anomed-maps-") as folder:
        maps = MapStatistics(Path(folder), samples, tasks, map_threshold) if _located(samples, tasks) else None
        scored, unmasked, seconds = _scored(results, samples, maps)
        kept = np.array([i for i, result in enumerate(scored) if result.ok], int)
        scores = np.array([scored[i].score for i in kept])
        decided = all(scored[i].flagged is not None for i in kept)
        flagged = np.array([bool(scored[i].flagged) for i in kept]) if decided else None
        statistics = [] if maps is None else maps.statistics(progress)
    if "image" in tasks and len(np.unique(labels[kept])) == 2:
        statistics = image_statistics(labels[kept], scores, flagged, whose[kept], kept, aggregation) + statistics
    failures = {result.id: result.status for result in scored if not result.ok}
    if not statistics or ("image" in tasks and len(np.unique(labels[kept])) < 2):
        raise InputError(f"too few images could be read to evaluate, first: {next(iter(failures.values()), '')}")
    return Evaluation(
        [samples[i].id for i in kept],
        labels[kept],
        whose[kept],
        scores,
        flagged,
        replicated(labels, whose, statistics, replicates, level),
        failures | unmasked,
        seconds,
    )


def _check(samples: Sequence[Sample], tasks: Sequence[str]) -> None:
    unlabelled = [sample.id for sample in samples if sample.label not in (0, 1)]
    if unlabelled:
        raise InputError(f"{len(unlabelled)} images have no label, first {unlabelled[0]}: label them 0 or 1")
    if "image" in tasks and len({sample.label for sample in samples}) < 2:
        raise InputError("normal and abnormal images are needed to evaluate: give some of both")
    if "image" not in tasks and not _located(samples, tasks):
        raise InputError("no abnormal image has a mask or a box: without these there is nothing to measure")


def _located(samples: Sequence[Sample], tasks: Sequence[str]) -> bool:
    return bool({"pixel", "box"} & set(tasks)) and any(s.label == 1 and has_mask(s) for s in samples)


def _scored(
    results: Iterable[Result], samples: Sequence[Sample], maps: MapStatistics | None
) -> tuple[list[Result], dict[str, str], float]:
    """Results without their maps, which go to `maps`; masks that cannot be read; and the seconds that scoring took."""
    scored: list[Result] = []
    unmasked: dict[str, str] = {}
    seconds = 0.0
    start = time.perf_counter()
    for index, result in enumerate(results):
        map = result.anomaly_map() if result.ok and result.grid is not None else None
        seconds += time.perf_counter() - start
        if maps is not None and map is not None:
            try:
                mask = read_mask(samples[index], (map.shape[0], map.shape[1]))
                if mask is not None:
                    maps.add(index, result, map, mask)
            except ReadError as error:
                unmasked[samples[index].id] = f"left out of the metrics of maps: {error}"
        scored.append(replace(result, grid=None, geometry=None))  # the map would be held for nothing
        start = time.perf_counter()
    return scored, unmasked, seconds
