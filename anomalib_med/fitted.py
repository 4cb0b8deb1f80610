"""FittedModel: preprocessing, detector and calibration as one thing that scores images, is saved and is loaded."""

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import cast

import numpy as np

from anomalib_med.calibration import Calibration, VolumeJudge, VolumeRule, is_flagged
from anomalib_med.calibration.stored import dump_rule, dump_scores, load_rule, load_scores
from anomalib_med.datasets.folder import Source, discover
from anomalib_med.datasets.scans import volumes_of
from anomalib_med.device import choose_device
from anomalib_med.errors import ConfigError, ModelError, ReadError
from anomalib_med.model_file import ModelFiles, read_model, write_model
from anomalib_med.models.base import Detector
from anomalib_med.models.registry import detectors
from anomalib_med.models.scored import score_frames
from anomalib_med.outputs.scores import Scores
from anomalib_med.preprocessing import Frames, Preprocessing
from anomalib_med.records import Json, Progress, Result, RunInfo, Sample, silent
from anomalib_med.version import __version__

DEFAULT_RATE = 0.05
BACKBONE_PREFIX, DETECTOR_PREFIX = "backbone.", "detector."


@dataclass(frozen=True, eq=False)
class FittedModel:
    """A detector with all that is needed to score an image file alike today and in a year.

    Made by :func:`fit` or :func:`load`.
    """

    detector: Detector  # fitted
    preprocessing: Preprocessing  # how images become its inputs
    calibration: Calibration | None  # scores of the held-out normals; None where none were held out
    map_range: tuple[float, float]  # lowest and highest value of the colour scale of every map, from normals
    volume_rule: VolumeRule  # how volumes are judged
    training: Json  # counts, seed, versions and hash of the images it was fitted on, without names
    notes: tuple[str, ...] = ()  # what a reader of its scores must know, such as random weights or too few normals
    failures: Mapping[str, str] = field(default_factory=dict)  # why images could not be read in fitting; not saved

    def score(
        self,
        images: Source,
        *,
        false_alarm_rate: float = DEFAULT_RATE,
        patient_pattern: str | None = None,
        progress: Progress = silent,
    ) -> Scores:
        """Score images, and judge the volumes among them.

        Parameters
        ----------
        images
            A folder, file, glob, CSV, list of paths, array ``(N, H, W)`` or list of samples.
        false_alarm_rate
            Share of normal images, volumes and patients that may be flagged.
        patient_pattern
            Regular expression with one group that finds the patient in a path.
        progress
            Called with stage, images done and images in all.
        """
        samples = discover(images, patient_pattern=patient_pattern)
        judge = VolumeJudge(self.volume_rule, false_alarm_rate, volumes_of(samples))
        scored = self.score_each(samples, false_alarm_rate=false_alarm_rate, progress=progress)
        results = [result for result, _ in scored]
        volumes = [volume for result in results if (volume := judge.add(result))]
        run = self.run_info(false_alarm_rate)
        return Scores(results, samples, volumes, judge.patients(), run, self.preprocessing)

    def score_each(
        self,
        samples: Sequence[Sample],
        *,
        false_alarm_rate: float = DEFAULT_RATE,
        display: bool = False,
        progress: Progress = silent,
    ) -> Iterator[tuple[Result, np.ndarray | None]]:
        """Score samples one after the other, in order; nothing is held longer than it takes.

        Yields
        ------
        The result, and where `display` is asked for the image windowed for the eye (uint8). A sample that cannot be
        read has a result with the reason as its status.
        """
        check_rate(false_alarm_rate)
        frames = Frames(samples, self.preprocessing, display=display)
        smoothing = self.detector.config.smoothing
        for done, (sample, outcome) in enumerate(score_frames(self.detector, frames), 1):
            result = partial(Result, sample.id, str(sample.path or ""), sample.frame, sample.patient)
            if isinstance(outcome, ReadError):
                yield result(np.nan, status=str(outcome)), None
            else:
                frame, score = outcome.frame, outcome.score
                p = None if self.calibration is None else self.calibration.p_value(score)
                scored = partial(result, score, p, is_flagged(p, false_alarm_rate), area=frame.area)
                yield scored(grid=outcome.grid, geometry=frame.geometry, smoothing=smoothing), frame.display
            progress("scoring", done, len(samples))

    def threshold(self, false_alarm_rate: float = DEFAULT_RATE) -> float | None:
        """Images that score higher are flagged at this rate; None without calibration."""
        return None if self.calibration is None else self.calibration.threshold(false_alarm_rate)

    @property
    def normal_peak(self) -> float:
        """What the maps of 95 % of the held-out normals stay below; the colour scale ends half as far above."""
        low, high = self.map_range
        return low + (high - low) / 1.5

    def to(self, device: str) -> "FittedModel":
        """Move to a device: "auto", "cpu", "cuda" or "cuda:<n>"."""
        self.detector.to(choose_device(device))
        return self

    def use_cache(self, folder: str | Path) -> "FittedModel":
        """Keep backbone features in this folder and take them from it."""
        self.detector.use_cache(folder)
        return self

    def describe(self) -> Json:
        """What model.json says, without file hashes."""
        settings: Json = self.detector.config.model_dump(mode="json")
        backbone: Json = {}
        if self.detector.uses_features:
            b = self.detector.extractor.backbone
            settings["weights"] = b.source  # not the path: it is nobody's business, and the weights are in the model
            sha256 = self.detector.extractor.weight_hash
            backbone = {"name": b.name, "layers": list(b.layers), "source": b.source, "sha256": sha256}
        threshold = self.threshold()
        finite = threshold if threshold is not None and np.isfinite(threshold) else None
        return {
            "anomalib_med": __version__,
            "detector": {"name": self.detector.name, "settings": settings},
            "preprocessing": self.preprocessing.model_dump(mode="json"),
            "backbone": backbone,
            "map_range": list(self.map_range),
            "threshold": {"false_alarm_rate": DEFAULT_RATE, "score": finite},
            "volumes": dump_rule(self.volume_rule, DEFAULT_RATE),
            "training": self.training,
            "notes": list(self.notes),
        }

    def run_info(self, false_alarm_rate: float = DEFAULT_RATE) -> RunInfo:
        """What is told of a run of this model beside its results."""
        model = {key: value for key, value in self.describe().items() if key != "notes"}
        told = self.detector.title, model, self.notes, self.fingerprint()
        normal_scores = np.empty(0) if self.calibration is None else self.calibration.scores
        threshold = self.threshold(false_alarm_rate)
        return RunInfo(*told, false_alarm_rate, threshold, normal_scores, self.map_range)

    def fingerprint(self) -> str:
        """SHA-256 of all that a score depends on; the same before saving and after loading."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode())
        for key, value in sorted(self.detector.state()[0].items()):
            digest.update(key.encode() + value.contiguous().numpy().tobytes())
        for part in (self.calibration, self.volume_rule.scores, self.volume_rule.peaks):
            if part is not None:
                digest.update(part.scores.tobytes() + part.patients.tobytes())
        return digest.hexdigest()

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write the model folder.

        Raises
        ------
        OutputError
            It cannot be written, or something is in the way.
        """
        learnt, extra = self.detector.state()
        tensors = {DETECTOR_PREFIX + key: value for key, value in learnt.items()}
        if self.detector.uses_features:
            tensors |= {BACKBONE_PREFIX + key: value for key, value in self.detector.extractor.state().items()}
        scores = dump_scores(self.calibration, self.volume_rule)
        write_model(Path(folder), ModelFiles({**self.describe(), "state": extra}, tensors, scores), overwrite=overwrite)
        return Path(folder)


def check_rate(false_alarm_rate: float) -> None:
    """Raise ConfigError for a false-alarm rate that does not lie between 0 and 1."""
    if not 0 < false_alarm_rate < 1:
        raise ConfigError(f"false-alarm rate {false_alarm_rate:g} must lie between 0 and 1, for example 0.05")


def load(folder: str | Path, *, device: str = "auto") -> FittedModel:
    """Load a model folder; its scores are bit-equal to those before saving.

    Raises
    ------
    ModelError
        Where the folder is no model, incomplete, altered, or of a newer format.
    """
    files = read_model(Path(folder))
    d = files.description
    try:
        detector, preprocessing = _detector(folder, files), Preprocessing.model_validate(d["preprocessing"])
        low, high = cast(list[float], d["map_range"])
        scores, rule = load_scores(files.calibration), load_rule(cast(Json, d["volumes"]), files.calibration)
        training, notes = cast(Json, d["training"]), tuple(cast(list[str], d["notes"]))
        model = FittedModel(detector, preprocessing, scores, (low, high), rule, training, notes)
    except (KeyError, ValueError, ConfigError) as error:
        reason = f"the model does not fit this version of anomalib-med ({error})"
        raise ModelError(f"{folder}: {reason}; fit again") from error
    if model.notes:
        warnings.warn("; ".join(model.notes), stacklevel=2)
    return model.to(device)


def _detector(folder: str | Path, files: ModelFiles) -> Detector:
    named, known = cast(Json, files.description["detector"]), detectors()
    if named["name"] not in known:
        remedy = "import the module that defines it before loading, or upgrade anomalib-med"
        raise ModelError(f'{folder}: its detector "{named["name"]}" is not part of this package; {remedy}')
    detector = known[str(named["name"])](**cast(dict[str, object], named["settings"]))
    backbone, learnt = (
        {key.removeprefix(prefix): tensor for key, tensor in files.tensors.items() if key.startswith(prefix)}
        for prefix in (BACKBONE_PREFIX, DETECTOR_PREFIX)
    )
    if backbone:
        detector.build_extractor(backbone)
    detector.load_state(learnt, cast(Json, files.description["state"]))
    return detector
