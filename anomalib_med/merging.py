"""More normals for a fitted model, and one model of two, without the images that they were fitted on.

What a detector learnt can be merged; its calibration cannot. The held-out normals were scored with a model that is no
more, and their p-values hold for that one. So the calibration is made anew, from normals that neither part was fitted
on, or there is none.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from pydantic import JsonValue

from anomalib_med.calibration import Normal, calibrate
from anomalib_med.datasets.folder import Source
from anomalib_med.datasets.splits import split_by_patient
from anomalib_med.device import choose_device
from anomalib_med.errors import ConfigError
from anomalib_med.fitted import FittedModel
from anomalib_med.fitting import check_share, find_normals, fit_detector
from anomalib_med.models.base import Detector
from anomalib_med.models.training import NO_RUN
from anomalib_med.records import Json, Progress, Sample, silent
from anomalib_med.training_record import notes_on, training_record

OF_NO_MATTER = {"weights", "source"}  # say where weights came from; that they are the same is seen from their hash
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
        See :func:`anomalib_med.fit`; images of patients that the model does not know.
    calibration
        Share of the new normals, by patient, that is held out. Their scores replace the calibration of the model, so
        p-values hold for patients like the new ones; 0 for none.
    device, cache, patient_pattern, progress
        See :func:`anomalib_med.fit`.

    Raises
    ------
    ConfigError
        The detector cannot be merged, or an option makes no sense.
    InputError
        No images, or abnormal ones among them.
    FitError
        Too few images or patients.
    """
    check_share(calibration)
    _check_mergeable(model.detector)
    samples = find_normals(normals, patient_pattern)
    kept, held_out = split_by_patient(samples, calibration, model.detector.config.seed)
    detector = _copy(model.detector, device, cache)
    part = _unfitted(detector)
    failures = fit_detector(part, model.preprocessing, kept, progress, NO_RUN)
    detector.merge(part)
    whose = "the normals that were added last"
    return _calibrated(replace(model, detector=detector), kept, held_out, failures, whose, progress)


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
        See :func:`anomalib_med.fit`.

    Raises
    ------
    ConfigError
        The models differ in detector, settings, preprocessing or backbone, or the detector cannot be merged.
    InputError, FitError
        Calibration normals that cannot be used.
    """
    _check_mergeable(first.detector)
    _check_alike(first, second)
    samples = [] if calibration_normals is None else find_normals(calibration_normals, patient_pattern)
    detector = _copy(first.detector, device, cache)
    detector.merge(_copy(second.detector, device, None))
    low, high = zip(first.map_range, second.map_range, strict=True)
    training = _joint_record(first.training, second.training)
    merged = replace(first, detector=detector, map_range=(min(low), max(high)), training=training)
    return _calibrated(merged, [], samples, {}, "the normals given for it", progress)


def _calibrated(
    merged: FittedModel,
    kept: Sequence[Sample],
    held_out: Sequence[Sample],
    failures: Mapping[str, str],
    whose: str,
    progress: Progress,
) -> FittedModel:
    """A model whose detector was merged with its calibration made anew; its volume rule is not chosen again.

    It is calibrated on `held_out`, whose description is `whose`, and scaled on `kept` where there are none. Without
    either nothing is known of its scores on normals.
    """
    detector, rule = merged.detector, merged.volume_rule
    normal = Normal(None, merged.map_range, replace(rule, scores=None, peaks=None), {})
    seed = detector.config.seed
    if held_out or kept:
        given = merged.preprocessing, held_out, kept, rule.how, seed, rule.compared
        normal = calibrate(detector, *given, progress=progress)
    failures = {**failures, **normal.failures}
    training = _joint_record(merged.training, training_record(detector, kept, held_out, failures, seed))
    notes = notes_on(detector, training, normal.calibration)
    if normal.calibration is not None:
        notes += (f"merged: p-values come from {whose} alone, and hold for patients like those",)
    scores, scale, rule = normal.calibration, normal.map_range, normal.volume_rule
    return FittedModel(detector, merged.preprocessing, scores, scale, rule, training, notes, failures)


def _copy(detector: Detector, device: str, cache: str | Path | None) -> Detector:
    copy = _unfitted(detector)
    copy.load_state(*detector.state())
    copy.to(choose_device(device))
    if cache is not None:
        copy.use_cache(cache)
    return copy


def _unfitted(detector: Detector) -> Detector:
    """A detector of the same settings and the same backbone that learnt nothing yet."""
    settings = detector.config.model_dump()
    if not detector.uses_features:
        return type(detector)(**settings).to(detector.device)
    extractor = detector.extractor
    new = type(detector)(**settings | {"weights": extractor.backbone.source})  # a path may be gone, and is not needed
    new.build_extractor(extractor.state())
    new.extractor.cache = extractor.cache
    return new.to(detector.device)


def _check_mergeable(detector: Detector) -> None:
    if type(detector).merge is Detector.merge:
        detector.merge(detector)  # says why it cannot


def _check_alike(first: FittedModel, second: FittedModel) -> None:
    """Refuse models that do not mean the same by a patch."""
    one, other = ({**d, **cast(Json, d["detector"])} for d in (first.describe(), second.describe()))
    names = one["name"], other["name"]
    differences = _settings(one, other) if names[0] == names[1] else [("the detector", *names)]
    for what, a, b in differences:
        message = f"the models cannot be merged: {what} is {a} in the first and {b} in the second"
        raise ConfigError(f"{message}; fit both with the same settings")


def _settings(one: Json, other: Json) -> Iterator[tuple[str, object, object]]:
    """The settings in which two descriptions differ, each with both its values."""
    for what, table in {"setting": "settings", "preprocessing": "preprocessing", "backbone": "backbone"}.items():
        a, b = cast(Json, one[table]), cast(Json, other[table])
        yield from ((f'{what} "{key}"', a[key], b[key]) for key in a if a[key] != b[key] and key not in OF_NO_MATTER)


def _joint_record(first: Json, second: Json) -> Json:
    """Counts of both, and each part's own record."""
    parts = [part for record in (first, second) for part in cast(list[Json], record.get("parts", [record]))]
    parts = [part for part in parts if part["images"] or part["held_out_images"]]
    sums = {key: cast(int, first[key]) + cast(int, second[key]) for key in SUMMED}
    sha256 = hashlib.sha256(" ".join(str(part["ids_sha256"]) for part in parts).encode()).hexdigest()
    return {**second, **sums, "ids_sha256": sha256, "parts": cast(JsonValue, parts)}
