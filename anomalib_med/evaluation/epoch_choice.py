"""The epoch of a training that is kept, chosen by unlabelled images: transductive, and marked as such."""

from collections.abc import Sequence

from anomalib_med.datasets.folder import Source, discover
from anomalib_med.errors import InputError, ReadError
from anomalib_med.evaluation.curves import aucp
from anomalib_med.models.base import Detector
from anomalib_med.models.scored import score_frames
from anomalib_med.preprocessing import Frames, Preprocessing
from anomalib_med.records import Sample


class AUCp:
    """Keeps the epoch with the highest AUCp between the training normals and unlabelled images, healthy and not.

    Both are scored after each epoch. Labels are not used, yet this is transductive, and noted in the model.
    `unlabelled` and `patient_pattern` are as for :func:`anomalib_med.fit`.
    """

    name = "AUCp"

    def __init__(self, unlabelled: Source, *, patient_pattern: str | None = None) -> None:
        self.images: Sequence[Sample] = discover(unlabelled, patient_pattern=patient_pattern)

    def value(self, detector: Detector, preprocessing: Preprocessing, normals: Sequence[Sample]) -> float:
        """AUCp of a detector, see :func:`.curves.aucp`.

        Raises
        ------
        InputError
            None of the unlabelled images could be read.
        """
        normal, unlabelled = (
            [o.score for _, o in score_frames(detector, Frames(s, preprocessing)) if not isinstance(o, ReadError)]
            for s in (normals, self.images)
        )
        if not unlabelled:
            number = len(self.images)
            raise InputError(f"none of the {number} unlabelled images could be read: the epoch is chosen by them")
        return aucp(normal, unlabelled)
