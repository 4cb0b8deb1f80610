import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_results import failed, scored

from anomalib_med.errors import OutputError
from anomalib_med.outputs.tables import (
    FAILURES,
    SCORES,
    convert_scores,
    csv_record,
    failure_values,
    iter_failures,
    read_scores,
    score_values,
)


def table(folder, results):
    path = folder / "scores.csv"
    path.write_bytes(csv_record(SCORES) + b"".join(csv_record(score_values(result)) for result in results))
    return path


def bare(results):
    return [score_values(result) for result in results]


AWKWARD = [
    scored("a,b.png", 0.1 + 0.2),
    scored('say "hi"\nthere', -3.5e-300),
    scored("=cmd|' /C calc'!A0", 1e300, p_value=None, flagged=None),
    scored("'=already", 5.0, frame=0),
    scored("é\udcff.png", 2.0),
]


def test_a_row_holds_the_columns_in_order():
    line = csv_record(
        score_values(scored("a.png", 1.5, p_value=0.05, flagged=True, frame=3, area="lung", map="maps/a.npy"))
    )
    assert line == b"a.png,/data/a.png,3,patient,1.5,0.05,true,lung,maps/a.npy\n"


def test_unknown_values_are_empty():
    assert csv_record(score_values(scored("a", 1.0, p_value=None, flagged=None))) == b"a,/data/a,,patient,1.0,,,,\n"


def test_awkward_rows_come_back_exactly(tmp_path):
    assert bare(read_scores(table(tmp_path, AWKWARD))) == bare(AWKWARD)


@given(st.floats(allow_nan=False), st.text(st.characters(codec="utf-8"), max_size=20))
def test_any_number_and_text_come_back_exactly(tmp_path_factory, value, text):
    results = [scored(text, value)]
    assert bare(read_scores(table(tmp_path_factory.mktemp("t"), results))) == bare(results)


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_a_spreadsheet_runs_no_text_as_a_formula(start):
    assert csv_record([start + "1+1"]).lstrip(b'"').startswith(b"'")


def test_a_negative_number_stays_a_number():
    assert csv_record([-1.5, -2]) == b"-1.5,-2\n"


def test_a_torn_last_row_is_left_out(tmp_path):
    path = table(tmp_path, AWKWARD)
    whole = path.read_bytes()
    path.write_bytes(whole + csv_record(score_values(AWKWARD[1]))[:9])
    assert bare(read_scores(path)) == bare(AWKWARD)


def test_an_edited_table_is_named_with_its_row(tmp_path):
    path = table(tmp_path, [scored("a")])
    path.write_bytes(path.read_bytes().replace(b"1.0", b"one"))
    with pytest.raises(OutputError, match=r"scores\.csv, row 2.*one"):
        read_scores(path)


def test_a_table_with_other_columns_is_refused(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("image,score\n")
    with pytest.raises(OutputError, match="expected the columns id"):
        read_scores(path)


def test_a_missing_table_and_an_unknown_kind_are_named(tmp_path):
    with pytest.raises(OutputError, match=r"none\.csv"):
        read_scores(tmp_path / "none.csv")
    with pytest.raises(OutputError, match=r"a\.xlsx"):
        read_scores(tmp_path / "a.xlsx")


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_the_other_tables_hold_the_same_rows(tmp_path, kind):
    results = [*AWKWARD[:4], *(scored(f"{i}.png", i / 7) for i in range(200))]
    assert bare(read_scores(convert_scores(table(tmp_path, results), kind))) == bare(results)


def test_parquet_is_written_in_row_groups_and_may_be_empty(tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    monkeypatch.setattr("anomalib_med.outputs.tables._ROWS_AT_ONCE", 10)
    path = convert_scores(table(tmp_path, [scored(str(i)) for i in range(25)]), "parquet")
    assert pq.ParquetFile(path).num_row_groups == 3
    assert read_scores(convert_scores(table(tmp_path, []), "parquet")) == []


def test_a_failure_comes_back_with_its_reason(tmp_path):
    path = tmp_path / "failures.csv"
    path.write_bytes(csv_record(FAILURES) + csv_record(failure_values(failed("a.dcm", "-cut, short", frame=2))))
    (failure,) = iter_failures(path)
    assert (failure.id, failure.frame, failure.status, failure.ok) == ("a.dcm", 2, "-cut, short", False)
    assert math.isnan(failure.score)
