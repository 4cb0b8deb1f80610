"""What a model says of how it was fitted: the record of its training, and notes for a reader of its scores."""

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import cast

from anomalib_med.calibration import Calibration, patients_needed
from anomalib_med.datasets.splits import ids_hash
from anomalib_med.features import RANDOM_WARNING
from anomalib_med.features.backbones import RANDOM
from anomalib_med.models.base import Detector
from anomalib_med.models.training import EpochChoice, TrainedDetector
from anomalib_med.records import Json, Sample

NOTED_RATE = 0.05  # a note says so where too few patients are held out for this false-alarm rate


def training_record(
    detector: Detector,
    kept: Sequence[Sample],
    held_out: Sequence[Sample],
    failures: Mapping[str, str],
    seed: int,
    choice: EpochChoice | None = None,
) -> Json:
    """What a model says of the images it was fitted on: counts and a hash, no names."""
    sha256 = ids_hash([*kept, *held_out])
    kept, held_out = ([s for s in part if s.id not in failures] for part in (kept, held_out))
    record: Json = {
        "images": len(kept),
        "patients": len({s.patient for s in kept}),
        "held_out_images": len(held_out),
        "held_out_patients": len({s.patient for s in held_out}),
        "unreadable": len(failures),
        "ids_sha256": sha256,
        "seed": seed,
        "device": detector.device.type,
    }
    if isinstance(detector, TrainedDetector) and detector.training is not None:
        t = detector.training
        # Not the time it took: the same training would have another fingerprint each time.
        record |= {"steps": t.step, "planned_steps": t.steps, "stopped": t.stopped, "losses": dict(t.losses)}
        if choice is not None:
            chosen: Json = {"by": choice.name, "value": t.selected_value, "step": t.selected_step}
            record["selection"] = {**chosen, "unlabelled_images": len(choice.images)}
    packages = {name: version(name) for name in ("torch", "timm", "numpy", "opencv-python-headless")}
    return record | {"packages": {"python": platform.python_version(), **packages}}


def notes_on(detector: Detector, training: Json, calibration: Calibration | None) -> tuple[str, ...]:
    """What a reader of a model's scores must know."""
    notes = []
    if detector.uses_features and detector.extractor.backbone.source == RANDOM:
        notes.append(RANDOM_WARNING)
    if training.get("stopped") == "time":
        done, planned = training["steps"], training["planned_steps"]
        notes.append(f"training ended after {done} of {planned} steps, when max_minutes were over")
    if "selection" in training:
        chosen = cast(Json, training["selection"])
        how = f"by {chosen['by']} {chosen['value']:.3f} on {chosen['unlabelled_images']} unlabelled images"
        what = f"of {training['steps']} steps the weights after step {chosen['step']} were chosen, {how}"
        notes.append(f"transductive: {what}; results on those images flatter the model")
    needed = patients_needed(NOTED_RATE)
    if calibration is None:
        notes.append("no normals were held out: scores have no p-values and nothing is flagged")
    elif calibration.patient_count < needed:
        count = calibration.patient_count
        few = f"only {count} {'patient was' if count == 1 else 'patients were'} held out"
        least = f"a false-alarm rate of {calibration.smallest_p:.3f} (5 % needs {needed})"
        notes.append(f"{few}: nothing can be flagged below {least}")
    return tuple(notes)
