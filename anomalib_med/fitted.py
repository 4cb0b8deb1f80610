"""FittedModel: preprocessing, detector and calibration as one thing that scores images, is saved and is loaded."""

import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import cast

import numpy as np
import torch
from pydantic import JsonValue

from anomalib_med.calibration import Calibration, VolumeJudge, VolumeRule
from anomalib_med.datasets.folder import Source, discover
from anomalib_med.datasets.volumes import volumes_of
from anomalib_med.device import choose_device
from anomalib_med.errors import ConfigError, ModelError, ReadError
from anomalib_med.features import FeatureCache
from anomalib_med.model_file import Json, ModelFiles, read_model, write_model
from anomalib_med.models.base import Detector
from anomalib_med.models.pooling import valid_cells
from anomalib_med.models.registry import detectors
from anomalib_med.outputs.scores import Scores
from anomalib_med.preprocessing import Frames, Preprocessing, collate
from anomalib_med.records import Frame, Progress, Result, RunInfo, Sample, VolumeResult, silent
from anomalib_med.version import __version__

DEFAULT_RATE = 0.05
BACKBONE_PREFIX, DETECTOR_PREFIX = "backbone.", "detector."

Scored = tuple[Result, np.ndarray | None]


class FittedModel:
    """A detector with all that is needed to score an image file alike today and in a year.

    Made by :func:`fit` or :func:`load`.

    Attributes
    ----------
    detector, preprocessing, calibration
        Its parts; `calibration` is None where no normals were held out.
    volume_rule
        How volumes are judged.
    map_range
        Lowest and highest value of the colour scale of every map, from normals.
    training
        Counts, seed, versions and hash of the images it was fitted on. No names.
    notes
        What a reader of its scores must know, such as random weights or too few normals.
    failures
        Images that could not be read while fitting, by id; not saved.
    """

    def __init__(
        self,
        detector: Detector,
        preprocessing: Preprocessing,
        calibration: Calibration | None,
        map_range: tuple[float, float],
        training: Json,
        notes: Sequence[str] = (),
        volume_rule: VolumeRule | None = None,
    ) -> None:
        self.detector = detector
        self.preprocessing = preprocessing
        self.calibration = calibration
        self.map_range = map_range
        self.training = training
        self.notes = list(notes)
        self.failures: dict[str, str] = {}
        self.volume_rule = volume_rule or VolumeRule()

    def score(
        self,
        images: Source,
        *,
        false_alarm_rate: float = DEFAULT_RATE,
        patient_pattern: str | None = None,
        progress: Progress = silent,
    ) -> Scores:
        """Score images.

        Parameters
        ----------
        images
            A folder, file, glob, CSV, list of paths, array ``(N, H, W)`` or list of samples.
        false_alarm_rate
            Share of normal images that may be flagged.
        patient_pattern
            Regular expression with one group that finds the patient in a path.
        progress
            Called with stage, images done and images in all.
        """
        samples = discover(images, patient_pattern=patient_pattern)
        judge = VolumeJudge(self.volume_rule, false_alarm_rate, volumes_of(samples))
        results: list[Result] = []
        volumes: list[VolumeResult] = []
        for result, _ in self.score_each(samples, false_alarm_rate=false_alarm_rate, progress=progress):
            results.append(result)
            volume = judge.add(result)
            if volume is not None:
                volumes.append(volume)
        run = self.run_info(false_alarm_rate)
        return Scores(results, samples, volumes, judge.patients(), run, self.preprocessing)

    def score_each(
        self,
        samples: Sequence[Sample],
        *,
        false_alarm_rate: float = DEFAULT_RATE,
        display: bool = False,
        progress: Progress = silent,
    ) -> Iterator[Scored]:
        """Score samples one after the other, in order; nothing is held longer than it takes.

        Yields
        ------
        The result, and where `display` is asked for the image windowed for the eye (uint8). A sample that cannot be
        read has a result with the reason as its status.
        """
        check_rate(false_alarm_rate)
        frames = Frames(samples, self.preprocessing, display=display)
        for done, (sample, outcome) in enumerate(self.score_frames(frames), 1):
            if isinstance(outcome, ReadError):
                yield _result(sample, float("nan"), status=str(outcome)), None
            else:
                frame, score, grid = outcome
                yield self._decide(frame, score, grid, false_alarm_rate), frame.display
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
        if not self.detector.uses_features:
            raise ConfigError(f"detector {self.detector.name} has no backbone: a feature cache is of no use to it")
        self.detector.extractor.cache = FeatureCache(folder)
        return self

    def describe(self) -> Json:
        """What model.json says, without file hashes."""
        threshold = self.threshold()
        settings, backbone = self.detector.config.model_dump(mode="json"), cast(Json, {})
        if self.detector.uses_features:
            b = self.detector.extractor.backbone
            settings["weights"] = b.source  # not the path: it is nobody's business, and the weights are in the model
            backbone = {
                "name": b.name,
                "layers": list(b.layers),
                "source": b.source,
                "sha256": self.detector.extractor.weight_hash,
            }
        return {
            "anomalib_med": __version__,
            "detector": {"name": self.detector.name, "settings": settings},
            "preprocessing": self.preprocessing.model_dump(mode="json"),
            "backbone": backbone,
            "map_range": list(self.map_range),
            "threshold": {
                "false_alarm_rate": DEFAULT_RATE,
                "score": threshold if threshold is not None and np.isfinite(threshold) else None,
            },
            "volumes": {
                "score": self.volume_rule.how,
                "compared": dict(self.volume_rule.compared),
                "threshold": self.volume_rule.threshold_of_volumes(DEFAULT_RATE),
                "candidate_threshold": self.volume_rule.threshold,
                "background": self.volume_rule.background,
            },
            "training": self.training,
            "notes": cast(JsonValue, self.notes),
        }

    def run_info(self, false_alarm_rate: float = DEFAULT_RATE) -> RunInfo:
        """What is told of a run of this model beside its results."""
        return RunInfo(
            title=self.detector.title,
            model={key: value for key, value in self.describe().items() if key != "notes"},
            notes=tuple(self.notes),
            fingerprint=self.fingerprint(),
            false_alarm_rate=false_alarm_rate,
            threshold=self.threshold(false_alarm_rate),
            normal_scores=np.empty(0) if self.calibration is None else self.calibration.scores,
            colour_range=self.map_range,
        )

    def fingerprint(self) -> str:
        """SHA-256 of all that a score depends on; the same before saving and after loading."""
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
            Where it cannot be written, or something is in the way.
        """
        tensors, extra = self.detector.state()
        everything = {DETECTOR_PREFIX + key: value for key, value in tensors.items()}
        if self.detector.uses_features:
            everything |= {BACKBONE_PREFIX + key: value for key, value in self.detector.extractor.state().items()}
        calibration: Json = {}
        if self.calibration is not None:
            calibration = {"scores": self.calibration.scores.tolist(), "patients": self.calibration.patients.tolist()}
        rule = self.volume_rule
        if rule.scores is not None and rule.peaks is not None:
            calibration["volumes"] = {
                "scores": rule.scores.scores.tolist(),
                "peaks": rule.peaks.scores.tolist(),
                "patients": rule.scores.patients.tolist(),
            }
        write_model(
            Path(folder), ModelFiles({**self.describe(), "state": extra}, everything, calibration), overwrite=overwrite
        )
        return Path(folder)

    def score_frames(self, frames: Frames) -> Iterator[tuple[Sample, ReadError | tuple[Frame, float, np.ndarray]]]:
        """Every sample in order; consecutive frames of one shape share a batch."""
        size = self.detector.extractor.batch_size if self.detector.uses_features else 8
        held: list[Frame] = []
        with closing(frames.outcomes()) as outcomes:
            for sample, outcome in outcomes:
                if held and (
                    isinstance(outcome, ReadError) or len(held) == size or outcome.pixels.shape != held[0].pixels.shape
                ):
                    yield from self._score_batch(held)
                    held = []
                if isinstance(outcome, ReadError):
                    yield sample, outcome
                else:
                    held.append(outcome)
        if held:
            yield from self._score_batch(held)

    def _score_batch(self, frames: list[Frame]) -> Iterator[tuple[Sample, tuple[Frame, float, np.ndarray]]]:
        batch = collate(frames)
        device = self.detector.device
        with torch.inference_mode():
            maps = self.detector.map_at(batch.x, batch.heights)
            scores = self.detector.score_at(batch.x, maps, batch.valid.to(device), batch.heights)
        grids = _quiet_outside(maps.float().cpu(), batch.valid).numpy()
        for frame, score, grid in zip(frames, scores.double().cpu().tolist(), grids, strict=True):
            yield frame.sample, (frame, score, grid)

    def _decide(self, frame: Frame, score: float, grid: np.ndarray, rate: float) -> Result:
        calibration = self.calibration
        return _result(
            frame.sample,
            score,
            p_value=None if calibration is None else calibration.p_value(score),
            flagged=None if calibration is None else calibration.flags(score, rate),
            grid=grid,
            geometry=frame.geometry,
            smoothing=self.detector.config.smoothing,
            area=frame.area,
        )


def _quiet_outside(maps: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Give cells outside the valid area, of which no score is taken, the least value of the valid ones."""
    cells = valid_cells(valid, (maps.shape[1], maps.shape[2]))
    least = maps.masked_fill(~cells, torch.inf).flatten(1).amin(1)
    return torch.where(cells, maps, least[:, None, None])


def check_rate(false_alarm_rate: float) -> None:
    """See that a false-alarm rate is one.

    Raises
    ------
    ConfigError
        Where it does not lie between 0 and 1.
    """
    if not 0 < false_alarm_rate < 1:
        raise ConfigError(f"false-alarm rate {false_alarm_rate:g} must lie between 0 and 1, for example 0.05")


def _result(sample: Sample, score: float, **rest: object) -> Result:
    path = "" if sample.path is None else str(sample.path)
    return Result(sample.id, path, sample.frame, sample.patient, score, **rest)  # type: ignore[arg-type]


def _volume_rule(settings: Json, calibration: Json) -> VolumeRule:
    how, threshold = str(settings["score"]), cast(float | None, settings["candidate_threshold"])
    background = cast(float | None, settings.get("background"))
    compared = cast(dict[str, float], settings.get("compared", {}))
    if "volumes" not in calibration:
        return VolumeRule(how, threshold, background, compared=compared)
    kept = cast(dict[str, list[float]], calibration["volumes"])
    patients = np.array(kept["patients"], np.int64)
    scores, peaks = (Calibration(np.array(kept[name], float), patients) for name in ("scores", "peaks"))
    return VolumeRule(how, threshold, background, scores, peaks, compared)


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
        named = cast(dict[str, JsonValue], d["detector"])
        known = detectors()
        if named["name"] not in known:
            raise ModelError(
                f'{folder}: its detector "{named["name"]}" is not part of this package; '
                "import the module that defines it before loading, or upgrade anomalib-med"
            )
        detector = known[str(named["name"])](**cast(dict[str, object], named["settings"]))
        tensors = files.tensors
        backbone = {k[len(BACKBONE_PREFIX) :]: v.float() for k, v in tensors.items() if k.startswith(BACKBONE_PREFIX)}
        if backbone:
            detector.build_extractor(backbone)
        own = {k[len(DETECTOR_PREFIX) :]: v for k, v in tensors.items() if k.startswith(DETECTOR_PREFIX)}
        detector.load_state(own, cast(dict[str, JsonValue], d["state"]))
        c = files.calibration
        calibration = Calibration(np.array(c["scores"], float), np.array(c["patients"], np.int64)) if c else None
        low, high = cast(list[float], d["map_range"])
        settings = Preprocessing.model_validate(d["preprocessing"])
        notes = cast(list[str], d["notes"])
        rule = _volume_rule(cast(Json, d["volumes"]), c)
        model = FittedModel(detector, settings, calibration, (low, high), cast(Json, d["training"]), notes, rule)
    except (KeyError, ValueError, ConfigError) as error:
        raise ModelError(
            f"{folder}: the model does not fit this version of anomalib-med ({error}); fit again"
        ) from error
    if model.notes:
        warnings.warn("; ".join(model.notes), stacklevel=2)
    return model.to(device)
