"""score_frames: a fitted detector applied to frames, batch by batch and in order."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch

from anomalib_med.errors import ReadError
from anomalib_med.models.base import Detector
from anomalib_med.models.pooling import valid_cells
from anomalib_med.preprocessing import Frames, collate
from anomalib_med.records import Frame, Sample

BATCH = 8  # frames, where no extractor says how many


@dataclass(frozen=True, slots=True, eq=False)
class ScoredFrame:
    """A frame with its image-level score and its anomaly map, float32 ``(h, w)`` at the detector's resolution."""

    frame: Frame
    score: float
    grid: np.ndarray


def score_frames(detector: Detector, frames: Frames) -> Iterator[tuple[Sample, ScoredFrame | ReadError]]:
    """Yield every sample in order with its score, or the error that reading it gave; frames of one shape in batches."""
    size = detector.extractor.batch_size if detector.uses_features else BATCH
    held: list[Frame] = []
    with closing(frames.outcomes()) as outcomes:
        for sample, outcome in outcomes:
            if held and (
                isinstance(outcome, ReadError) or len(held) == size or outcome.pixels.shape != held[0].pixels.shape
            ):
                yield from _score_batch(detector, held)
                held = []
            if isinstance(outcome, ReadError):
                yield sample, outcome
            else:
                held.append(outcome)
    if held:
        yield from _score_batch(detector, held)


def _score_batch(detector: Detector, frames: list[Frame]) -> Iterator[tuple[Sample, ScoredFrame]]:
    batch = collate(frames)
    with torch.inference_mode():
        maps = detector.map_at(batch.x, batch.heights)
        scores = detector.score_at(batch.x, maps, batch.valid.to(detector.device), batch.heights)
    maps, cells = maps.float().cpu(), valid_cells(batch.valid, maps.shape[1:])
    # Cells outside the valid area, of which no score is taken, get the least value of the valid ones.
    least = maps.masked_fill(~cells, torch.inf).flatten(1).amin(1)
    grids = torch.where(cells, maps, least[:, None, None]).numpy()
    for frame, score, grid in zip(frames, scores.double().cpu().tolist(), grids, strict=True):
        yield frame.sample, ScoredFrame(frame, score, grid)
