"""`anomed score`: what lies in the output folder, for every kind of image and every option."""

import json
from pathlib import Path

import numpy as np
import pytest

from anomalib_med import load
from anomalib_med.outputs.tables import read_scores
from tests.cli.command import SMALL_FIT, Outcome, anomed, assert_refused, contents, rows
from tests.conftest import normal_picture
from tests.made_up_files import PATIENT_ID, PATIENT_NAME, read_png_map, write_dicom, write_table

pytestmark = pytest.mark.filterwarnings("ignore:.*(random weights|held out)")


@pytest.fixture(scope="module")
def scored(saved_model: Path, images_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    """A run with everything that can be asked for, and where its results lie."""
    out = tmp_path_factory.mktemp("scored") / "out"
    options = ("--report", "--table", "jsonl", "--device", "cpu", "--false-alarm-rate", "0.3")
    return anomed("score", saved_model, images_folder, "-o", out, *options), out


def test_the_output_folder_holds_what_it_says(scored: tuple[Outcome, Path]) -> None:
    outcome, out = scored
    assert outcome.code == 0
    assert sorted(entry.name for entry in out.iterdir()) == [
        "failures.csv",
        "maps",
        "overlays",
        "report.html",
        "run.json",
        "scores.csv",
        "scores.jsonl",
    ]
    assert "scored 12 images" in outcome.out
    assert f"table: {out / 'scores.csv'}" in outcome.out
    assert f"report: {out / 'report.html'}" in outcome.out
    assert "scoring: 12 / 12" in outcome.err


def test_the_table_has_a_row_for_each_image_with_the_scores_of_python(
    scored: tuple[Outcome, Path], saved_model: Path, images_folder: Path
) -> None:
    _, out = scored
    table = rows(out / "scores.csv")
    assert list(table[0]) == ["id", "path", "frame", "patient", "score", "p_value", "flagged", "area", "map"]
    scores = load(saved_model, device="cpu").score(images_folder, false_alarm_rate=0.3)
    assert [row["id"] for row in table] == scores.ids
    assert [float(row["score"]) for row in table] == scores.scores.tolist()
    assert [float(row["p_value"]) for row in table] == scores.p_values.tolist()
    assert [row["flagged"] == "true" for row in table] == scores.flagged.tolist()
    assert f"{scores.flagged.sum()} flagged at a false-alarm rate of 0.3" in scored[0].out


def test_abnormal_images_stand_out(scored: tuple[Outcome, Path]) -> None:
    scores = {row["id"]: float(row["score"]) for row in rows(scored[1] / "scores.csv")}
    normal = [score for name, score in scores.items() if name.startswith("normal")]
    abnormal = [score for name, score in scores.items() if name.startswith("abnormal")]
    assert np.median(abnormal) > max(normal)


def test_the_map_of_each_row_is_there_in_the_geometry_of_the_image(
    scored: tuple[Outcome, Path], saved_model: Path, images_folder: Path
) -> None:
    maps = load(saved_model, device="cpu").score(images_folder).maps
    for row, expected in zip(rows(scored[1] / "scores.csv"), maps, strict=True):
        map = np.load(scored[1] / row["map"], allow_pickle=False)
        assert map.dtype == np.float32
        assert map.shape == (96, 80)
        assert np.array_equal(map, expected)


def test_the_report_needs_no_network(scored: tuple[Outcome, Path]) -> None:
    page = (scored[1] / "report.html").read_text(encoding="utf-8")
    assert "PatchCore" in page
    assert "abnormal_0.png" in page
    assert "random weights" in page
    for elsewhere in ('src="http', "src='http", 'rel="stylesheet"', "@import", "url(http"):
        assert elsewhere not in page


@pytest.mark.parametrize("table", ["parquet", "jsonl"])
def test_other_tables_hold_the_same_rows(saved_model: Path, images_folder: Path, tmp_path: Path, table: str) -> None:
    options = ("--table", table, "--maps", "none", "--no-overlays")
    assert anomed("score", saved_model, images_folder, "-o", tmp_path, *options).code == 0
    assert read_scores(tmp_path / f"scores.{table}") == read_scores(tmp_path / "scores.csv")
    assert sorted(e.name for e in tmp_path.iterdir()) == ["failures.csv", "run.json", "scores.csv", f"scores.{table}"]


def test_png_maps_come_back_on_their_recorded_scale(
    saved_model: Path, images_folder: Path, scored: tuple[Outcome, Path], tmp_path: Path
) -> None:
    assert anomed("score", saved_model, images_folder, "-o", tmp_path, "--maps", "png").code == 0
    scale = json.loads((tmp_path / "maps/scale.json").read_text())
    for png, npy in zip(rows(tmp_path / "scores.csv"), rows(scored[1] / "scores.csv"), strict=True):
        map = np.load(scored[1] / npy["map"], allow_pickle=False)
        exact = np.clip(map, scale["lo"], scale["lo"] + 65535 * scale["step"])
        assert np.abs(read_png_map(tmp_path / png["map"]) - exact).max() <= 0.51 * scale["step"]


def test_a_model_without_calibration_gives_neither_p_values_nor_flags(normals_folder: Path, tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    assert anomed("fit", normals_folder, "-o", model, "--calibration", "0", *SMALL_FIT).code == 0
    outcome = anomed("score", model, f"{normals_folder}/patient00*.png", "-o", out, "--report")
    assert outcome.code == 0
    assert "flagged" not in outcome.out
    assert {(row["p_value"], row["flagged"]) for row in rows(out / "scores.csv")} == {("", "")}


def test_results_of_another_rate_need_overwrite(saved_model: Path, images_folder: Path, tmp_path: Path) -> None:
    command = ("score", saved_model, images_folder, "-o", tmp_path, "--maps", "none", "--no-overlays")
    assert anomed(*command).code == 0
    before = contents(tmp_path)
    outcome = anomed(*command, "--false-alarm-rate", "0.3")
    assert_refused(outcome, r"holds results of another run \(false_alarm_rate differs\): .*pass --overwrite")
    assert contents(tmp_path) == before
    assert anomed(*command, "--false-alarm-rate", "0.3", "--overwrite").code == 0
    assert any(row["flagged"] == "true" for row in rows(tmp_path / "scores.csv"))


# Patients


@pytest.fixture
def dicom_folder(tmp_path: Path) -> Path:
    """Three radiographs of two patients, 16 bits, of different size."""
    folder = tmp_path / "pacs"
    folder.mkdir()
    for i, (shape, patient) in enumerate((((70, 50), "A"), ((60, 90), "A"), ((64, 64), "B"))):
        pixels = normal_picture(i, shape).astype(np.uint16)
        write_dicom(folder / f"{i}.dcm", pixels, PatientID=f"{PATIENT_ID}-{patient}")
    return folder


def test_the_map_of_a_dicom_has_its_rows_and_columns(saved_model: Path, dicom_folder: Path, tmp_path: Path) -> None:
    assert anomed("score", saved_model, dicom_folder, "-o", tmp_path / "out").code == 0
    maps = [np.load(tmp_path / "out" / row["map"], allow_pickle=False) for row in rows(tmp_path / "out/scores.csv")]
    assert [map.shape for map in maps] == [(70, 50), (60, 90), (64, 64)]


def test_no_output_names_the_patient(saved_model: Path, dicom_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = anomed("score", saved_model, dicom_folder, "-o", out, "--report", "--table", "jsonl")
    patients = [row["patient"] for row in rows(out / "scores.csv")]
    assert patients[0] == patients[1] != patients[2]
    assert all(patient.startswith("dicom-") for patient in patients)
    everything = b"".join(contents(out).values()) + (outcome.out + outcome.err).encode()
    for secret in (PATIENT_NAME, "Doe^", PATIENT_ID, "19700101"):
        assert secret.encode() not in everything


def test_patient_ids_are_kept_on_request_and_names_never(saved_model: Path, dicom_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert anomed("score", saved_model, dicom_folder, "-o", out, "--report", "--keep-patient-ids").code == 0
    assert [row["patient"] for row in rows(out / "scores.csv")] == [f"{PATIENT_ID}-{name}" for name in "AAB"]
    everything = b"".join(contents(out).values())
    assert b"Doe^" not in everything
    assert b"19700101" not in everything


def test_patients_come_from_the_table_or_the_pattern(saved_model: Path, images_folder: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in images_folder.iterdir())[:3]
    table = write_table(
        tmp_path / "list.csv", "path,patient", *(f"{images_folder / name},p{name[-5]}" for name in names)
    )
    quiet = ("--maps", "none", "--no-overlays")
    assert anomed("score", saved_model, table, "-o", tmp_path / "a", *quiet).code == 0
    assert [row["patient"] for row in rows(tmp_path / "a/scores.csv")] == [f"p{name[-5]}" for name in names]
    pattern = ("--patient-pattern", r"_(\d)\.png")
    assert anomed("score", saved_model, images_folder, "-o", tmp_path / "b", *quiet, *pattern).code == 0
    assert {row["patient"] for row in rows(tmp_path / "b/scores.csv")} == set("012345")
