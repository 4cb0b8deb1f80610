"""What ``anomed evaluate`` writes: metrics.csv, metrics.json and the scores they were computed from."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from anomalib_med.datasets.splits import ids_hash
from anomalib_med.evaluation.evaluate import Evaluation
from anomalib_med.files import output_errors, write_atomic
from anomalib_med.fitted import FittedModel
from anomalib_med.outputs.tables import csv_record
from anomalib_med.records import Sample


def write_evaluation(out: Path, evaluation: Evaluation, model: FittedModel, samples: Sequence[Sample]) -> list[Path]:
    """Write the three files.

    Returns
    -------
    What was written.

    Raises
    ------
    OutputError
        A file cannot be written.
    """
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    numbers = {name: interval.known() for name, interval in evaluation.metrics.items()}
    content = {
        "model": model.fingerprint(),
        "images_sha256": ids_hash(samples),
        "normal": int((evaluation.labels == 0).sum()),
        "abnormal": int((evaluation.labels == 1).sum()),
        "patients": len(np.unique(evaluation.patients)),
        "metrics": numbers,
        "failures": evaluation.failures,
        "seconds": round(evaluation.seconds, 3),
    }
    metrics = [("metric", "value", "low", "high"), *((name, *ends.values()) for name, ends in numbers.items())]
    images = zip(evaluation.ids, evaluation.labels.tolist(), evaluation.scores.tolist(), strict=True)
    files = {
        out / "metrics.csv": map(csv_record, metrics),
        out / "metrics.json": [json.dumps(content, indent=1).encode()],
        out / "scores.csv": map(csv_record, [("id", "label", "score"), *images]),
    }
    for path, parts in files.items():
        write_atomic(path, *parts)
    return list(files)
