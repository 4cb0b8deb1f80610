import re
from html.parser import HTMLParser

import numpy as np
import pytest
from made_up_results import FINGERPRINT, RANGE, failed, grey, scored

from anomalib_med.errors import OutputError
from anomalib_med.outputs.histogram import GROUPS, Histogram
from anomalib_med.outputs.report import write_report
from anomalib_med.outputs.writer import ResultWriter
from anomalib_med.records import RunInfo, Sample

HOSTILE = "<img src=x onerror=alert(1)>.png"
NORMALS = np.linspace(0.2, 1.0, 30)
VOID = {"meta", "link", "img", "input", "br", "hr"}


class Page(HTMLParser):
    """The tags, attributes and texts of a page; fails on tags that are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    def text(self):
        return " ".join(" ".join(data for tag, data in self.texts if tag not in ("style", "script")).split())


def run(**options):
    given = {"title": "Chest", "model": {"detector": "patchcore"}, "notes": (), "fingerprint": ""}
    given |= {"false_alarm_rate": 0.05, "threshold": 1.0, "normal_scores": NORMALS, "colour_range": RANGE}
    return RunInfo(**given | options)


def report(out, results, **options):
    with ResultWriter(
        out, fingerprint=FINGERPRINT, colour_range=RANGE, overlays=options.pop("overlays", True)
    ) as target:
        for result in results:
            target.write(result, grey() if result.ok else None)
    labels, top = options.pop("labels", {}), options.pop("top", 60)
    samples = [Sample(result.id, label=labels.get(result.id)) for result in results]
    return write_report(out, run(**options), samples, top=top).read_text(encoding="utf-8")


def drawn(page):
    """What the histogram shows."""
    return [attrs["id"] for attrs in page.all("g") if attrs["id"] in (*GROUPS, "threshold")]


RESULTS = [scored("low", 0.3), scored("high", 1.9), failed("bad.dcm", "cut short"), scored("middle", 1.1)]


def test_the_most_anomalous_image_comes_first(tmp_path):
    cards = [attrs["data-name"] for attrs in Page(report(tmp_path, RESULTS)).all("figure")]
    assert [name.split()[0] for name in cards] == ["high", "middle", "low"]


def test_only_the_top_images_are_shown_and_the_page_says_so(tmp_path):
    page = Page(report(tmp_path, RESULTS, top=2))
    assert len(page.all("img")) == len(page.all("figure")) == 2
    assert "The 2 most anomalous of 3 images" in page.text()


def test_counts_settings_notes_and_failures_are_on_the_page(tmp_path):
    text = Page(report(tmp_path, RESULTS, notes=["Random weights: scores are weak."])).text()
    for expected in (
        "3 scored",
        "2 flagged (66.7 %)",
        "1 failed",
        "30 calibration normals",
        "1 threshold, 5 % false alarms",
    ):
        assert expected in text
    for expected in ("detector patchcore", "Please note Random weights: scores are weak.", "bad.dcm cut short"):
        assert expected in text
    assert "not a medical device" in text


def test_nothing_is_loaded_from_elsewhere(tmp_path):
    text = report(tmp_path, RESULTS)
    page = Page(text)
    assert all(attrs["src"].startswith("data:image/jpeg;base64,") for attrs in page.all("img"))
    assert not page.all("link")
    assert not [attrs for attrs in page.all("script") if "src" in attrs]
    assert not re.search(r"https?://|url\(|@import", text)


def test_hostile_names_are_text_everywhere(tmp_path):
    results = [scored(HOSTILE, 1.9), scored('" onload="alert(1)', 1.8), failed(HOSTILE, HOSTILE)]
    page = Page(report(tmp_path, results, title=HOSTILE, model={HOSTILE: HOSTILE}, notes=[HOSTILE]))
    assert all(attrs["src"].startswith("data:") for attrs in page.all("img"))
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert page.text().count(HOSTILE) >= 6


def test_a_name_that_is_no_utf8_does_not_stop_the_report(tmp_path):
    assert "figure" in report(tmp_path, [scored("a\udcff.png")])


def test_without_overlays_the_cards_say_so(tmp_path):
    page = Page(report(tmp_path, RESULTS, overlays=False))
    assert not page.all("img")
    assert page.text().count("no overlay was written") == 3


def test_without_calibration_nothing_is_flagged_and_there_is_no_threshold(tmp_path):
    results = [scored("a", 1.0, p_value=None, flagged=None), scored("b", 2.0, p_value=None, flagged=None)]
    page = Page(report(tmp_path, results, normal_scores=np.array([]), threshold=None))
    assert not [attrs for attrs in page.all("span") if "badge" in attrs.get("class", "")]
    assert "threshold" not in drawn(page)


def test_labels_are_shown_and_told_apart_in_the_histogram(tmp_path):
    page = Page(report(tmp_path, RESULTS, labels={"low": 0, "high": 1}))
    assert drawn(page) == ["calibration", "normal", "abnormal", "unlabelled", "threshold"]
    assert "Scored, labelled abnormal (1) Scored, no label (1)" in page.text()


def test_a_run_without_any_scored_image_gives_a_page(tmp_path):
    page = Page(report(tmp_path, [failed("a")], normal_scores=np.array([]), threshold=None))
    assert "No image was scored." in page.text()


def test_without_results_the_missing_table_is_named(tmp_path):
    with pytest.raises(OutputError, match=r"scores\.csv"):
        write_report(tmp_path, run(), [])


def test_the_page_works_without_scripts_and_in_the_dark(tmp_path):
    text = report(tmp_path, RESULTS)
    assert [attrs for attrs in Page(text).all("div") if attrs.get("id") == "bar" and "hidden" in attrs]
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_the_same_results_give_the_same_page(tmp_path):
    assert report(tmp_path / "a", RESULTS) == report(tmp_path / "b", RESULTS)


def histogram(normals, scores, threshold=None):
    return Histogram.of({"calibration": normals, "scored": scores}, threshold)


def test_histogram_counts_are_numpys():
    scores = np.random.default_rng(0).normal(1, 0.2, 500)
    found = histogram(NORMALS, [*scores, np.nan], 1.0)
    expected = np.histogram(scores, 48, (found.lo, found.hi))[0]
    assert np.abs(found.counts["scored"] - expected).sum() < 5
    assert found.totals == {"calibration": len(NORMALS), "scored": 500}


def test_one_wild_score_does_not_squeeze_the_histogram():
    found = histogram(NORMALS, [0.5, 1e9], 1.0)
    assert found.hi < 10
    assert found.overflow
    assert found.counts["scored"][-1] == 1


@pytest.mark.parametrize("scores", [[1.0], [0.0, 0.0], [-3.0, 5.0], [1e-9, 2e-9], [1e9, 1e9]])
def test_every_range_of_scores_can_be_drawn(scores):
    found = histogram([], scores)
    assert found.lo < found.hi
    assert "nan" not in found.svg()
    assert 2 <= len(re.findall("<text", found.svg())) <= 24


def test_a_threshold_beyond_every_score_is_drawn_at_the_edge():
    assert 'id="threshold"' in histogram(NORMALS, [0.5], np.inf).svg()


def test_without_a_finite_score_there_is_no_histogram():
    assert histogram([], [float("nan")]) is None
