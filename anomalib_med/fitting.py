"""fit: from normal images to a FittedModel: split by patient, choose the window, fit the detector, calibrate."""

import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import cast

import numpy as np
import torch

from anomalib_med import processes
from anomalib_med.calibration import (
    AUTO,
    DEFAULT_HOW,
    Calibration,
    SliceScores,
    VolumeRule,
    choose_rule,
    patients_needed,
)
from anomalib_med.calibration import volume_score as join_slices
from anomalib_med.calibration.judge import CANDIDATE_SHARE
from anomalib_med.checkpoints import CheckpointFile
from anomalib_med.datasets.folder import Source, discover
from anomalib_med.datasets.readers import read
from anomalib_med.datasets.splits import ids_hash, split_by_patient
from anomalib_med.datasets.volumes import volumes_of
from anomalib_med.device import choose_device
from anomalib_med.errors import ConfigError, FitError, InputError, ReadError
from anomalib_med.evaluation import aucp
from anomalib_med.features import RANDOM_WARNING
from anomalib_med.features.backbones import RANDOM, read_weights
from anomalib_med.features.cache import FirstFeatures
from anomalib_med.fitted import DEFAULT_RATE, FittedModel
from anomalib_med.model_file import Json
from anomalib_med.models.base import Detector
from anomalib_med.models.pooling import valid_cells
from anomalib_med.models.registry import detector_class, detectors
from anomalib_med.models.training.run import Selection, TrainingRun
from anomalib_med.models.training.trainer import NO_RUN, TrainedDetector
from anomalib_med.preprocessing import Frames, Preprocessing
from anomalib_med.records import Frame, Geometry, Image, Progress, Sample, silent

LOOKED_AT = 16  # images that the window is chosen from
SCALED_ON = 64  # training normals that maps are scaled on where none are held out
MOST_EXTRA = 1000  # images of a folder that a setting names, drawn at random
KEPT_MB = 64  # MiB of their features that are kept from fitting to scaling


def fit(
    detector: Detector | str,
    normals: Source,
    *,
    calibration: float = 0.2,
    preprocessing: Preprocessing | None = None,
    seed: int | None = None,
    volume_score: str = AUTO,
    device: str = "auto",
    cache: str | Path | None = None,
    checkpoint: str | Path | None = None,
    replace_checkpoint: bool = False,
    unlabelled: Source | None = None,
    patient_pattern: str | None = None,
    progress: Progress = silent,
) -> FittedModel:
    """Fit a detector on normal images.

    Parameters
    ----------
    detector
        A detector, or the name of one with its default settings.
    normals
        A folder, file, glob, CSV, list of paths, array ``(N, H, W)`` or list of samples. Samples labelled 1 are
        refused.
    calibration
        Share of the normals, by patient, that is held out to turn scores into p-values; 0 for none.
    preprocessing
        How images become inputs; by default what suits the normals.
    seed
        Of the split; by default the detector's.
    volume_score
        From the scores of slices to that of a volume, see :func:`anomalib_med.calibration.volume_score`; "auto" chooses
        on the held-out normal volumes, see :func:`anomalib_med.calibration.choose_rule`.
    device
        "auto", "cpu", "cuda" or "cuda:<n>".
    cache
        Folder that keeps backbone features.
    checkpoint
        File that keeps the training of a trained detector while it lasts; the same call continues from it after an
        interruption. It stays when the training is over: delete it when the model is saved.
    replace_checkpoint
        Whether a checkpoint of another training may be replaced.
    unlabelled
        Images, healthy and not, by which the epoch of a trained detector is chosen that is kept: the one with the
        highest :func:`anomalib_med.evaluation.aucp`, for which they and the training normals are scored after each
        epoch. Their labels are not used, yet this is transductive, and noted in the model. By default the last epoch.
    patient_pattern
        Regular expression with one group that finds the patient in a path.
    progress
        Called with stage, done, total and a note such as the loss.

    Raises
    ------
    InputError
        No images, or abnormal ones among them.
    FitError
        Too few images or patients.
    ConfigError
        An option that makes no sense.
    """
    check_share(calibration)
    detector = detector_class(detector)() if isinstance(detector, str) else detector
    if processes.count() > 1 and not isinstance(detector, TrainedDetector):
        raise ConfigError(f"{detector.name} is not trained step by step: fit it in one process")
    seed = detector.config.seed if seed is None else seed
    samples = find_normals(normals, patient_pattern)
    kept, held_out = split_by_patient(samples, calibration, seed) if calibration > 0 else (samples, [])
    preprocessing = _settled(preprocessing or Preprocessing(), kept, detector)
    detector.to(choose_device(device))
    file = None if checkpoint is None else CheckpointFile(Path(checkpoint))
    run = TrainingRun(file, replace_other=replace_checkpoint, progress=progress)
    rule = VolumeRule(DEFAULT_HOW if volume_score == AUTO else volume_score)
    model = FittedModel(detector, preprocessing, None, (0.0, 1.0), {}, volume_rule=rule)
    mixed = None if unlabelled is None else discover(unlabelled, patient_pattern=patient_pattern)
    run = replace(run, selection=choose_epoch(model, kept, mixed))
    if cache is not None:
        model.use_cache(cache)
    with _first_features(detector, used=not held_out):
        fit_detector(detector, kept, model, progress, run)
        calibrate(model, kept, held_out, progress, choose=volume_score == AUTO)
    model.training = training_record(samples, kept, held_out, model, seed)
    if mixed is not None:
        model.training["selection"] = _selected(detector, len(mixed))
    model.notes = notes_on(model)
    return model


def check_share(calibration: float) -> None:
    """See that the share of normals to be held out is one.

    Raises
    ------
    ConfigError
        Where it does not lie between 0 and 1.
    """
    if not 0 <= calibration < 1:
        raise ConfigError(f"calibration {calibration:g} must be a share from 0 to below 1, for example 0.2")


def find_normals(normals: Source, patient_pattern: str | None) -> list[Sample]:
    """The samples of a source of normals.

    Raises
    ------
    InputError
        No images, or abnormal ones among them.
    """
    samples = discover(normals, patient_pattern=patient_pattern)
    abnormal = [sample.id for sample in samples if sample.label == 1]
    if abnormal:
        raise InputError(
            f"{len(abnormal)} of the images to fit on are labelled abnormal, first {abnormal[0]}: leave them out"
        )
    return samples


def fit_detector(
    detector: Detector,
    kept: Sequence[Sample],
    model: FittedModel,
    progress: Progress,
    run: TrainingRun = NO_RUN,
) -> None:
    """Fit a detector on samples prepared as the model says; what cannot be read is added to the model's failures."""
    frames = Frames(kept, model.preprocessing, known_height=True, stage="reading normals", progress=progress)
    try:
        if isinstance(detector, TrainedDetector):
            detector.fit(frames, with_inputs(run, detector, model.preprocessing))
        else:
            detector.fit(frames)
    except FitError as error:
        if len(frames.failures) < len(kept):
            raise
        first = next(iter(frames.failures.values()))
        raise FitError(f"none of the {len(kept)} normals could be read, first: {first}") from error
    model.failures.update(frames.failures)


def with_inputs(run: TrainingRun, detector: TrainedDetector, preprocessing: Preprocessing) -> TrainingRun:
    """The run with what the files and folders hold that the settings of a detector name.

    Raises
    ------
    InputError
        None of the images of a folder could be read.
    """
    named = {key: str(getattr(detector.config, key)) for key in detector.reads}
    weights = {
        key: read_weights(Path(name))
        for key, name in named.items()
        if detector.reads[key] == "weights" and name not in ("", "backbone")
    }
    folders = {key: name for key, name in named.items() if detector.reads[key] == "images" and name}
    stretched = preprocessing.model_copy(update={"aspect": "stretch"})
    images = {}
    for key, name in folders.items():
        samples = discover(name)
        order = np.random.default_rng(detector.config.seed).permutation(len(samples))[:MOST_EXTRA]
        images[key] = [torch.from_numpy(f.pixels) for f in Frames([samples[i] for i in order], stretched)]
        if not images[key]:
            raise InputError(f'{key} "{name}": none of {len(samples)} images could be read')
    return replace(run, weights=weights, images=images)


def choose_epoch(model: FittedModel, kept: Sequence[Sample], unlabelled: Sequence[Sample] | None) -> Selection | None:
    """Have a training keep the epoch with the highest AUCp between its normals and unlabelled images; None: the last.

    Raises
    ------
    ConfigError
        Where the detector is not trained by epochs.
    """
    detector = model.detector
    if not isinstance(detector, TrainedDetector):
        if unlabelled is not None:
            raise ConfigError(f"{detector.name} has no epochs to choose from by unlabelled images: leave them out")
        return None
    if unlabelled is None:
        return None

    def scores(samples: Sequence[Sample]) -> list[float]:
        outcomes = model.score_frames(Frames(samples, model.preprocessing))
        return [outcome[1] for _, outcome in outcomes if not isinstance(outcome, ReadError)]

    def value() -> float:
        found = scores(unlabelled)
        if not found:
            raise InputError(
                f"none of the {len(unlabelled)} unlabelled images could be read: the epoch is chosen by them"
            )
        return aucp(scores(kept), found)

    return Selection(ids_hash(unlabelled), value)


@contextmanager
def _first_features(detector: Detector, *, used: bool) -> Iterator[None]:
    """Where the first normals are `used` again after fitting, keep their features, unless a cache does."""
    extractor = detector.extractor if detector.uses_features else None
    if not used or extractor is None or extractor.cache is not None:
        yield
        return
    extractor.cache = FirstFeatures(KEPT_MB)
    try:
        yield
    finally:
        extractor.cache = None


def _settled(preprocessing: Preprocessing, samples: Sequence[Sample], detector: Detector) -> Preprocessing:
    """Size and shape of the input that the detector takes, windows chosen from the normals."""
    given = preprocessing.model_fields_set
    update: dict[str, object] = {}
    if "size" not in given:
        update["size"] = detector.input_size
    if preprocessing.multiple % detector.multiple:
        update["multiple"] = detector.multiple
    if detector.square and preprocessing.aspect == "keep":
        if "aspect" in given:
            raise ConfigError(
                f'{detector.name} needs inputs of one shape: aspect "keep" gives others, use "stretch" or "pad"'
            )
        update["aspect"] = "stretch"
    if preprocessing.height != "none" and not detector.uses_height:
        able = ", ".join(name for name, kind in detectors().items() if kind.uses_height)
        raise ConfigError(
            f'{detector.name} does not compare slices by their height: fit with height "none", or one of {able}'
        )
    preprocessing = preprocessing.model_copy(update=update)
    if "auto" not in preprocessing.windows:
        return preprocessing
    return preprocessing.resolved(list(islice(_readable(samples), LOOKED_AT)))


def _readable(samples: Sequence[Sample]) -> Iterator[Image]:
    for sample in samples:
        try:
            image = read(sample)
        except ReadError:
            continue  # reported when the frames are read
        if np.ptp(image.pixels) > 0:  # an empty image says nothing of the others, and is refused later
            yield image


def calibrate(
    model: FittedModel,
    kept: Sequence[Sample],
    held_out: Sequence[Sample],
    progress: Progress,
    *,
    choose: bool = False,
) -> None:
    """Score held-out normals for p-values and the colour scale of maps; where there are none, training normals.

    With `choose` the score of volumes is chosen by them too.
    """
    judged = list(held_out) or list(kept[:SCALED_ON])
    stage = "scoring held-out normals" if held_out else "scaling maps"
    frames = Frames(judged, model.preprocessing, stage=stage, progress=progress)
    scores: list[float] = []
    patients: list[str] = []
    middles: list[float] = []
    backgrounds: list[float] = []
    peaks: list[float] = []
    slices: dict[str, tuple[float, float]] = {}  # score and peak of the map as it is written
    for sample, outcome in model.score_frames(frames):
        if isinstance(outcome, ReadError):
            continue
        scores.append(outcome[1])
        patients.append(sample.patient)
        middles.append(float(np.median(outcome[2])))
        backgrounds.append(_background(outcome[0], outcome[2]))
        peaks.append(float(outcome[2].max()))
        slices[sample.id] = outcome[1], _shown_peak(outcome[0], outcome[2], model.detector.config.smoothing)
    model.failures.update(frames.failures)
    if not scores:
        raise FitError(
            f"none of the {len(judged)} held-out normals could be read, first: {next(iter(frames.failures.values()))}"
        )
    if held_out:
        model.calibration = Calibration.of(scores, patients)
    low, high = float(np.median(middles)), float(np.quantile(peaks, 0.95))
    model.volume_rule = _volume_rule(model.volume_rule, float(np.median(backgrounds)), held_out, slices, choose=choose)
    # Half as far again as a normal peak: normal images stay in the dark half of the scale.
    model.map_range = (low, high + 0.5 * (high - low) if high > low else low + 1.0)


def _shown_peak(frame: Frame, grid: np.ndarray, smoothing: float) -> float:
    """Highest value of a map as it is written; enlarging to the original image does not raise it."""
    inner = frame.geometry.content[2:]
    geometry = Geometry(inner, frame.geometry.input, frame.geometry.content)
    return float(geometry.to_original(grid, smoothing).max())


def _background(frame: Frame, grid: np.ndarray) -> float:
    """Middle value of a map within the valid area."""
    cells = valid_cells(torch.from_numpy(frame.valid)[None], (grid.shape[0], grid.shape[1]))[0].numpy()
    return float(np.median(grid[cells]))


def _volume_rule(
    before: VolumeRule,
    background: float,
    held_out: Sequence[Sample],
    slices: Mapping[str, tuple[float, float]],
    *,
    choose: bool,
) -> VolumeRule:
    """What is normal of a volume, from the held-out ones."""
    threshold = float(np.quantile([peak for _, peak in slices.values()], 1 - CANDIDATE_SHARE))
    known: list[SliceScores] = []
    peaks: list[float] = []
    patients: list[str] = []
    for volume in volumes_of(held_out):
        own = [(slices[s.id], slot) for s, slot in zip(volume.samples, volume.slots, strict=True) if s.id in slices]
        if own:
            known.append(SliceScores([score for (score, _), _ in own], [slot for _, slot in own], volume.thickness))
            peaks.append(max(peak for (_, peak), _ in own))
            patients.append(volume.patient)
    how, compared = choose_rule(known) if choose else (before.how, dict(before.compared))
    if not known:
        return VolumeRule(how, threshold, background, compared=compared)
    scores = [join_slices(v.scores, v.slots, v.thickness, how) for v in known]
    of_scores, of_peaks = Calibration.of(scores, patients), Calibration.of(peaks, patients)
    return VolumeRule(how, threshold, background, of_scores, of_peaks, compared)


def training_record(
    samples: Sequence[Sample], kept: Sequence[Sample], held_out: Sequence[Sample], model: FittedModel, seed: int
) -> Json:
    """What a model says of the images it was fitted on: counts and a hash, no names."""
    kept, held_out = ([s for s in part if s.id not in model.failures] for part in (kept, held_out))
    packages: Json = {name: version(name) for name in ("torch", "timm", "numpy", "opencv-python-headless")}
    return {
        "images": len(kept),
        "patients": len({s.patient for s in kept}),
        "held_out_images": len(held_out),
        "held_out_patients": len({s.patient for s in held_out}),
        "unreadable": len(model.failures),
        "ids_sha256": ids_hash(samples),
        "seed": seed,
        "device": model.detector.device.type,
        **_training_record(model.detector),
        "packages": {"python": platform.python_version(), **packages},
    }


def _training_record(detector: Detector) -> Json:
    if not isinstance(detector, TrainedDetector) or detector.training is None:
        return {}
    training = detector.training
    # Not the time it took: the same training would have another fingerprint each time.
    losses: Json = dict(training.losses)
    record: Json = {"steps": training.step, "planned_steps": training.steps, "stopped": training.stopped}
    record["losses"] = losses
    return record


def _selected(detector: Detector, unlabelled: int) -> Json:
    assert isinstance(detector, TrainedDetector) and detector.training is not None
    t = detector.training
    return {"by": "AUCp", "value": t.selected_value, "step": t.selected_step, "unlabelled_images": unlabelled}


def notes_on(model: FittedModel) -> list[str]:
    """What a reader of the model's scores must know."""
    notes = []
    extractor = model.detector.extractor if model.detector.uses_features else None
    if extractor is not None and extractor.backbone.source == RANDOM:
        notes.append(RANDOM_WARNING)
    if model.training.get("stopped") == "time":
        done, planned = model.training["steps"], model.training["planned_steps"]
        notes.append(f"training ended after {done} of {planned} steps, when max_minutes were over")
    if "selection" in model.training:
        chosen = cast(Json, model.training["selection"])
        notes.append(
            f"transductive: of {model.training['steps']} steps the weights after step {chosen['step']} were chosen, by "
            f"AUCp {chosen['value']:.3f} on {chosen['unlabelled_images']} unlabelled images; results on those images "
            "flatter the model"
        )
    if model.calibration is None:
        notes.append("no normals were held out: scores have no p-values and nothing is flagged")
    elif model.calibration.patient_count < patients_needed(DEFAULT_RATE):
        count = model.calibration.patient_count
        notes.append(
            f"only {count} {'patient was' if count == 1 else 'patients were'} held out: nothing can be flagged below a "
            f"false-alarm rate of {model.calibration.smallest_p:.3f} (5 % needs {patients_needed(DEFAULT_RATE)})"
        )
    return notes
