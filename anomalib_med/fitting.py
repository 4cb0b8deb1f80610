"""fit: from normal images to a FittedModel: split by patient, choose the window, fit the detector, calibrate."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from anomalib_med import processes
from anomalib_med.calibration import AUTO, VolumeRule, calibrate
from anomalib_med.checkpoints import CheckpointFile
from anomalib_med.datasets.folder import Source, discover
from anomalib_med.datasets.readers import read
from anomalib_med.datasets.splits import ids_hash, split_by_patient
from anomalib_med.device import choose_device
from anomalib_med.errors import ConfigError, FitError, InputError, ReadError
from anomalib_med.features.backbones import read_weights
from anomalib_med.features.cache import FirstFeatures
from anomalib_med.fitted import FittedModel
from anomalib_med.models.base import Detector
from anomalib_med.models.registry import detector_class, detectors
from anomalib_med.models.training import EpochChoice, Selection, TrainedDetector, TrainingRun
from anomalib_med.preprocessing import Frames, Preprocessing
from anomalib_med.records import Image, Progress, Sample, silent
from anomalib_med.training_record import notes_on, training_record

LOOKED_AT = 16  # images that the window is chosen from
MOST_EXTRA = 1000  # images of a folder that a setting names, drawn at random
KEPT_MB = 64  # MiB of the features of the first normals that are kept from fitting to scaling


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
    epoch_choice: EpochChoice | None = None,
    patient_pattern: str | None = None,
    progress: Progress = silent,
) -> FittedModel:
    """Fit a detector on normal images.

    Parameters
    ----------
    detector
        A detector, or the name of one with its default settings.
    normals
        A folder, file, glob, CSV, list of paths, array ``(N, H, W)`` or list of samples; none may be labelled 1.
    calibration
        Share of the normals, by patient, that is held out to turn scores into p-values; 0 for none.
    preprocessing
        How images become inputs; by default what suits the normals.
    seed
        Seed of the split; by default the detector's.
    volume_score
        How the scores of slices become that of a volume: "max", "mean", "top<k>" or "run<mm>mm", see
        :func:`.rule.volume_score`; "auto" chooses on a part of the held-out normal volumes.
    device
        "auto", "cpu", "cuda" or "cuda:<n>".
    cache
        Folder that keeps backbone features.
    checkpoint
        File from which the same call continues an interrupted training; delete it when the model is saved.
    replace_checkpoint
        Whether a checkpoint of another training may be replaced.
    epoch_choice
        Chooses the epoch of a trained detector that is kept, for example :class:`anomalib_med.evaluation.AUCp`; by
        default the last one.
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
    if volume_score != AUTO:
        VolumeRule(volume_score)  # refuses an unknown one before long work
    detector = detector_class(detector)() if isinstance(detector, str) else detector
    if processes.count() > 1 and not isinstance(detector, TrainedDetector):
        raise ConfigError(f"{detector.name} is not trained step by step: fit it in one process")
    if epoch_choice is not None and not isinstance(detector, TrainedDetector):
        raise ConfigError(f"{detector.name} has no epochs to choose from by unlabelled images: leave them out")
    seed = detector.config.seed if seed is None else seed
    samples = find_normals(normals, patient_pattern)
    kept, held_out = split_by_patient(samples, calibration, seed)
    preprocessing = _settled(preprocessing or Preprocessing(), kept, detector)
    detector.to(choose_device(device))
    file, selection = None if checkpoint is None else CheckpointFile(Path(checkpoint)), None
    if epoch_choice is not None:
        value = partial(epoch_choice.value, detector, preprocessing, kept)
        selection = Selection(ids_hash(epoch_choice.images), value)
    run = TrainingRun(file, replace_other=replace_checkpoint, selection=selection, progress=progress)
    if cache is not None:
        detector.use_cache(cache)
    # Without held-out normals the first ones are scored after fitting: their features are kept until then.
    again = detector.uses_features and not held_out
    with detector.extractor.keeping(FirstFeatures(KEPT_MB)) if again else nullcontext():
        failures = fit_detector(detector, preprocessing, kept, progress, run)
        normal = calibrate(detector, preprocessing, held_out, kept, volume_score, seed, progress=progress)
    failures |= normal.failures
    training = training_record(detector, kept, held_out, failures, seed, epoch_choice)
    notes = notes_on(detector, training, normal.calibration)
    scores, scale, rule = normal.calibration, normal.map_range, normal.volume_rule
    return FittedModel(detector, preprocessing, scores, scale, rule, training, notes, failures)


def check_share(calibration: float) -> None:
    """Raise ConfigError for a share of normals to be held out that is not at least 0 and below 1."""
    if not 0 <= calibration < 1:
        raise ConfigError(f"calibration {calibration:g} must be a share from 0 to below 1, for example 0.2")


def find_normals(normals: Source, patient_pattern: str | None) -> list[Sample]:
    """The samples of a source of normals; raises InputError for no images, or abnormal ones among them."""
    samples = discover(normals, patient_pattern=patient_pattern)
    abnormal = [sample.id for sample in samples if sample.label == 1]
    if abnormal:
        count = f"{len(abnormal)} of the images to fit on"
        raise InputError(f"{count} are labelled abnormal, first {abnormal[0]}: leave them out")
    return samples


def fit_detector(
    detector: Detector, preprocessing: Preprocessing, kept: Sequence[Sample], progress: Progress, run: TrainingRun
) -> dict[str, str]:
    """Fit a detector on samples; returns why those that could not be read were left out, by their id."""
    frames = Frames(kept, preprocessing, known_height=True, stage="reading normals", progress=progress)
    try:
        if isinstance(detector, TrainedDetector):
            detector.fit(frames, _with_inputs(run, detector, preprocessing))
        else:
            detector.fit(frames)
    except FitError as error:
        if len(frames.failures) < len(kept):
            raise
        first = next(iter(frames.failures.values()))
        raise FitError(f"none of the {len(kept)} normals could be read, first: {first}") from error
    return dict(frames.failures)


def _with_inputs(run: TrainingRun, detector: TrainedDetector, preprocessing: Preprocessing) -> TrainingRun:
    """The run with what the files and folders hold that the settings of a detector name."""
    weights: dict[str, dict[str, torch.Tensor]] = {}
    images: dict[str, list[torch.Tensor]] = {}
    stretched = preprocessing.model_copy(update={"aspect": "stretch"})
    for key, kind in detector.reads.items():
        name = str(getattr(detector.config, key))
        if kind == "weights" and name not in ("", "backbone"):
            weights[key] = read_weights(Path(name))
        elif kind == "images" and name:
            samples = discover(name)
            order = np.random.default_rng(detector.config.seed).permutation(len(samples))[:MOST_EXTRA]
            images[key] = [torch.from_numpy(f.pixels) for f in Frames([samples[i] for i in order], stretched)]
            if not images[key]:
                raise InputError(f'{key} "{name}": none of {len(samples)} images could be read')
    return replace(run, weights=weights, images=images)


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
            needs = f"{detector.name} needs inputs of one shape"
            raise ConfigError(f'{needs}: aspect "keep" gives others, use "stretch" or "pad"')
        update["aspect"] = "stretch"
    if preprocessing.height != "none" and not detector.uses_height:
        able = ", ".join(name for name, kind in detectors().items() if kind.uses_height)
        refused = f"{detector.name} does not compare slices by their height"
        raise ConfigError(f'{refused}: fit with height "none", or one of {able}')
    return preprocessing.model_copy(update=update).resolved(islice(_readable(samples), LOOKED_AT))


def _readable(samples: Sequence[Sample]) -> Iterator[Image]:
    for sample in samples:
        with suppress(ReadError):  # reported when the frames are read
            image = read(sample)
            if np.ptp(image.pixels) > 0:  # an empty image says nothing of the others, and is refused later
                yield image
