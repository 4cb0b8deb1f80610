import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_results import failed, scored

from anomalib_med.errors import OutputError
from anomalib_med.outputs.tables import FAILURES, ROWS_AT_ONCE, SCORES, Column, Table, csv_record, read_scores


def table(folder, results):
    path = folder / "scores.csv"
    path.write_bytes(SCORES.header + b"".join(SCORES.line(result) for result in results))
    return path


def bare(results):
    return [SCORES.values(result) for result in results]


AWKWARD = [
    scored("a,b.png", 0.1 + 0.2),
    scored('say "hi"\nthere', -3.5e-300),
    scored("=cmd|' /C calc'!A0", 1e300, p_value=None, flagged=None),
    scored("'=already", 5.0, frame=0),
    scored("é\udcff.png", 2.0),
]


def test_a_row_holds_the_columns_in_order():
    line = SCORES.line(scored("a.png", 1.5, p_value=0.05, flagged=True, frame=3, area="lung", map="maps/a.npy"))
    assert line == b"a.png,/data/a.png,3,patient,1.5,0.05,true,lung,maps/a.npy\n"


def test_unknown_values_are_empty():
    assert SCORES.line(scored("a", 1.0, p_value=None, flagged=None)) == b"a,/data/a,,patient,1.0,,,,\n"


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
    path.write_bytes(whole + SCORES.line(AWKWARD[1])[:9])
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
    assert bare(read_scores(SCORES.convert(table(tmp_path, results), kind))) == bare(results)


def test_parquet_is_written_in_row_groups_and_may_be_empty(tmp_path):
    import pyarrow.parquet as pq

    path = SCORES.convert(table(tmp_path, [scored(str(i)) for i in range(ROWS_AT_ONCE + 1)]), "parquet")
    assert pq.ParquetFile(path).num_row_groups == 2
    assert read_scores(SCORES.convert(table(tmp_path, []), "parquet")) == []


def test_a_failure_comes_back_with_its_reason(tmp_path):
    path = tmp_path / "failures.csv"
    path.write_bytes(FAILURES.header + FAILURES.line(failed("a.dcm", "-cut, short", frame=2)))
    (failure,) = FAILURES.read(path)
    assert (failure.id, failure.frame, failure.status, failure.ok) == ("a.dcm", 2, "-cut, short", False)
    assert math.isnan(failure.score)


@dataclass
class Lesion:
    name: str
    ml: float | None
    slices: int


LESIONS = Table(
    (
        Column("lesion", str, lambda lesion: lesion.name),
        Column("ml", float),
        Column("slices", int, required=True),
        Column("large", bool, lambda lesion: None if lesion.ml is None else lesion.ml > 1),
    ),
    lambda lesion, ml, slices, large: Lesion(lesion, ml, slices),
)


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_any_record_has_its_table_by_naming_the_columns(tmp_path, kind):
    lesions = [Lesion("=a", 1.5, 3), Lesion("b", None, 1)]
    path = tmp_path / "lesions.csv"
    path.write_bytes(LESIONS.header + b"".join(map(LESIONS.line, lesions)))
    assert path.read_bytes() == b"lesion,ml,slices,large\n'=a,1.5,3,true\nb,,1,\n"
    assert list(LESIONS.read(path if kind == "csv" else LESIONS.convert(path, kind))) == lesions


def test_a_cell_that_must_be_filled_is_damage_where_it_is_empty(tmp_path):
    (tmp_path / "lesions.csv").write_bytes(LESIONS.header + b"a,1.0,,true\n")
    with pytest.raises(OutputError, match=r"lesions\.csv, row 2"):
        list(LESIONS.read(tmp_path / "lesions.csv"))
