"""Scores -> p-values and decisions."""

from anomalib_med.calibration.calibrate import Normal, calibrate
from anomalib_med.calibration.conformal import Calibration, patients_needed
from anomalib_med.calibration.judge import VolumeJudge
from anomalib_med.calibration.rule import AUTO, VolumeRule, volume_score
from anomalib_med.calibration.rule_choice import NormalVolume, calibrated_rule, choose_rule

__all__ = [
    "AUTO",
    "Calibration",
    "Normal",
    "NormalVolume",
    "VolumeJudge",
    "VolumeRule",
    "calibrate",
    "calibrated_rule",
    "choose_rule",
    "patients_needed",
    "volume_score",
]
