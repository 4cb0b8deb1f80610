"""Augmentation of model inputs that leaves a chest a chest: small movements, small changes of exposure.

Nothing is mirrored (the heart is on one side) or cut off (findings lie in the apices and the costophrenic angles).
"""

import os

import cv2
import numpy as np

DEGREES, SHIFT, SCALE, EXPOSURE = 4.0, 0.03, 0.05, 0.1  # turn, part of the side, growth, brightness and contrast


class ChestAugmentation:
    """Random rotation by up to 4 degrees, shift by 3 %, scale by 5 %, brightness and contrast by 10 %.

    What moves in from outside is the image's own edge. Each call depends on its seed alone, not on the calls before it.
    """

    def __init__(self) -> None:
        os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # or importing it asks its home for a newer version
        import albumentations as A

        scale, shift, rotate = (1 - SCALE, 1 + SCALE), (-SHIFT, SHIFT), (-DEGREES, DEGREES)
        edge = cv2.BORDER_REPLICATE
        move = A.Affine(scale=scale, translate_percent=shift, rotate=rotate, border_mode=edge, p=1.0)
        expose = A.RandomBrightnessContrast(brightness_limit=EXPOSURE, contrast_limit=EXPOSURE, p=1.0)
        self._transform = A.Compose([move, expose], seed=0)

    def __call__(self, pixels: np.ndarray, valid: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Augment one input, float32 ``(C, H, W)`` in [0, 1], and move its valid area, bool ``(H, W)``, with it.

        The seed lies from 0 to below 2 ** 32. Shapes and ranges stay.
        """
        self._transform.set_random_seed(seed)
        image = np.ascontiguousarray(np.moveaxis(pixels, 0, 2), dtype=np.float32)
        out = self._transform(image=image, mask=valid.astype(np.uint8))
        moved = out["image"].reshape(image.shape)  # a last axis of one may be lost
        return np.ascontiguousarray(np.moveaxis(moved, 2, 0)), out["mask"].astype(bool)
