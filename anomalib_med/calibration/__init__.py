"""Scores -> p-values and decisions."""

from anomalib_med.calibration.conformal import Calibration, patients_needed
from anomalib_med.calibration.volumes import DEFAULT_HOW, VolumeRule, volume_score

__all__ = ["DEFAULT_HOW", "Calibration", "VolumeRule", "patients_needed", "volume_score"]
