"""Which rule makes the score of a volume: chosen on held-out normals, with findings added to their scores.

No abnormal image is needed. In a normal volume the scores of neighbouring slices are raised, as a finding of some
millimetres would raise them; the rule that best tells such volumes from the other normal ones is taken. What it depends
on is how normal scores scatter: single high slices speak for an average, few quiet slices for the highest.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from anomalib_med.calibration.judge import DEFAULT_HOW, volume_score

RULES = (DEFAULT_HOW, "max", "top5", "mean")  # an earlier one is kept where a later one is no better
FEWEST = 10  # normal volumes; of fewer, nothing is chosen
MOST = 100
FINDINGS = (5.0, 15.0, 45.0)  # mm: a nodule, a mass, a lobe
PLACES = 7  # of a finding along the volume
RISE = 2.0  # standard deviations of slices within their volume
BETTER = 0.01  # of AUROC: less is no reason to leave the default


@dataclass(frozen=True, eq=False)
class SliceScores:
    """Scores of the slices of one normal volume, see :func:`.volumes.volume_score`."""

    scores: Sequence[float]
    slots: Sequence[int]
    thickness: float | None


def choose_rule(volumes: Sequence[SliceScores]) -> tuple[str, dict[str, float]]:
    """Choose the rule for the score of a volume.

    Parameters
    ----------
    volumes
        Held-out normal ones.

    Returns
    -------
    The rule, and by rule the AUROC of volumes with an added finding against the other normal ones; of fewer than
    `FEWEST` volumes the default and nothing.
    """
    if len(volumes) < FEWEST:
        return DEFAULT_HOW, {}
    volumes = volumes[:MOST]
    within = np.concatenate([np.asarray(v.scores, float) - np.mean(v.scores) for v in volumes])
    rise = RISE * float(within.std())
    found = {rule: _auroc(volumes, rule, rise) for rule in RULES}
    best = max(found, key=lambda rule: found[rule])
    return best if found[best] > found[DEFAULT_HOW] + BETTER else DEFAULT_HOW, found


def _auroc(volumes: Sequence[SliceScores], rule: str, rise: float) -> float:
    """Mean over volumes and findings of the share of the other volumes that score lower; ties count half."""
    normal = np.array([volume_score(v.scores, v.slots, v.thickness, rule) for v in volumes])
    shares = []
    for row, volume in enumerate(volumes):
        others = np.delete(normal, row)
        for scores in _with_findings(volume, rise):
            score = volume_score(scores, volume.slots, volume.thickness, rule)
            shares.append(float((others < score).mean() + 0.5 * (others == score).mean()))
    return float(np.mean(shares))


def _with_findings(volume: SliceScores, rise: float) -> list[list[float]]:
    """The scores with findings of each size at each place."""
    scores, slots = np.asarray(volume.scores, float), np.asarray(volume.slots)
    thickness = volume.thickness or 10 / 3
    raised = []
    for length in FINDINGS:
        run = max(1, round(length / thickness))
        for start in np.linspace(slots[0], max(slots[0], slots[-1] - run + 1), PLACES).round():
            raised.append((scores + rise * ((slots >= start) & (slots < start + run))).tolist())
    return raised
