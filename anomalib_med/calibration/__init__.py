"""Scores -> p-values and decisions."""

from anomalib_med.calibration.conformal import Calibration, patients_needed
from anomalib_med.calibration.judge import AUTO, DEFAULT_HOW, VolumeRule, volume_score
from anomalib_med.calibration.rule_choice import SliceScores, choose_rule

__all__ = [
    "AUTO",
    "DEFAULT_HOW",
    "Calibration",
    "SliceScores",
    "VolumeRule",
    "choose_rule",
    "patients_needed",
    "volume_score",
]
