import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomalib_med.errors import ConfigError
from anomalib_med.pooling_rules import Kind, Rule, parse_rule

EVERY: tuple[Kind, ...] = ("max", "mean", "share", "count", "power", "run", "noisy-or")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("max", Rule("max")),
        ("mean", Rule("mean")),
        ("top10%", Rule("share", 0.1)),
        ("top0.5%", Rule("share", 0.005)),
        ("top100%", Rule("share", 1)),
        ("top5", Rule("count", 5)),
        ("power8", Rule("power", 8)),
        ("power1", Rule("power", 1)),
        ("run10mm", Rule("run", 10)),
        ("run2.5mm", Rule("run", 2.5)),
        ("noisy-or", Rule("noisy-or")),
    ],
)
def test_every_rule_is_read(text: str, rule: Rule) -> None:
    assert parse_rule(text, EVERY) == rule


@pytest.mark.parametrize(
    "text",
    [
        "",
        "median",
        "Max",
        "top",
        "top0",
        "top05",
        "top0%",
        "top101%",
        "top2.5",
        "top-1%",
        "power0.5",
        "run0mm",
        "run10",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"run<mm>mm \(run10mm\) or noisy-or"):
        parse_rule(text, EVERY)


def test_an_error_names_the_text_what_it_is_and_what_is_allowed() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_rule("top10%", ("max", "mean", "count", "run"), "volume score")
    expected = 'volume score "top10%" is not known: choose max, mean, top<k> (top5) or run<mm>mm (run10mm)'
    assert str(caught.value) == expected


@given(st.floats(0.001, 100).map(lambda q: f"{q:.3f}"))
def test_a_share_is_a_hundredth_of_its_percentage(percent: str) -> None:
    assert parse_rule(f"top{percent}%", ["share"]).number == float(percent) / 100
