"""Scores: the results of scoring in Python, with the arrays a person asks for by name."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np

from anomalib_med.files import write_atomic
from anomalib_med.outputs.tables import SCORES
from anomalib_med.records import Result, Sample

if TYPE_CHECKING:
    from anomalib_med.fitted import FittedModel


class Scores(Sequence[Result]):
    """Results in the order of the images. Maps are kept at the detector's resolution and enlarged when asked for.

    Parameters
    ----------
    results
        One an image, failures included.
    samples
        What was scored, in the same order.
    model
        What scored them.
    false_alarm_rate
        Rate that `flagged` was decided at.
    """

    def __init__(
        self, results: Sequence[Result], samples: Sequence[Sample], model: "FittedModel", false_alarm_rate: float
    ) -> None:
        self.results = list(results)
        self.samples = list(samples)
        self.model = model
        self.false_alarm_rate = false_alarm_rate

    def __len__(self) -> int:
        return len(self.results)

    @overload
    def __getitem__(self, index: int) -> Result: ...
    @overload
    def __getitem__(self, index: slice) -> list[Result]: ...
    def __getitem__(self, index: int | slice) -> Result | list[Result]:
        """The result of one image, or a list of them."""
        return self.results[index]

    @property
    def ids(self) -> list[str]:
        """Id of each image."""
        return [result.id for result in self.results]

    @property
    def scores(self) -> np.ndarray:
        """float64 ``(N,)``, higher is more anomalous; NaN where an image could not be scored."""
        return np.array([result.score for result in self.results], float)

    @property
    def p_values(self) -> np.ndarray:
        """float64 ``(N,)`` in (0, 1]; NaN where an image could not be scored or the model has no calibration."""
        return np.array([np.nan if result.p_value is None else result.p_value for result in self.results], float)

    @property
    def flagged(self) -> np.ndarray:
        """Decisions, bool ``(N,)``; False where nothing could be decided."""
        return np.array([bool(result.flagged) for result in self.results])

    @property
    def failures(self) -> list[Result]:
        """The images that could not be scored; their `status` says why."""
        return [result for result in self.results if not result.ok]

    @property
    def maps(self) -> "Maps":
        """Anomaly maps float32 ``(H, W)`` in the geometry of each original image, made when indexed."""
        return Maps(self.results)

    def to_csv(self, path: str | Path) -> Path:
        """Write the table of ``anomed score`` without maps; failures are left out.

        Raises
        ------
        OutputError
            Where the file cannot be written.
        """
        rows = [SCORES.header, *(SCORES.line(result) for result in self.results if result.ok)]
        write_atomic(Path(path), b"".join(rows))
        return Path(path)

    def report(self, folder: str | Path) -> Path:
        """Write table, maps, overlays and the HTML report into a folder; returns the path of the report.

        Raises
        ------
        OutputError
            Where the folder holds other results or cannot be written.
        """
        from anomalib_med.scoring import write_scores

        return write_scores(self, Path(folder))


class Maps(Sequence[np.ndarray]):
    """Anomaly maps that are brought to the original geometry one at a time.

    Parameters
    ----------
    results
        Where they come from.
    """

    def __init__(self, results: Sequence[Result]) -> None:
        self._results = results

    def __len__(self) -> int:
        return len(self._results)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        """One map, or a list of them."""
        if isinstance(index, slice):
            return [result.anomaly_map() for result in self._results[index]]
        return self._results[index].anomaly_map()

    def __iter__(self) -> Iterator[np.ndarray]:
        return (result.anomaly_map() for result in self._results)
