"""Calibration as JSON: the scores of the held-out normals, and the rule for volumes in the description of a model."""

from collections.abc import Mapping
from typing import cast

import numpy as np
from pydantic import JsonValue

from anomalib_med.calibration.conformal import Calibration
from anomalib_med.calibration.rule import VolumeRule
from anomalib_med.records import Json


def dump_scores(calibration: Calibration | None, rule: VolumeRule) -> Json:
    """Scores of the held-out normals, images and volumes; empty for none."""
    stored: Json = {}
    if calibration is not None:
        stored = {"scores": calibration.scores.tolist(), "patients": calibration.patients.tolist()}
    if rule.scores is not None and rule.peaks is not None:
        volumes = {"scores": rule.scores.scores, "peaks": rule.peaks.scores, "patients": rule.scores.patients}
        stored["volumes"] = {name: values.tolist() for name, values in volumes.items()}
    return stored


def dump_rule(rule: VolumeRule, false_alarm_rate: float) -> Json:
    """A rule without its scores, with the threshold at a rate for a person to read."""
    return {
        "score": rule.how,
        "compared": dict(rule.compared),
        "threshold": rule.threshold_of_volumes(false_alarm_rate),
        "candidate_threshold": rule.threshold,
        "background": rule.background,
    }


def load_scores(stored: Mapping[str, JsonValue], values: str = "scores") -> Calibration | None:
    """The scores of images that :func:`dump_scores` gave; None for none."""
    if not stored:
        return None
    return Calibration(np.array(stored[values], float), np.array(stored["patients"], np.int64))


def load_rule(described: Mapping[str, JsonValue], stored: Mapping[str, JsonValue]) -> VolumeRule:
    """The rule that :func:`dump_rule` and :func:`dump_scores` gave."""
    volumes = cast(Json, stored.get("volumes", {}))
    return VolumeRule(
        how=str(described["score"]),
        threshold=cast(float | None, described["candidate_threshold"]),
        background=cast(float | None, described.get("background")),
        scores=load_scores(volumes),
        peaks=load_scores(volumes, "peaks"),
        compared=cast(dict[str, float], described.get("compared", {})),
    )
