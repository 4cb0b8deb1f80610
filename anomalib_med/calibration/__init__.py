"""Scores -> p-values and decisions."""

from anomalib_med.calibration.conformal import Calibration, patients_needed
from anomalib_med.calibration.volume_choice import SliceScores, choose_rule
from anomalib_med.calibration.volumes import AUTO, DEFAULT_HOW, VolumeRule, volume_score

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
