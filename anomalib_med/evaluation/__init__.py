"""How good the scores are."""

from anomalib_med.evaluation.metrics import image_auroc, pixel_auroc

__all__ = ["image_auroc", "pixel_auroc"]
