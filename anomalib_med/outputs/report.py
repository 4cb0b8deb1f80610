"""report.html: one self-contained page with the most anomalous images first, for a person to look at."""

import base64
import heapq
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import jinja2
import numpy as np

from anomalib_med.files import output_errors, write_atomic
from anomalib_med.outputs.histogram import GROUPS, Histogram
from anomalib_med.outputs.names import safe_stem
from anomalib_med.outputs.resume import FAILURES_CSV, OVERLAYS, REPORT, SCORES_CSV
from anomalib_med.outputs.run import flat_table
from anomalib_med.outputs.tables import FAILURES, SCORES
from anomalib_med.records import Result, RunInfo, Sample
from anomalib_med.version import __version__

_FAILURES_SHOWN = 200


@dataclass(slots=True)
class _Counts:
    scored: int = 0
    flagged: int = 0
    decided: int = 0
    failed: int = 0
    lowest: float = math.inf
    highest: float = -math.inf

    def counted(self, results: Iterable[Result]) -> Iterator[Result]:
        """The same results, each counted as it passes."""
        for result in results:
            self.scored += 1
            self.flagged += result.flagged is True
            self.decided += result.flagged is not None
            if math.isfinite(result.score):
                self.lowest, self.highest = min(self.lowest, result.score), max(self.highest, result.score)
            yield result


def write_report(out: Path, run: RunInfo, samples: Sequence[Sample], *, top: int = 60) -> Path:
    """Write ``report.html`` of a run from the tables and overlays in its folder, with the `top` most anomalous images.

    The tables are read row by row and only the pictures of those images are loaded, so memory does not grow with the
    number of images. Labels of `samples` are shown beside the results, and the histogram tells them apart.
    Raises OutputError where a table is missing or damaged.
    """
    labels = {sample.id: sample.label for sample in samples if sample.label is not None}
    threshold = run.threshold if run.threshold is not None and math.isfinite(run.threshold) else None
    counts = _Counts()
    ranked = heapq.nlargest(top, counts.counted(SCORES.read(out / SCORES_CSV)), key=lambda result: result.score)
    failures = FAILURES.read(out / FAILURES_CSV)
    shown = list(islice(failures, _FAILURES_SHOWN))
    counts.failed = len(shown) + sum(1 for _ in failures)
    text = _template().render(
        title=f"{run.title}: {len(samples)} images",
        version=__version__,
        model=flat_table(run.model),
        notes=run.notes,
        counts=counts,
        calibration_count=len(run.normal_scores),
        threshold=threshold,
        false_alarm_rate=run.false_alarm_rate,
        histogram=_histogram(out, counts, run.normal_scores, threshold, labels),
        groups=GROUPS,
        cards=[(result, labels.get(result.id), _picture(out, result)) for result in ranked],
        failures=shown,
    )
    write_atomic(out / REPORT, text.encode("utf-8", "replace"))
    return out / REPORT


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, autoescape=True)
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.filters["number"] = lambda value: "-" if value is None else f"{value:.4g}"
    return environment.get_template("report.html.j2")


def _histogram(
    out: Path, counts: _Counts, normals: np.ndarray, threshold: float | None, labels: Mapping[str, int]
) -> Histogram | None:
    histogram = Histogram.over(normals, counts.lowest, counts.highest, threshold)
    if histogram is not None:
        for score in normals.tolist():
            histogram.add("calibration", score)
        for result in SCORES.read(out / SCORES_CSV):
            label = labels.get(result.id)
            known = "unlabelled" if label is None else "abnormal" if label else "normal"
            histogram.add(known if labels else "scored", result.score)
    return histogram


def _picture(out: Path, result: Result) -> str:
    """The overlay JPEG in base64, or "" where there is none."""
    path = out / OVERLAYS / f"{safe_stem(result.id)}.jpg"
    if not path.is_file():
        return ""
    with output_errors(path):
        return base64.b64encode(path.read_bytes()).decode("ascii")
