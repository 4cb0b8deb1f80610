"""Scores -> p-values and decisions."""

from anomalib_med.calibration.calibrate import Normal, calibrate
from anomalib_med.calibration.conformal import Calibration, is_flagged, patients_needed
from anomalib_med.calibration.judge import VolumeJudge
from anomalib_med.calibration.rule import AUTO, VolumeRule

__all__ = ["AUTO", "Calibration", "Normal", "VolumeJudge", "VolumeRule", "calibrate", "is_flagged", "patients_needed"]
