"""Evaluate a fitted model on labelled images: every metric with its interval, from one pass over the images.

What is measured follows from what is known: image metrics where images are labelled normal and abnormal; decisions
where the model is calibrated; volumes and their patients where images are slices of scans, else patients where one has
several images; pixels and lesions where masks or boxes are there.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from anomalib_med.calibration import VolumeJudge, VolumeRule
from anomalib_med.datasets.masks import has_mask
from anomalib_med.datasets.scans import volumes_of
from anomalib_med.errors import InputError
from anomalib_med.evaluation.case_statistics import Cases, image_statistics, volume_statistics
from anomalib_med.evaluation.intervals import Interval, Measured, replicated
from anomalib_med.evaluation.map_statistics import MapStatistics
from anomalib_med.evaluation.patients import aggregation_rule
from anomalib_med.fitted import DEFAULT_RATE, FittedModel
from anomalib_med.records import PatientResult, Progress, Result, Sample, VolumeResult, silent

REPLICATES = 1000
TASKS = ("image", "pixel", "box")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was measured; `ids`, `labels`, `patients` and `scores` ``(n,)`` are those of the images that were scored."""

    ids: list[str]
    labels: np.ndarray
    patients: np.ndarray
    """Numbers, of which only equality matters."""
    scores: np.ndarray
    flagged: np.ndarray | None
    """Decisions at the false-alarm rate, None without calibration."""
    volumes: list[VolumeResult]
    """The volumes among the images, as ``anomed score`` decides on them."""
    volume_patients: list[PatientResult]
    measured: dict[str, Measured]
    failures: dict[str, str]
    """Images that could not be scored, and why."""
    seconds: float
    """Spent on scoring, reading included and metrics left out."""

    @property
    def metrics(self) -> dict[str, Interval]:
        """Value and interval of each metric by name."""
        return {name: number.interval for name, number in self.measured.items()}


def evaluate_model(
    model: FittedModel,
    samples: Sequence[Sample],
    *,
    tasks: Sequence[str] = TASKS,
    false_alarm_rate: float = DEFAULT_RATE,
    aggregation: str = "max",
    replicates: int = REPLICATES,
    progress: Progress = silent,
) -> Evaluation:
    """Score labelled images and measure.

    Parameters
    ----------
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
    replicates
        Number of draws behind the 95 % intervals.

    Raises
    ------
    InputError, ConfigError
        See `evaluate_results`.
    """
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
    progress: Progress = silent,
) -> Evaluation:
    """Measure results from anywhere; parameters not named here are as for `evaluate_model`.

    Parameters
    ----------
    results
        One a sample, in their order; taken one by one and not held.
    rule, false_alarm_rate
        How volumes are judged; by default with the rule of a model that was not calibrated.
    map_threshold
        What normal maps stay below, for FROC's convention "overlap"; None leaves that out.

    Raises
    ------
    InputError
        Samples without label; of one kind only where image metrics are wanted; without mask or box where those are not
        wanted; too few that could be read.
    ConfigError
        An aggregation that is not known.
    """
    aggregation_rule(aggregation)
    located = bool({"pixel", "box"} & set(tasks)) and any(s.label == 1 and has_mask(s) for s in samples)
    labels = _labels(samples, ranked="image" in tasks, located=located)
    whose = np.unique([sample.patient for sample in samples], return_inverse=True)[1]
    volumes = volumes_of(samples)
    # Candidates are measured by `anomed froc`, in mm.
    judge = VolumeJudge(replace(rule or VolumeRule(), threshold=None), false_alarm_rate, volumes)
    with TemporaryDirectory(prefix="anomed-maps-") as folder:
        maps = MapStatistics(Path(folder), samples, tasks, map_threshold) if located else None
        scored, judged, seconds = _passed(results, maps, judge)
        statistics = maps.statistics(progress) if maps else []
    kept = np.array([i for i, result in enumerate(scored) if result.ok], int)
    flags = [scored[i].flagged for i in kept]
    flagged = None if None in flags else np.array(flags, bool)
    images = Cases(labels[kept], np.array([scored[i].score for i in kept]), flagged, whose[kept], kept)
    failures = {result.id: result.status for result in scored if not result.ok}
    if "image" in tasks and images.kinds == 2:
        scans = volume_statistics(samples, volumes, judged, judge.patients())
        statistics = [*image_statistics(images, None if volumes else aggregation), *scans, *statistics]
    elif "image" in tasks or not statistics:
        raise InputError(f"too few images could be read to evaluate, first: {next(iter(failures.values()), '')}")
    return Evaluation(
        [samples[i].id for i in kept],
        images.labels,
        images.patients,
        images.scores,
        flagged,
        judged,
        judge.patients(),
        replicated(labels, whose, statistics, replicates),
        failures | (maps.failures if maps else {}),
        seconds,
    )


def _labels(samples: Sequence[Sample], *, ranked: bool, located: bool) -> np.ndarray:
    """The labels ``(N,)`` of images with which something can be measured."""
    labels = [sample.label for sample in samples]
    unlabelled = [sample.id for sample in samples if sample.label not in (0, 1)]
    if unlabelled:
        raise InputError(f"{len(unlabelled)} images have no label, first {unlabelled[0]}: label them 0 or 1")
    if ranked and len(set(labels)) < 2:
        raise InputError("normal and abnormal images are needed to evaluate: give some of both")
    if not (ranked or located):
        raise InputError("no abnormal image has a mask or a box: without these there is nothing to measure")
    return np.array(labels)


def _passed(
    results: Iterable[Result], maps: MapStatistics | None, judge: VolumeJudge
) -> tuple[list[Result], list[VolumeResult], float]:
    """Results without their maps, the volumes, and the seconds of scoring; the maps are given to `maps`."""
    scored, judged, seconds = [], [], 0.0
    start = time.perf_counter()
    for index, result in enumerate(results):
        map = result.anomaly_map() if result.ok and result.grid is not None else None
        seconds += time.perf_counter() - start
        if maps is not None and map is not None:
            maps.add(index, result, map)
        scored.append(replace(result, grid=None, geometry=None))  # the map would be held for nothing
        volume = judge.add(result)
        if volume is not None:
            judged.append(volume)
        start = time.perf_counter()
    return scored, judged, seconds
