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
        Where a file cannot be written.
    """
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    numbers = {name: interval.known() for name, interval in evaluation.metrics.items()}
    table, described, scores = out / "metrics.csv", out / "metrics.json", out / "scores.csv"
    write_atomic(
        table,
        csv_record(("metric", "value", "low", "high")),
        *(csv_record((name, *values)) for name, values in numbers.items()),
    )
    content = {
        "model": model.fingerprint(),
        "images_sha256": ids_hash(samples),
        "normal": int((evaluation.labels == 0).sum()),
        "abnormal": int((evaluation.labels == 1).sum()),
        "patients": len(np.unique(evaluation.patients)),
        "metrics": {name: dict(zip(("value", "low", "high"), v, strict=True)) for name, v in numbers.items()},
        "failures": evaluation.failures,
        "seconds": round(evaluation.seconds, 3),
    }
    write_atomic(described, json.dumps(content, indent=1).encode())
    rows = zip(evaluation.ids, evaluation.labels.tolist(), evaluation.scores.tolist(), strict=True)
    write_atomic(scores, csv_record(("id", "label", "score")), *(csv_record(row) for row in rows))
    return [table, described, scores]
