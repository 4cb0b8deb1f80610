"""Settings of every trained detector, and the learning rate that follows from them."""

import math
from typing import Literal

from pydantic import Field

from anomalib_med.models.base import DetectorConfig, FeatureConfig

Schedule = Literal["constant", "cosine"]


class TrainingConfig(DetectorConfig):
    """Settings of every trained detector."""

    epochs: int = Field(100, ge=1)
    """Number of passes over the normals, of use where steps is 0."""
    steps: int = Field(0, ge=0)
    """Number of optimizer steps; 0 for as many as epochs gives. Steps take as long on few normals as on many."""
    max_minutes: float = Field(0.0, ge=0)
    """Minutes after which the training stops, with a model of the steps done by then; 0 for no limit. The time before
    an interruption counts."""
    batch_size: int = Field(32, ge=1)
    """Number of images in an optimizer step."""
    learning_rate: float = Field(1e-3, gt=0)
    """Highest learning rate of the schedule, for Adam or the detector's own optimizer."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay, for Adam or the detector's own optimizer."""
    schedule: Schedule = "constant"
    """How the learning rate goes on after the warm-up: it stays, or falls to 1 % along a cosine."""
    warmup: float = Field(0.0, ge=0, lt=1)
    """Share of the steps, from 0 to below 1, in which the learning rate rises from 0."""
    clip_norm: float = Field(0.0, ge=0)
    """Largest norm of the gradient of an optimizer's weights, to which longer ones are shortened; 0 for no limit."""
    mixed_precision: bool = True
    """Whether a GPU computes in bfloat16 what can bear it. The CPU always computes in float32."""
    augment: bool = False
    """Whether normals are moved (3 % of a side), turned (4 degrees), scaled (5 %) and exposed (10 %) a little, anew in
    each epoch. They are never mirrored or cropped."""
    patience: int = Field(0, ge=0)
    """Number of epochs without a lower validation loss after which the training stops; 0 to train to the end, on all
    normals. The loss is that on a tenth of the normals' patients, who are held out for it."""
    memory_mb: float = Field(2048.0, gt=0)
    """Memory for prepared images in MiB; what does not fit lies in a temporary file."""


class FeatureTrainingConfig(FeatureConfig, TrainingConfig):
    """Settings of a trained detector on frozen features. `precision` is that of the frozen network."""


def rate(c: TrainingConfig, step: int, steps: int) -> float:
    """What the learning rate is multiplied by at a step, from 0, of a training of so many steps."""
    rising = c.warmup * steps
    if step < rising:
        return (step + 1) / (rising + 1)
    if c.schedule == "constant":
        return 1.0
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1.0, steps - rising)))
