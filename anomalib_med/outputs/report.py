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
from anomalib_med.outputs.tables import FAILURES, SCORES
from anomalib_med.records import Result
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


def write_report(
    out: Path,
    *,
    title: str,
    model: Mapping[str, str],
    calibration_scores: np.ndarray,
    threshold: float | None,
    false_alarm_rate: float,
    labels: Mapping[str, int] | None = None,
    notes: Sequence[str] = (),
    top: int = 60,
) -> Path:
    """Write ``report.html`` from the tables and overlays in an output folder.

    The tables are read row by row and only the pictures of the `top` images are loaded, so memory does not grow with
    the number of images.

    Parameters
    ----------
    out
        Output folder of a `ResultWriter`; the report goes there too.
    title
        Heading of the page.
    model
        Settings to show, as text by name.
    calibration_scores
        float ``(n,)``, scores of the held-out normals; may be empty.
    threshold
        Score from which an image is flagged; None without calibration.
    false_alarm_rate
        Share of healthy images that may be flagged, in (0, 1).
    labels
        What is known of the images, 0 normal or 1 abnormal by id. Labels are shown beside the results, and the
        histogram tells them apart.
    notes
        Warnings and remarks, shown before everything else.
    top
        How many images to show.

    Returns
    -------
    The file written.

    Raises
    ------
    OutputError
        The tables are missing or damaged, or the file cannot be written.
    """
    labels = labels or {}
    counts = _Counts()
    ranked = heapq.nlargest(top, counts.counted(SCORES.read(out / SCORES_CSV)), key=lambda result: result.score)
    failures = FAILURES.read(out / FAILURES_CSV)
    shown = list(islice(failures, _FAILURES_SHOWN))
    counts.failed = len(shown) + sum(1 for _ in failures)
    text = _template().render(
        title=title,
        version=__version__,
        model=dict(model),
        notes=list(notes),
        counts=counts,
        calibration_count=int(np.size(calibration_scores)),
        threshold=threshold,
        false_alarm_rate=false_alarm_rate,
        histogram=_histogram(out, counts, calibration_scores, threshold, labels),
        groups=GROUPS,
        cards=[(result, labels.get(result.id), _picture(out, result)) for result in ranked],
        failures=shown,
    )
    path = out / REPORT
    write_atomic(path, text.encode("utf-8", "replace"))
    return path


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = lambda value: "-" if value is None else f"{value:.4g}"
    return environment.get_template("report.html.j2")


def _histogram(
    out: Path, counts: _Counts, calibration: np.ndarray, threshold: float | None, labels: Mapping[str, int]
) -> Histogram | None:
    normals = np.asarray(calibration, np.float64).ravel()
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
