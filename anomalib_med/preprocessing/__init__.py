"""Image -> Frame: windows, resizing, the valid area, and reading many of them at once."""

from anomalib_med.preprocessing.areas import register_area
from anomalib_med.preprocessing.frames import Batch, Frames, collate
from anomalib_med.preprocessing.prepare import prepare
from anomalib_med.preprocessing.settings import CT_WINDOWS, Preprocessing

__all__ = ["CT_WINDOWS", "Batch", "Frames", "Preprocessing", "collate", "prepare", "register_area"]
