"""What is normal of the scores and maps of a fitted detector, from held-out normals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from anomalib_med.calibration.conformal import Calibration
from anomalib_med.calibration.rule import VolumeRule
from anomalib_med.calibration.rule_choice import CANDIDATE_SHARE, NormalVolume, calibrated_rule
from anomalib_med.datasets.scans import volumes_of
from anomalib_med.errors import FitError, ReadError
from anomalib_med.models.base import Detector
from anomalib_med.models.pooling import valid_cells
from anomalib_med.models.scored import ScoredFrame, score_frames
from anomalib_med.preprocessing import Frames, Preprocessing
from anomalib_med.records import Geometry, Progress, Sample

SCALED_ON = 64  # training normals that maps are scaled on where none are held out


@dataclass(frozen=True, eq=False)
class Normal:
    """What is normal of the scores and maps of a detector."""

    calibration: Calibration | None  # scores of the held-out normals; None where none were held out
    map_range: tuple[float, float]  # lowest and highest value of the colour scale of every map
    volume_rule: VolumeRule  # how volumes are judged
    failures: Mapping[str, str]  # why images could not be read, by id


@dataclass(frozen=True, slots=True)
class _Measured:
    """One normal: its score, and what is known of its map."""

    sample: Sample
    score: float
    median: float
    peak: float
    background: float  # median of the valid area
    shown_peak: float  # highest value of the map as it is written


def calibrate(
    detector: Detector,
    preprocessing: Preprocessing,
    held_out: Sequence[Sample],
    kept: Sequence[Sample],
    volume_score: str,
    seed: int,
    compared: Mapping[str, float] | None = None,
    *,
    progress: Progress,
) -> Normal:
    """Score held-out normals for p-values and the colour scale of maps; where there are none, training normals.

    Parameters
    ----------
    detector, preprocessing
        A fitted detector, and how images become its inputs.
    held_out, kept
        Normals that the detector was not fitted on, and those that it was.
    volume_score, seed, compared
        See :func:`.rule_choice.calibrated_rule`.

    Raises FitError where none of the normals could be read.
    """
    normals = list(held_out or kept[:SCALED_ON])
    stage = "scoring held-out normals" if held_out else "scaling maps"
    frames = Frames(normals, preprocessing, stage=stage, progress=progress)
    smoothing = detector.config.smoothing
    measured = [_measured(s, o, smoothing) for s, o in score_frames(detector, frames) if not isinstance(o, ReadError)]
    if not measured:
        first = next(iter(frames.failures.values()))
        raise FitError(f"none of the {len(normals)} held-out normals could be read, first: {first}")
    threshold = float(np.quantile([m.shown_peak for m in measured], 1 - CANDIDATE_SHARE))
    background = float(np.median([m.background for m in measured]))
    rule = calibrated_rule(_volumes(held_out, measured), volume_score, seed, compared)
    rule = replace(rule, threshold=threshold, background=background)
    scores = Calibration.of([m.score for m in measured], [m.sample.patient for m in measured]) if held_out else None
    low, high = float(np.median([m.median for m in measured])), float(np.quantile([m.peak for m in measured], 0.95))
    # Half as far again as a normal peak: normal images stay in the dark half of the scale.
    return Normal(scores, (low, high + 0.5 * (high - low) if high > low else low + 1.0), rule, frames.failures)


def _measured(sample: Sample, scored: ScoredFrame, smoothing: float) -> _Measured:
    frame, grid = scored.frame, scored.grid
    cells = valid_cells(torch.from_numpy(frame.valid)[None], (grid.shape[0], grid.shape[1]))[0].numpy()
    # Enlarging the map to the original image does not raise its peak.
    shown = Geometry(frame.geometry.content[2:], frame.geometry.input, frame.geometry.content)
    shown_peak = float(shown.to_original(grid, smoothing).max())
    median, background = float(np.median(grid)), float(np.median(grid[cells]))
    return _Measured(sample, scored.score, median, float(grid.max()), background, shown_peak)


def _volumes(held_out: Sequence[Sample], measured: Sequence[_Measured]) -> list[NormalVolume]:
    """The held-out volumes of which a slice could be scored."""
    known = {m.sample.id: m for m in measured}
    volumes = []
    for volume in volumes_of(held_out):
        own = [(known[s.id], slot) for s, slot in zip(volume.samples, volume.slots, strict=True) if s.id in known]
        if own:
            scores, slots = [m.score for m, _ in own], [slot for _, slot in own]
            peak = max(m.shown_peak for m, _ in own)
            volumes.append(NormalVolume(scores, slots, volume.thickness, volume.patient, peak))
    return volumes
