"""Result: what is known of one image after scoring. Every output is written from it."""

from dataclasses import dataclass, field

import numpy as np

from anomalib_med.datasets.sample import Geometry


@dataclass(frozen=True, slots=True)
class Result:
    """Score, decision and map of one image.

    Parameters
    ----------
    id, path, frame, patient
        From the sample; `path` is text, "" for an array in memory.
    score
        Image-level score, higher is more anomalous; NaN where the image could not be scored.
    p_value
        Conformal p-value against the held-out normals, in (0, 1]; None without calibration.
    flagged
        True where ``p_value <= false_alarm_rate``; None without calibration.
    status
        "ok", or why the image could not be scored.
    grid
        float32 ``(h, w)``, the anomaly map at the resolution of the detector; None for a failure.
    geometry
        Brings `grid` back to the original pixels.
    smoothing
        Standard deviation of the Gaussian applied to the map, in pixels of the model input.
    area
        What was looked at, see :class:`anomalib_med.preprocessing.Frame`.
    map
        Where the map was written, relative to the output folder, or "".
    """

    id: str
    path: str
    frame: int | None
    patient: str
    score: float
    p_value: float | None = None
    flagged: bool | None = None
    status: str = "ok"
    grid: np.ndarray | None = field(default=None, repr=False, compare=False)
    geometry: Geometry | None = field(default=None, repr=False)
    smoothing: float = 0.0
    area: str = ""
    map: str = ""

    @property
    def ok(self) -> bool:
        """Whether the image was scored."""
        return self.status == "ok"

    def anomaly_map(self) -> np.ndarray:
        """The anomaly map in the geometry of the original image, float32 ``(H, W)``.

        Raises
        ------
        ValueError
            Where the image could not be scored.
        """
        if self.grid is None or self.geometry is None:
            raise ValueError(f"{self.id} has no anomaly map: {self.status}")
        return self.geometry.to_original(self.grid, self.smoothing)
