"""Images made by drawing: phantoms of radiographs and CT slices, lesions, DigitAnatomy."""

from anomalib_med.phantoms.chest import chest_phantom
from anomalib_med.phantoms.ct import ct_slice_phantom
from anomalib_med.phantoms.ct_lungs import lungs_of_ct, lungs_of_radiograph
from anomalib_med.phantoms.digit_anatomy import digit_anatomy
from anomalib_med.phantoms.drawing import Phantom
from anomalib_med.phantoms.lesions import add_ct_lesion, add_lesion
from anomalib_med.phantoms.write import write_chest_dataset, write_ct_dataset, write_digit_anatomy

__all__ = ["Phantom", "add_ct_lesion", "add_lesion", "chest_phantom", "ct_slice_phantom", "digit_anatomy"]
__all__ += ["lungs_of_ct", "lungs_of_radiograph", "write_chest_dataset", "write_ct_dataset", "write_digit_anatomy"]
