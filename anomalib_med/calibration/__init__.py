"""Scores -> p-values and decisions."""

from anomalib_med.calibration.conformal import Calibration, patients_needed

__all__ = ["Calibration", "patients_needed"]
