"""More normals for a fitted model, and one model of two, without the images that they were fitted on.

What a detector learnt can be merged; its calibration cannot. The held-out normals were scored with a model that is no
more, and their p-values hold for that one. So the calibration is made anew, from normals that neither part was fitted
on, or there is none.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import cast

from pydantic import JsonValue

from anomalib_med.calibration import Normal, calibrate
from anomalib_med.datasets.folder import Source
from anomalib_med.datasets.splits import split_by_patient
from anomalib_med.device import choose_device
from anomalib_med.errors import ConfigError
from anomalib_med.features import FeatureCache
from anomalib_med.fitted import FittedModel, use_cache
from anomalib_med.fitting import check_share, find_normals, fit_detector
from anomalib_med.model_file import Json
from anomalib_med.models.base import Detector
from anomalib_med.records import Progress, Sample, silent
from anomalib_med.training_record import notes_on, training_record

OF_NO_MATTER = {"weights"}  # only says where the weights came from; that they are the same is seen from their hash
SUMMED = ("images", "patients", "unreadable")


def add_normals(
    model: FittedModel,
    normals: Source,
    *,
    calibration: float = 0.2,
    device: str = "auto",
    cache: str | Path | None = None,
    patient_pattern: str | None = None,
    progress: Progress = silent,
) -> FittedModel:
    """Fit a model on further normals beside those that it was fitted on.

    Parameters
    ----------
    model
        Is left as it is.
    normals
        As for :func:`anomalib_med.fit`; images of patients that the model does not know.
    calibration
        Share of the new normals, by patient, that is held out. Their scores replace the calibration of the model, so
        p-values hold for patients like the new ones; 0 for none.
    device, cache, patient_pattern, progress
        As for :func:`anomalib_med.fit`.

    Raises
    ------
    ConfigError
        Where the detector cannot be merged, or an option makes no sense.
    InputError
        No images, or abnormal ones among them.
    FitError
        Too few images or patients.
    """
    check_share(calibration)
    _check_mergeable(model.detector)
    samples = find_normals(normals, patient_pattern)
    seed = model.detector.config.seed
    kept, held_out = split_by_patient(samples, calibration, seed) if calibration > 0 else (samples, [])
    detector = _copy(model.detector, device, cache)
    part = _unfitted(detector)
    failures = fit_detector(part, model.preprocessing, kept, progress)
    detector.merge(part)
    whose = "the normals that were added last"
    return _finished(detector, model, [model.training], samples, held_out, kept, failures, whose, progress)


def merge_models(
    first: FittedModel,
    second: FittedModel,
    *,
    calibration_normals: Source | None = None,
    device: str = "auto",
    cache: str | Path | None = None,
    patient_pattern: str | None = None,
    progress: Progress = silent,
) -> FittedModel:
    """One model of two that were fitted with the same settings, for example in two hospitals.

    Parameters
    ----------
    first, second
        Are left as they are.
    calibration_normals
        Normals that neither was fitted on, for p-values; without them the model has none.
    device, cache, patient_pattern, progress
        As for :func:`anomalib_med.fit`.

    Raises
    ------
    ConfigError
        Where the models differ in detector, settings, preprocessing or backbone, or the detector cannot be merged.
    InputError, FitError
        Calibration normals that cannot be used.
    """
    _check_mergeable(first.detector)
    _check_alike(first, second)
    samples = [] if calibration_normals is None else find_normals(calibration_normals, patient_pattern)
    detector = _copy(first.detector, device, cache)
    detector.merge(_copy(second.detector, device, None))
    low, high = zip(first.map_range, second.map_range, strict=True)
    like, whose = replace(first, map_range=(min(low), max(high))), "the normals given for it"
    return _finished(detector, like, [first.training, second.training], samples, samples, [], {}, whose, progress)


def _finished(
    detector: Detector,
    like: FittedModel,
    trainings: Sequence[Json],
    samples: Sequence[Sample],
    held_out: Sequence[Sample],
    kept: Sequence[Sample],
    failures: Mapping[str, str],
    whose: str,
    progress: Progress,
) -> FittedModel:
    """A merged detector as a model with the preprocessing and the volume rule of another one; nothing is chosen again.

    It is calibrated on `held_out`, whose description is `whose`, and scaled on `kept` where there are none. Without
    either nothing is known of its scores on normals.
    """
    rule = like.volume_rule
    normal = Normal(None, like.map_range, replace(rule, scores=None, peaks=None), {})
    seed = detector.config.seed
    if held_out or kept:
        how, compared = rule.how, rule.compared
        normal = calibrate(detector, like.preprocessing, held_out, kept, how, seed, compared, progress=progress)
    failures = {**failures, **normal.failures}
    record = training_record(samples, kept, held_out, failures, detector, seed)
    training = reduce(_joint_record, [*trainings, record])
    notes = notes_on(detector, training, normal.calibration)
    if normal.calibration is not None:
        notes += (f"merged: p-values come from {whose} alone, and hold for patients like those",)
    scores, scale, rule = normal.calibration, normal.map_range, normal.volume_rule
    return FittedModel(detector, like.preprocessing, scores, scale, rule, training, notes, failures)


def _copy(detector: Detector, device: str, cache: str | Path | None) -> Detector:
    copy = _unfitted(detector)
    copy.load_state(*detector.state())
    copy.to(choose_device(device))
    if cache is not None:
        use_cache(copy, cache)
    return copy


def _unfitted(detector: Detector) -> Detector:
    """A detector of the same settings and the same backbone that learnt nothing yet."""
    extractor = detector.extractor if detector.uses_features else None
    settings = detector.config.model_dump()
    if extractor is not None:
        settings["weights"] = extractor.backbone.source  # a path may be gone, and is not needed
    new = type(detector)(**settings)
    if extractor is not None:
        new.build_extractor({key: value.float() for key, value in extractor.state().items()})
        new.extractor.cache = None if extractor.cache is None else FeatureCache(extractor.cache.folder)
    new.to(detector.device)
    return new


def _check_mergeable(detector: Detector) -> None:
    if type(detector).merge is Detector.merge:
        detector.merge(detector)  # says why it cannot


def _check_alike(first: FittedModel, second: FittedModel) -> None:
    """Refuse models that do not mean the same by a patch."""
    for what, one, other in _differences(first, second):
        raise ConfigError(
            f"the models cannot be merged: {what} is {one} in the first and {other} in the second; "
            "fit both with the same settings"
        )


def _differences(first: FittedModel, second: FittedModel) -> Iterator[tuple[str, object, object]]:
    a, b = first.describe(), second.describe()
    detectors = [cast(Json, d["detector"]) for d in (a, b)]
    if detectors[0]["name"] != detectors[1]["name"]:
        yield "the detector", detectors[0]["name"], detectors[1]["name"]
        return
    tables = {
        "setting": [cast(Json, d["settings"]) for d in detectors],
        "preprocessing": [cast(Json, d["preprocessing"]) for d in (a, b)],
        "backbone": [cast(Json, d["backbone"]) for d in (a, b)],
    }
    for table, (one, other) in tables.items():
        for key in one:
            if one[key] != other[key] and key not in OF_NO_MATTER | {"source"}:
                yield f'{table} "{key}"', one[key], other[key]


def _joint_record(first: Json, second: Json) -> Json:
    """Counts of both, and each part's own record."""
    parts = [part for record in (first, second) for part in cast(list[Json], record.get("parts", [record]))]
    parts = [part for part in parts if part["images"] or part["held_out_images"]]
    record: Json = dict(second)
    for key in SUMMED:
        record[key] = cast(int, first[key]) + cast(int, second[key])
    hashes = " ".join(str(part["ids_sha256"]) for part in parts)
    record["ids_sha256"] = hashlib.sha256(hashes.encode()).hexdigest()
    record["parts"] = cast(JsonValue, parts)
    return record
