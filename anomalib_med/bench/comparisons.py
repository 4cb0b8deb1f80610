"""Tables of many comparisons and of many seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

from anomalib_med.evaluation.curves import Floats


@dataclass(frozen=True)
class Spread:
    """A metric over training seeds.

    Parameters
    ----------
    mean, sd
        Over the seeds; `sd` (of the sample, n - 1) is NaN for one seed.
    seeds
        How many.
    """

    mean: float
    sd: float
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if self.seeds == 1 else f"{self.mean:.3f} ± {self.sd:.3f} ({self.seeds} seeds)"


def over_seeds(values: Sequence[float] | np.ndarray) -> Spread:
    """Mean and standard deviation over seeds: what training varies by, not what another test set would.

    Raises
    ------
    ValueError
        Without a value.
    """
    v = np.asarray(values, float)
    if not v.size:
        raise ValueError("a mean over seeds needs one seed at least")
    sd = sqrt(float(np.sum((v - v.mean()) ** 2)) / (v.size - 1)) if v.size > 1 else float("nan")
    return Spread(float(v.mean()), sd, v.size)


def holm(p_values: Sequence[float] | np.ndarray) -> Floats:
    """Adjust p-values so that the chance of any false finding in the whole table stays below the level.

    Holm, "A simple sequentially rejective multiple test procedure", 1979.

    Parameters
    ----------
    p_values
        ``(k,)`` in [0, 1], of all comparisons of the table.

    Returns
    -------
    Adjusted p-values ``(k,)``, in the order given.
    """
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted
