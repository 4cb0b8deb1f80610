"""Splits that never put images of one patient on both sides."""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from anomalib_med.errors import ConfigError, FitError
from anomalib_med.records import Sample


def split_by_patient(samples: Sequence[Sample], share: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Hold out whole patients: the samples that are kept, and those that are held out, each in the order given.

    Parameters
    ----------
    samples
        The images; the split depends on their patients and the seed alone.
    share
        Part of the patients that is held out, in [0, 1). Above 0 at least one is held out, and one is always kept.
    seed
        Seed of the shuffle.

    Raises
    ------
    FitError
        A part is asked for and there is only one patient.
    ConfigError
        `share` outside [0, 1).
    """
    if not 0 <= share < 1:
        raise ConfigError(f"share = {share}: the part to be held out is at least 0 and below 1, 0.2 for example")
    if share == 0:
        return list(samples), []
    patients = sorted({sample.patient for sample in samples})
    if len(patients) < 2:
        whose = f"all {len(samples)} images belong to one patient ({patients[0]})" if patients else "there is no image"
        raise FitError(f"{whose}, so none can be held out: give images of more patients, or set calibration to 0")
    number = min(max(1, round(share * len(patients))), len(patients) - 1)
    order = np.random.default_rng(seed).permutation(len(patients))
    held_out = {patients[i] for i in order[:number]}
    kept = [sample for sample in samples if sample.patient not in held_out]
    return kept, [sample for sample in samples if sample.patient in held_out]


def ids_hash(samples: Iterable[Sample]) -> str:
    """SHA-256 of the sorted ids, in hexadecimal: the fingerprint of a set of images, whatever their order."""
    lines = "\n".join(sorted(sample.id for sample in samples))
    return hashlib.sha256(lines.encode()).hexdigest()
