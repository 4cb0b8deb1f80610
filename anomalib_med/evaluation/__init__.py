"""How good the scores are."""

from anomalib_med.evaluation.curves import aucp, image_auroc
from anomalib_med.evaluation.epoch_choice import AUCp
from anomalib_med.evaluation.pixel_metrics import pixel_auroc

__all__ = ["AUCp", "aucp", "image_auroc", "pixel_auroc"]
