"""report.html: one self-contained page with the most anomalous images first, for a person to look at."""

import base64
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import jinja2
import numpy as np

from anomalib_med.files import output_errors, write_atomic
from anomalib_med.outputs.histogram import Histogram
from anomalib_med.outputs.names import safe_stem
from anomalib_med.outputs.resume import FAILURES_CSV, OVERLAYS, REPORT, SCORES_CSV
from anomalib_med.outputs.tables import FAILURES, SCORES
from anomalib_med.records import Result
from anomalib_med.version import __version__

_FAILURES_SHOWN = 200


@dataclass(frozen=True, slots=True)
class Card:
    """One image of the report.

    Parameters
    ----------
    rank
        1 for the most anomalous.
    result
        Its row of scores.csv.
    label
        0 normal, 1 abnormal, None unknown.
    picture
        The overlay JPEG in base64, or "".
    """

    rank: int
    result: Result
    label: int | None
    picture: str


@dataclass(frozen=True, slots=True)
class _Counts:
    scored: int
    flagged: int
    decided: int
    failed: int


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
        Output folder of a `ResultWriter`, and where the report goes.
    title, model
        Heading of the page; settings to show, as text by name.
    calibration_scores
        float ``(n,)``, scores of the held-out normals; may be empty.
    threshold, false_alarm_rate
        Score from which an image is flagged, None without calibration; share of healthy images that may be, in (0, 1).
    labels
        What is known of the images, 0 normal or 1 abnormal by id: shown beside the result and told apart in the
        histogram.
    notes, top
        Warnings and remarks, shown before everything else; how many images to show.

    Returns
    -------
    The file written.

    Raises
    ------
    OutputError
        The tables are missing or damaged, or the file cannot be written.
    """
    labels = labels or {}
    text = _template().render(
        title=title,
        version=__version__,
        model=dict(model),
        notes=list(notes),
        counts=_count(out),
        calibration_count=int(np.size(calibration_scores)),
        threshold=threshold,
        false_alarm_rate=false_alarm_rate,
        histogram=_histogram(out / SCORES_CSV, calibration_scores, threshold, labels),
        cards=_cards(out, labels, top),
        has_labels=bool(labels),
        failures=list(islice(FAILURES.read(out / FAILURES_CSV), _FAILURES_SHOWN)),
    )
    path = out / REPORT
    write_atomic(path, text.encode("utf-8", "replace"))
    return path


def _cards(out: Path, labels: Mapping[str, int], top: int) -> list[Card]:
    ranked = heapq.nlargest(top, SCORES.read(out / SCORES_CSV), key=lambda result: result.score)
    return [
        Card(rank, result, labels.get(result.id), _picture(out, result)) for rank, result in enumerate(ranked, start=1)
    ]


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


def _count(out: Path) -> _Counts:
    scored = flagged = decided = 0
    for result in SCORES.read(out / SCORES_CSV):
        scored += 1
        flagged += result.flagged is True
        decided += result.flagged is not None
    return _Counts(scored, flagged, decided, sum(1 for _ in FAILURES.read(out / FAILURES_CSV)))


def _histogram(
    scores: Path, calibration: np.ndarray, threshold: float | None, labels: Mapping[str, int]
) -> Histogram | None:
    normals = np.asarray(calibration, np.float64).ravel()
    histogram = Histogram.over(normals, (result.score for result in SCORES.read(scores)), threshold)
    if histogram is None:
        return None
    histogram.add("Calibration normals", "calibration", normals.tolist())
    if not labels:
        histogram.add("Scored images", "scored", (result.score for result in SCORES.read(scores)))
        return histogram
    groups = ((0, "Scored, labelled normal", "normal"), (1, "Scored, labelled abnormal", "abnormal"))
    for label, name, style in groups:
        histogram.add(name, style, (r.score for r in SCORES.read(scores) if labels.get(r.id) == label))
    histogram.add("Scored, no label", "scored", (r.score for r in SCORES.read(scores) if r.id not in labels))
    return histogram


def _picture(out: Path, result: Result) -> str:
    path = out / OVERLAYS / f"{safe_stem(result.id)}.jpg"
    if not path.is_file():
        return ""
    with output_errors(path):
        return base64.b64encode(path.read_bytes()).decode("ascii")
