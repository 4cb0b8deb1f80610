"""report.html: one self-contained page with the most anomalous images first, for a person to look at."""

import base64
import heapq
import math
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

import jinja2

from anomalib_med.files import output_errors, write_atomic
from anomalib_med.outputs.histogram import GROUPS, Histogram
from anomalib_med.outputs.names import safe_stem
from anomalib_med.outputs.resume import FAILURES_CSV, OVERLAYS, REPORT, SCORES_CSV
from anomalib_med.outputs.run import flat_table
from anomalib_med.outputs.runfile import read_run
from anomalib_med.outputs.tables import FAILURES, SCORES
from anomalib_med.records import Result, RunInfo, Sample
from anomalib_med.version import __version__

_FAILURES_SHOWN = 200


def write_report(out: Path, run: RunInfo, samples: Sequence[Sample], *, top: int = 60) -> Path:
    """Write ``report.html`` of a run from the tables and overlays in its folder, with the `top` most anomalous images.

    The tables are read row by row and only the pictures of those images are loaded, so memory grows by one number for
    each image. The run is complete. Labels of `samples` are shown beside the results and told apart in the histogram.
    Raises OutputError where a table is missing or damaged.
    """
    labels = {sample.id: sample.label for sample in samples if sample.label is not None}
    threshold = run.threshold if run.threshold is not None and math.isfinite(run.threshold) else None
    ranked = heapq.nlargest(top, SCORES.read(out / SCORES_CSV), key=lambda result: result.score)
    text = _template().render(
        title=f"{run.title}: {len(samples)} images",
        version=__version__,
        model=flat_table(run.model),
        notes=run.notes,
        counts=read_run(out).counts,
        calibration_count=len(run.normal_scores),
        decided=any(result.flagged is not None for result in ranked),
        threshold=threshold,
        false_alarm_rate=run.false_alarm_rate,
        histogram=Histogram.of(_scores(out, run, labels), threshold),
        groups=GROUPS,
        cards=[(result, labels.get(result.id), _picture(out, result)) for result in ranked],
        failures=list(islice(FAILURES.read(out / FAILURES_CSV), _FAILURES_SHOWN)),
    )
    write_atomic(out / REPORT, text.encode("utf-8", "replace"))
    return out / REPORT


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, autoescape=True)
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.filters["number"] = lambda value: "-" if value is None else f"{value:.4g}"
    return environment.get_template("report.html.j2")


def _scores(out: Path, run: RunInfo, labels: Mapping[str, int]) -> dict[str, list[float]]:
    """The scores of each group of images."""
    scores: dict[str, list[float]] = {group: [] for group in GROUPS} | {"calibration": run.normal_scores.tolist()}
    for result in SCORES.read(out / SCORES_CSV):
        label = labels.get(result.id)
        known = "unlabelled" if label is None else "abnormal" if label else "normal"
        scores[known if labels else "scored"].append(result.score)
    return scores


def _picture(out: Path, result: Result) -> str:
    """The overlay JPEG in base64, or "" where there is none."""
    path = out / OVERLAYS / f"{safe_stem(result.id)}.jpg"
    if not path.is_file():
        return ""
    with output_errors(path):
        return base64.b64encode(path.read_bytes()).decode("ascii")
