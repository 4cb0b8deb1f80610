"""Which epoch of a training is kept. By default the last one, which needs nothing but the normals."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch


@dataclass
class Selection:
    """Keep the weights of the epoch with the highest value, the first of equals, in place of the last ones.

    A training goes the same way with it and without; only what is kept of it differs.

    Parameters
    ----------
    images, count
        What tells the images that `value` looks at from others, as an interrupted training goes on with the same ones;
        and how many they are.
    value
        Called after each epoch, and at the end of the training, while the detector is ready to score; higher is better.

    Attributes
    ----------
    weights
        The best so far, as :meth:`anomalib_med.models.training.trainer.TrainedDetector.state` gives them.
    """

    images: str
    count: int
    value: Callable[[], float]
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
