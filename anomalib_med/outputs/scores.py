"""Scores: the results of scoring in Python, with the arrays a person asks for by name."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from anomalib_med.datasets.scans import volumes_of
from anomalib_med.files import write_atomic
from anomalib_med.outputs.report import write_report
from anomalib_med.outputs.run import fingerprint
from anomalib_med.outputs.tables import SCORES
from anomalib_med.outputs.writer import ResultWriter
from anomalib_med.preprocessing import Frames, Preprocessing
from anomalib_med.records import Candidate, Frame, PatientResult, Result, RunInfo, Sample, VolumeResult


@dataclass(eq=False, repr=False)
class Scores(Sequence[Result]):
    """Results in the order of the images. Maps are kept at the detector's resolution and enlarged when asked for."""

    results: list[Result]  # one for each image, failures included
    samples: list[Sample]  # what was scored, in the same order
    volumes: list[VolumeResult]  # the volumes among the images
    patients: list[PatientResult]  # the decision on each of their patients
    run: RunInfo  # what they were scored with
    preprocessing: Preprocessing

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
    def candidates(self) -> list[Candidate]:
        """The regions of the maps of all volumes, volume by volume, the highest peak first."""
        return [candidate for volume in self.volumes for candidate in volume.candidates]

    @property
    def maps(self) -> "Maps":
        """Anomaly maps float32 ``(H, W)`` in the geometry of each original image, made when indexed."""
        return Maps(self.results)

    def to_csv(self, path: str | Path) -> Path:
        """Write the table of ``anomed score`` without maps and failures; raises OutputError."""
        write_atomic(Path(path), SCORES.header, *(SCORES.line(result) for result in self.results if result.ok))
        return Path(path)

    def report(self, folder: str | Path) -> Path:
        """Write table, maps, overlays and the HTML report into a folder; returns the path of the report.

        Raises OutputError where the folder holds other results or cannot be written.
        """
        out, volumes = Path(folder), volumes_of(self.samples)
        ends = {volume.samples[-1].id: volume.id for volume in volumes}
        judged = {volume.id: volume for volume in self.volumes}
        frames = Frames(self.samples, self.preprocessing, display=True)  # read again for their pictures
        known = fingerprint(self.run, self.samples)
        with ResultWriter(out, known, self.run.colour_range, volumes) as writer:
            for result, (_, frame) in zip(self.results, frames.outcomes(), strict=True):
                if result.id in writer.done:
                    continue
                writer.write(result, frame.display if isinstance(frame, Frame) else None)
                if result.id in ends:
                    writer.write_volume(judged[ends[result.id]])
            writer.write_patients(self.patients)
        return write_report(out, self.run, self.samples)


@dataclass(eq=False, repr=False)
class Maps(Sequence[np.ndarray]):
    """Anomaly maps of results, brought to the original geometry one at a time."""

    results: Sequence[Result]

    def __len__(self) -> int:
        return len(self.results)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        """One map, or a list of them."""
        if isinstance(index, slice):
            return [result.anomaly_map() for result in self.results[index]]
        return self.results[index].anomaly_map()
