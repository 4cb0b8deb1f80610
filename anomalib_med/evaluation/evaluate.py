"""Evaluate a fitted model on labelled images: every metric with its interval, from one pass over the images.

What is measured follows from what is known: image metrics where images are labelled normal and abnormal; decisions
where the model is calibrated; volumes and their patients where images are slices of scans, else patients where one has
several images; pixels and lesions where masks or boxes are there. All intervals come from the same draws of patients,
so replicates of two models on the same images are paired.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from anomalib_med.calibration import VolumeJudge, VolumeRule
from anomalib_med.datasets.masks import has_mask, read_mask
from anomalib_med.datasets.scans import volumes_of
from anomalib_med.errors import InputError, ReadError
from anomalib_med.evaluation.image_statistics import image_statistics
from anomalib_med.evaluation.intervals import LEVEL, Interval, Measured, replicated
from anomalib_med.evaluation.map_statistics import MapStatistics
from anomalib_med.evaluation.patients import aggregation_rule
from anomalib_med.evaluation.volume_statistics import volume_statistics
from anomalib_med.fitted import DEFAULT_RATE, FittedModel
from anomalib_med.records import PatientResult, Progress, Result, Sample, VolumeResult, silent

REPLICATES = 1000
TASKS = ("image", "pixel", "box")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was measured.

    Parameters
    ----------
    ids, labels, patients, scores
        Arrays ``(n,)`` of the images that could be scored; `patients` are numbers, only equality matters.
    flagged
        Decisions at the false-alarm rate, None without calibration.
    volumes, volume_patients
        The volumes among the images and their patients, as the judge of ``anomed score`` decides on them.
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
    volumes: list[VolumeResult]
    volume_patients: list[PatientResult]
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
        Labelled 0 or 1; those without a label are refused. Slices of a scan are judged together under the volume rule
        of the model; the scan is what is given of it.
    tasks
        "image": metrics of images, which need both kinds; "pixel": metrics of maps where masks are known; "box": FROC
        where masks or boxes are known.
    false_alarm_rate
        Rate that decisions are made at, from the model's held-out normals.
    aggregation
        How the scores of images that are no slices become that of a patient, see :func:`.patients.aggregate`.
    replicates, level
        Number of draws behind the intervals, and their coverage.
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
    aggregation_rule(aggregation)
    stream = model.score_each(samples, false_alarm_rate=false_alarm_rate, progress=progress)
    return evaluate_results(
        (result for result, _ in stream),
        samples,
        tasks=tasks,
        rule=model.volume_rule,
        false_alarm_rate=false_alarm_rate,
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
    rule: VolumeRule | None = None,
    false_alarm_rate: float = DEFAULT_RATE,
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
    rule, false_alarm_rate
        How volumes are judged; by default with the rule of a model that was not calibrated.
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
    volumes = volumes_of(samples)
    # Candidates are measured by `anomed froc`, in mm.
    judge = VolumeJudge(replace(rule or VolumeRule(), threshold=None), false_alarm_rate, volumes)
    with TemporaryDirectory(prefix="anomed-maps-") as folder:
        maps = MapStatistics(Path(folder), samples, tasks, map_threshold) if _located(samples, tasks) else None
        seen = _seen(results, samples, maps, judge)
        scored = seen.results
        kept = np.array([i for i, result in enumerate(scored) if result.ok], int)
        scores = np.array([scored[i].score for i in kept])
        decided = all(scored[i].flagged is not None for i in kept)
        flagged = np.array([bool(scored[i].flagged) for i in kept]) if decided else None
        statistics = [] if maps is None else maps.statistics(progress)
    if "image" in tasks and len(np.unique(labels[kept])) == 2:
        images = image_statistics(labels[kept], scores, flagged, whose[kept], kept, None if volumes else aggregation)
        scans = volume_statistics(samples, volumes, seen.volumes, judge.patients()) if volumes else []
        statistics = images + scans + statistics
    failures = {result.id: result.status for result in scored if not result.ok}
    if not statistics or ("image" in tasks and len(np.unique(labels[kept])) < 2):
        raise InputError(f"too few images could be read to evaluate, first: {next(iter(failures.values()), '')}")
    return Evaluation(
        [samples[i].id for i in kept],
        labels[kept],
        whose[kept],
        scores,
        flagged,
        seen.volumes,
        judge.patients(),
        replicated(labels, whose, statistics, replicates, level),
        failures | seen.unmasked,
        seen.seconds,
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


@dataclass
class _Seen:
    """What is kept of a pass over the results: they without their maps, the volumes, and masks that cannot be read."""

    results: list[Result] = field(default_factory=list)
    volumes: list[VolumeResult] = field(default_factory=list)
    unmasked: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0  # of scoring


def _seen(
    results: Iterable[Result], samples: Sequence[Sample], maps: MapStatistics | None, judge: VolumeJudge
) -> _Seen:
    """Go through the results once; their maps are given to `maps` and forgotten."""
    seen = _Seen()
    start = time.perf_counter()
    for index, result in enumerate(results):
        map = result.anomaly_map() if result.ok and result.grid is not None else None
        seen.seconds += time.perf_counter() - start
        if maps is not None and map is not None:
            try:
                mask = read_mask(samples[index], (map.shape[0], map.shape[1]))
                if mask is not None:
                    maps.add(index, result, map, mask)
            except ReadError as error:
                seen.unmasked[samples[index].id] = f"left out of the metrics of maps: {error}"
        seen.results.append(replace(result, grid=None, geometry=None))  # the map would be held for nothing
        volume = judge.add(result)
        if volume is not None:
            seen.volumes.append(volume)
        start = time.perf_counter()
    return seen
