"""Settings of every trained detector, and the learning rate that follows from them."""

import math
from typing import Literal

from pydantic import Field

from anomalib_med.models.base import DetectorConfig, FeatureConfig


class TrainingConfig(DetectorConfig):
    """Settings of every trained detector.

    Parameters
    ----------
    epochs
        Passes over the normals.
    steps
        Steps of the optimiser, in place of `epochs`; 0: as `epochs` says.
    max_minutes
        The training stops after this time, with a model of the steps done by then; 0: no limit. The time before an
        interruption counts.
    batch_size
        Images in a step.
    learning_rate, weight_decay
        Of Adam, unless the detector has optimisers of its own.
    schedule
        Of the learning rate: "constant", or "cosine" down to 1 %.
    warmup
        Share of the steps in which the learning rate rises from 0.
    clip_norm
        Largest norm of the gradient of an optimiser's weights; 0: any.
    mixed_precision
        Use bfloat16 for what can bear it, on a GPU; never on the CPU.
    augment
        Move, turn and expose the normals a little, anew in each epoch; see
        :class:`anomalib_med.preprocessing.augment.ChestAugmentation`.
    patience
        Stop when the loss on a tenth of the normals' patients, held out for this, has not fallen for so many epochs;
        0: train to the end, on all.
    memory_mb
        MiB for prepared images; what goes beyond lies in a temporary file.
    """

    epochs: int = Field(100, ge=1)
    steps: int = Field(0, ge=0)
    max_minutes: float = Field(0.0, ge=0)
    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: float = Field(0.0, ge=0, lt=1)
    clip_norm: float = Field(0.0, ge=0)
    mixed_precision: bool = True
    augment: bool = False
    patience: int = Field(0, ge=0)
    memory_mb: float = Field(2048.0, gt=0)


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
