"""Which rule makes the score of a volume: chosen on held-out normals, with findings added to their scores.

No abnormal image is needed. In a normal volume the scores of neighbouring slices are raised, as a finding of some
millimetres would raise them; the rule that best tells such volumes from the other normal ones is taken. What it depends
on is how normal scores scatter: single high slices speak for an average, few quiet slices for the highest.

A rule that is chosen by the volumes that it is then calibrated on suits them better than new ones, and raises more
false alarms than it is asked for. So the patients that choose are not those that calibrate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from anomalib_med.calibration.conformal import Calibration
from anomalib_med.calibration.rule import AUTO, DEFAULT_HOW, VolumeRule, volume_score, volume_scores

RULES = (DEFAULT_HOW, "max", "top5", "mean")  # an earlier one is kept where a later one is no better
FEWEST = 10  # normal volumes; of fewer, nothing is chosen
MOST = 100
CHOOSE = 1 / 3  # of the patients; the others calibrate
CALIBRATE = 19  # patients at least: what a false-alarm rate of 5 % needs
CANDIDATE_SHARE = 0.05  # of normal slices that have a pixel above the threshold of candidates
FINDINGS = (5.0, 15.0, 45.0)  # mm: a nodule, a mass, a lobe
PLACES = 7  # of a finding along the volume
RISE = 2.0  # standard deviations of slices within their volume
BETTER = 0.01  # of AUROC: less is no reason to leave the default


@dataclass(frozen=True, eq=False)
class NormalVolume:
    """What is known of a held-out normal volume; `scores`, `slots`, `thickness` as for :func:`.rule.volume_score`."""

    scores: Sequence[float]
    slots: Sequence[int]
    thickness: float | None
    patient: str = ""
    peak: float = 0.0  # highest value of its anomaly map

    def score(self, how: str) -> float:
        """Its score under a rule."""
        return volume_score(self.scores, self.slots, self.thickness, how)


def calibrated_rule(
    volumes: Sequence[NormalVolume], how: str, seed: int, compared: Mapping[str, float] | None = None
) -> VolumeRule:
    """The rule with what is normal under it, from held-out normal volumes.

    "auto" chooses on a third of the patients, drawn by `seed`, and calibrates on the others; of too few (`FEWEST`
    volumes, `CALIBRATE` patients) all calibrate the default rule. `compared` is that of :class:`.rule.VolumeRule`.
    """
    compared = compared or {}
    if how == AUTO:
        how = DEFAULT_HOW
        choosing, rest = _split(volumes, seed)
        if len(choosing) >= FEWEST and len({v.patient for v in rest}) >= CALIBRATE:
            how, compared = choose_rule(choosing)
            volumes = rest
    if not volumes:
        return VolumeRule(how, compared=compared)
    patients = [v.patient for v in volumes]
    scores = Calibration.of([v.score(how) for v in volumes], patients)
    peaks = Calibration.of([v.peak for v in volumes], patients)
    return VolumeRule(how, scores=scores, peaks=peaks, compared=compared)


def _split(volumes: Sequence[NormalVolume], seed: int) -> tuple[list[NormalVolume], list[NormalVolume]]:
    """The volumes of a third of the patients, and the others."""
    patients = sorted({v.patient for v in volumes})
    order = np.random.default_rng(seed).permutation(len(patients))
    chosen = {patients[i] for i in order[: round(CHOOSE * len(patients))]}
    return [v for v in volumes if v.patient in chosen], [v for v in volumes if v.patient not in chosen]


def choose_rule(volumes: Sequence[NormalVolume]) -> tuple[str, dict[str, float]]:
    """The rule for the score of a volume, chosen on normal ones; of fewer than `FEWEST` volumes the default.

    With it, by rule, the AUROC of volumes with an added finding against the other normal ones.
    """
    if len(volumes) < FEWEST:
        return DEFAULT_HOW, {}
    volumes = volumes[:MOST]
    within = np.concatenate([np.asarray(v.scores, float) - np.mean(v.scores) for v in volumes])
    rise = RISE * float(within.std())
    aurocs = {rule: _auroc(volumes, rule, rise) for rule in RULES}
    best = max(RULES, key=lambda rule: aurocs[rule])
    return best if aurocs[best] > aurocs[DEFAULT_HOW] + BETTER else DEFAULT_HOW, aurocs


def _auroc(volumes: Sequence[NormalVolume], rule: str, rise: float) -> float:
    """Mean over volumes and findings of the share of the other volumes that score lower; ties count half."""
    normal = np.array([volume.score(rule) for volume in volumes])
    shares = []
    for row, volume in enumerate(volumes):
        others = np.delete(normal, row)
        scores = volume_scores(_with_findings(volume, rise), volume.slots, volume.thickness, rule)[:, None]
        shares.append((others < scores).mean(axis=1) + 0.5 * (others == scores).mean(axis=1))
    return float(np.mean(shares))


def _with_findings(volume: NormalVolume, rise: float) -> np.ndarray:
    """The scores ``(k, n)`` with findings of each size at each place."""
    scores, slots = np.asarray(volume.scores, float), np.asarray(volume.slots)
    raised: list[np.ndarray] = []
    for length in FINDINGS:
        run = max(1, round(length / (volume.thickness or 10 / 3)))
        for start in np.linspace(slots[0], max(slots[0], slots[-1] - run + 1), PLACES).round():
            raised.append(scores + rise * ((slots >= start) & (slots < start + run)))
    return np.array(raised)
