"""From a folder of DICOM slices to a map over the scan, candidates in mm and decisions by volume and patient."""

import csv
from dataclasses import replace
from pathlib import Path

import cv2
import nibabel
import numpy as np
import pydicom
import pytest

from anomalib_med import FittedModel, PatchCore, Preprocessing, fit, load, merge_models, score_to_folder
from anomalib_med.datasets.folder import discover
from anomalib_med.datasets.readers import read
from anomalib_med.datasets.scans import volumes_of
from anomalib_med.evaluation.evaluate import evaluate_model
from anomalib_med.outputs.volume_tables import read_volumes
from anomalib_med.records import Candidate, VolumeResult
from tests.cli.command import anomed
from tests.made_up_files import write_nifti
from tests.made_up_series import chest_volume, write_capture, write_series, write_slice

pytestmark = pytest.mark.filterwarnings("ignore:.*held out")

SLICES, SIZE, SPACING = 12, 128, (4.0, 2.8, 2.8)
A, B = np.deg2rad(9), np.deg2rad(-6)
TURN = np.array([[1, 0, 0], [0, np.cos(A), -np.sin(A)], [0, np.sin(A), np.cos(A)]]) @ np.array(
    [[np.cos(B), 0, np.sin(B)], [0, 1, 0], [-np.sin(B), 0, np.cos(B)]]
)
ORIGIN, AXES = (-170.0, -160.0, 55.0), (*TURN[:, 0], *TURN[:, 1])


def chest(seed: int) -> np.ndarray:
    return chest_volume(seed, SLICES, SIZE)


def world(column: float, row: float, slice: float) -> np.ndarray:
    """mm (LPS) of a voxel of the tilted series."""
    return np.array(ORIGIN) + TURN @ [column * SPACING[2], row * SPACING[1], slice * SPACING[0]]


def with_sphere(hu: np.ndarray, centre: np.ndarray, radius: float) -> np.ndarray:
    """A bright ball around a place in mm (LPS)."""
    k, r, c = np.mgrid[: hu.shape[0], : hu.shape[1], : hu.shape[2]]
    at = np.array(ORIGIN)[:, None, None, None] + np.einsum(
        "ij,jkrc->ikrc", TURN, np.stack([c * SPACING[2], r * SPACING[1], k * SPACING[0]])
    )
    apart = np.linalg.norm(at - centre[:, None, None, None], axis=0)
    return np.where(apart < radius, 300.0, hu)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> FittedModel:
    """Fitted on eight normal DICOM volumes, four of them held out."""
    root = tmp_path_factory.mktemp("normals")
    for i in range(8):
        tags = {"SeriesInstanceUID": f"1.2.7.{i}", "StudyInstanceUID": f"1.2.6.{i}", "PatientID": f"N{i}"}
        write_series(root / f"n{i}", chest(i), spacing=SPACING, **tags)
    preprocessing = Preprocessing(size=256)
    return fit(PatchCore(bank_size=1500), root, calibration=0.5, preprocessing=preprocessing, device="cpu")


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A tilted series in shuffled files with a bright ball of 24 mm, and its centre in mm (LPS)."""
    folder = tmp_path_factory.mktemp("scan")
    centre = world(42.4, 63.7, 6.3)
    order = np.random.default_rng(3).permutation(SLICES).tolist()
    hu = with_sphere(chest(20), centre, 12.0)
    write_series(folder, hu, origin=ORIGIN, axes=AXES, spacing=SPACING, order=order, PatientID="P")
    return folder, centre


@pytest.fixture(scope="module")
def out(model: FittedModel, scan: tuple[Path, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out")
    score_to_folder(model, scan[0], folder, maps="nifti", overlays=False, false_alarm_rate=0.3)
    return folder


def test_a_planted_ball_is_found_within_3_mm(out: Path, scan: tuple[Path, np.ndarray]) -> None:
    first = rows(out / "candidates.csv")[0]
    at = np.array([float(first[name]) for name in ("x_mm", "y_mm", "z_mm")]) * [-1, -1, 1]
    assert np.linalg.norm(at - scan[1]) < 3
    assert 3 < float(first["ml"]) < 60  # the ball has 7, and maps are blurred
    assert int(first["slices"]) >= 4
    assert float(first["p_value"]) == pytest.approx(1 / 5)


def test_the_map_lies_over_the_scan(out: Path, scan: tuple[Path, np.ndarray]) -> None:
    (row,) = rows(out / "volumes.csv")
    image = nibabel.load(out / row["map"])
    (volume,) = volumes_of(discover(scan[0]))
    assert volume.affine is not None
    np.testing.assert_allclose(image.affine, volume.affine, atol=1e-4)
    np.testing.assert_allclose(image.affine @ [10, 20, 5, 1], [*(world(10, 20, 5) * [-1, -1, 1]), 1], atol=1e-3)
    values = np.asarray(image.dataobj)
    assert values.shape == (SIZE, SIZE, SLICES)
    peak = image.affine @ [*np.unravel_index(int(np.argmax(values)), values.shape), 1]
    assert np.linalg.norm(peak[:3] * [-1, -1, 1] - scan[1]) < 15


def test_volume_and_patient_are_judged_against_normal_ones(out: Path, model: FittedModel) -> None:
    (volume,), (patient,) = rows(out / "volumes.csv"), rows(out / "patients.csv")
    assert model.volume_rule.scores is not None
    assert model.volume_rule.scores.patient_count == 4
    assert float(volume["score"]) > model.volume_rule.scores.scores.max()
    assert float(volume["p_value"]) == pytest.approx(1 / 5)
    assert volume["flagged"] == patient["flagged"] == "true"
    assert patient["score"] == volume["score"]
    assert (volume["slices"], volume["scored"], volume["area"], volume["note"]) == ("12", "12", "body 12", "")


def test_saved_and_loaded_the_rule_is_the_same(
    model: FittedModel, tmp_path: Path, scan: tuple[Path, np.ndarray]
) -> None:
    again = load(model.save(tmp_path / "model"), device="cpu")
    assert again.fingerprint() == model.fingerprint()
    for name, one in (("a", model), ("b", again)):
        score_to_folder(one, scan[0], tmp_path / name, maps="none", overlays=False)
    for table in ("volumes.csv", "candidates.csv", "patients.csv"):
        assert (tmp_path / "a" / table).read_bytes() == (tmp_path / "b" / table).read_bytes()


def test_bad_series_are_told_and_the_rest_is_scored(model: FittedModel, tmp_path: Path) -> None:
    scans = tmp_path / "in"
    hu = chest(30)
    files = write_series(scans / "gap", hu, SeriesInstanceUID="1.1", StudyInstanceUID="1.1", PatientID="A")
    files[3].unlink()
    files = write_series(scans / "cut", hu, SeriesInstanceUID="1.2", StudyInstanceUID="1.2", PatientID="B")
    files[4].write_bytes(files[4].read_bytes()[:-9000])
    write_series(scans / "mixed", hu, SeriesInstanceUID="1.3", StudyInstanceUID="1.3", PatientID="C")
    for file in (scans / "mixed").iterdir():
        file.rename(file.with_name(f"x{file.name}"))
    write_series(scans / "mixed", hu[:5], SeriesInstanceUID="1.4", StudyInstanceUID="1.3", PatientID="C")
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "SeriesInstanceUID": "1.5", "StudyInstanceUID": "1.3"}
    write_slice(scans / "mixed/scout.dcm", hu[0], (0, 0, 0), PatientID="C", **scout)
    write_capture(scans / "mixed/dose.dcm", StudyInstanceUID="1.3", PatientID="C")
    for k in range(3):
        write_slice(scans / f"bare/{k}.dcm", hu[k], None, InstanceNumber=k, StudyInstanceUID="1.6", PatientID="D")
    voxels = hu[:3, ::-1, ::-1].T.astype(np.float32)
    nan = voxels.copy()
    nan[40:60, 40:60, 1] = np.nan
    write_nifti(scans / "nan.nii.gz", nan)
    write_nifti(scans / "4d.nii.gz", np.stack([voxels, voxels], axis=3))
    sheared = np.eye(4)
    sheared[1, 2] = 0.3
    write_nifti(scans / "sheared.nii.gz", voxels, sheared)
    summary = score_to_folder(model, scans, tmp_path / "out", maps="nifti", overlays=False)
    failures = {row["id"]: row["reason"] for row in rows(tmp_path / "out/failures.csv")}
    assert sorted(failures) == ["4d.nii.gz", "cut/0004.dcm", "mixed/dose.dcm", "mixed/scout.dcm"]
    for id, words in {
        "4d.nii.gz": "not one volume",
        "cut/0004.dcm": "cut short",
        "mixed/scout.dcm": "localizer",
    }.items():
        assert words in failures[id]
    assert summary.scored == len(discover(scans)) - len(failures)
    volumes = {row["volume"].partition("/")[0] + row["slices"]: row for row in rows(tmp_path / "out/volumes.csv")}
    assert sorted(volumes) == ["bare3", "cut12", "gap11", "mixed12", "mixed5", "nan.nii.gz3", "sheared.nii.gz3"]
    notes = {name: row["note"] for name, row in volumes.items()}
    assert "1 slice is missing" in notes["gap11"]
    assert "1 slice could not be scored" in notes["cut12"]
    assert "no ImagePositionPatient" in notes["bare3"]
    assert "sheared" in notes["sheared.nii.gz3"]
    assert notes["mixed12"] == notes["mixed5"] == notes["nan.nii.gz3"] == ""
    assert volumes["bare3"]["map"] == ""
    gap = np.asarray(nibabel.load(tmp_path / "out" / volumes["gap11"]["map"]).dataobj)
    assert np.isnan(gap).all(axis=(0, 1)).tolist() == [k == 3 for k in range(12)]
    sheared_map = nibabel.load(tmp_path / "out" / volumes["sheared.nii.gz3"]["map"])
    np.testing.assert_array_equal(sheared_map.affine, nibabel.load(scans / "sheared.nii.gz").affine)
    assert [row["patient"][:6] for row in rows(tmp_path / "out/patients.csv")].count("dicom-") == 4


def test_a_run_cut_off_in_a_volume_ends_with_the_same_tables(
    model: FittedModel, scan: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    class StopError(Exception):
        pass

    def stop(stage: str, done: int, total: int, note: str = "") -> None:
        if done == 17:
            raise StopError

    scans = tmp_path / "in"
    for name, uid in (("a", "1.1"), ("b", "1.2")):
        tags = {"SeriesInstanceUID": uid, "StudyInstanceUID": uid, "PatientID": name}
        write_series(scans / name, with_sphere(chest(20), world(42, 64, 6), 12), **tags)
    with pytest.raises(StopError):
        score_to_folder(model, scans, tmp_path / "parts", overlays=False, progress=stop)
    assert len(rows(tmp_path / "parts/scores.csv")) == 12
    score_to_folder(model, scans, tmp_path / "parts", overlays=False)
    score_to_folder(model, scans, tmp_path / "whole", overlays=False)
    for table in ("scores.csv", "volumes.csv", "candidates.csv", "patients.csv"):
        assert (tmp_path / "parts" / table).read_bytes() == (tmp_path / "whole" / table).read_bytes()


def test_the_score_of_volumes_is_chosen_on_normals_and_kept_with_the_model(tmp_path: Path) -> None:
    root = tmp_path / "normals"
    for i in range(60):
        tags = {"SeriesInstanceUID": f"1.2.7.{i}", "StudyInstanceUID": f"1.2.6.{i}", "PatientID": f"N{i}"}
        write_series(root / f"n{i}", chest_volume(i, 4, 40), spacing=(5, 9, 9), **tags)
    model = fit(PatchCore(bank_size=50), root, calibration=0.5, preprocessing=Preprocessing(size=32), device="cpu")
    rule = model.volume_rule
    assert rule.compared
    assert max(rule.compared.values()) - rule.compared[rule.how] <= 0.01
    again = load(model.save(tmp_path / "model"), device="cpu")
    assert again.volume_rule.how == rule.how
    assert again.fingerprint() == model.fingerprint()
    assert again.describe()["volumes"] == model.describe()["volumes"]
    assert rule.scores is not None and rule.scores.patient_count == 20  # a third of the 30 held out chose
    assert rule.threshold_of_volumes(0.04) is None  # 20 patients are too few for 4 %
    assert rule.threshold_of_volumes(0.05) == pytest.approx(max(rule.scores.scores))
    given = fit(
        PatchCore(bank_size=50), root, calibration=0.5, volume_score="max", preprocessing=Preprocessing(size=32)
    )
    assert (given.volume_rule.how, dict(given.volume_rule.compared)) == ("max", {})


def test_python_the_tables_and_the_evaluation_judge_alike(
    model: FittedModel, scan: tuple[Path, np.ndarray], out: Path, tmp_path: Path
) -> None:
    scores = model.score(scan[0], false_alarm_rate=0.3)
    (volume,), (patient,) = scores.volumes, scores.patients
    (row,) = rows(out / "volumes.csv")
    assert volume.score == float(row["score"])
    assert volume.p_value == float(row["p_value"])
    assert (volume.flagged, volume.area, str(volume.slices)) == (True, row["area"], row["slices"])
    assert len(scores.candidates) == len(volume.candidates) == int(row["candidates"])
    assert [replace(v, map="") for v in read_volumes(out)] == [replace(volume, candidates=rounded(volume))]
    assert patient.score == float(rows(out / "patients.csv")[0]["score"])
    for i in range(3):
        tags = {"SeriesInstanceUID": f"1.2.8.{i}", "StudyInstanceUID": f"1.2.8.{i}", "PatientID": f"T{i}"}
        write_series(tmp_path / f"t{i}", chest(40 + i), spacing=SPACING, **tags)
    ball = [replace(s, label=int(4 < k < 9)) for k, s in enumerate(discover(scan[0]))]
    healthy = [replace(s, label=0) for s in discover(tmp_path)]
    evaluation = evaluate_model(model, [*ball, *healthy], false_alarm_rate=0.3, replicates=50)
    assert evaluation.volumes[0].score == volume.score
    assert [v.score for v in evaluation.volumes[1:]] == [v.score for v in model.score(tmp_path).volumes]
    assert [v.flagged for v in evaluation.volumes] == [True, *(v.flagged for v in evaluation.volumes[1:])]
    values = {name: interval.value for name, interval in evaluation.metrics.items()}
    assert values["volume_auroc"] == values["patient_auroc"] == values["ptp_ap"] == 1
    assert values["volume_sensitivity"] == values["patient_sensitivity"] == 1
    false_alarms = np.mean([bool(v.flagged) for v in evaluation.volumes[1:]])
    assert values["volume_false_alarm_rate"] == values["patient_false_alarm_rate"] == pytest.approx(false_alarms)
    assert values["auroc"] < 1  # that of slices stands beside them: the ball is seen in those that are labelled normal


def test_scans_of_the_same_names_are_evaluated_as_volumes(model: FittedModel, tmp_path: Path) -> None:
    for i in range(2):
        for kind, hu in (("normal", chest(50 + i)), ("abnormal", with_sphere(chest(60 + i), world(42, 64, 6), 14))):
            uid = f"1.2.{int(kind == 'normal')}.{i}"
            tags = {"SeriesInstanceUID": uid, "StudyInstanceUID": uid, "PatientID": uid}
            write_series(tmp_path / kind / f"scan{i}", hu, spacing=SPACING, origin=ORIGIN, axes=AXES, **tags)
    folders = ("--normal", tmp_path / "normal", "--abnormal", tmp_path / "abnormal", "--replicates", 100)
    done = anomed(
        "evaluate", model.save(tmp_path / "model"), *folders, "--false-alarm-rate", 0.3, "-o", tmp_path / "out"
    )
    assert done.code == 0, done.err
    assert "4 volumes of 4 patients, judged as anomed score does" in done.out
    metrics = {row["metric"]: float(row["value"]) for row in rows(tmp_path / "out/metrics.csv")}
    assert metrics["volume_auroc"] == metrics["patient_auroc"] == metrics["volume_sensitivity"] == 1


def test_a_report_of_scores_in_memory_has_the_tables_of_volumes(
    model: FittedModel, scan: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    model.score(scan[0]).report(tmp_path / "a")
    score_to_folder(model, scan[0], tmp_path / "b")
    for table in ("scores.csv", "volumes.csv", "candidates.csv", "patients.csv"):
        assert (tmp_path / "a" / table).read_bytes() == (tmp_path / "b" / table).read_bytes()


def test_a_merged_model_without_calibration_judges_no_volume(
    model: FittedModel, scan: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    merged = merge_models(model, model, device="cpu")
    (volume,) = load(merged.save(tmp_path / "model"), device="cpu").score(scan[0]).volumes
    assert np.isfinite(volume.score)
    assert (volume.p_value, volume.flagged) == (None, None)


def rounded(volume: VolumeResult) -> tuple[Candidate, ...]:
    """The candidates as their table has them."""
    assert all(c.centre is not None and c.ml is not None for c in volume.candidates)
    return tuple(
        replace(c, centre=tuple(round(x, 3) for x in c.centre or ()), ml=round(c.ml or 0, 3))  # type: ignore[arg-type]
        for c in volume.candidates
    )


@pytest.mark.real
def test_a_real_series_goes_end_to_end(real_data: Path, tmp_path: Path) -> None:
    samples = real_data / "reader_samples"
    normals = tmp_path / "normals"
    for patient in (1, 2):
        slices = sorted((real_data / "ct_chest_normal_slices/normal").glob(f"p{patient}_*.jpg"))[5::6]
        hu = np.stack([cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in slices]) * (1500 / 255) - 1350
        normals.mkdir(exist_ok=True)
        write_nifti(
            normals / f"p{patient}.nii.gz", np.round(hu[:, ::-1, ::-1]).astype(np.int16).T, np.diag([0.7, 0.7, 6, 1])
        )
    options = ("-s", "bank_size=1000", "--valid", "lung", "--calibration", "0.5", "--device", "cpu")
    options += ("--height", "lung", "--slices", "3")
    assert anomed("fit", normals, "-o", tmp_path / "model", *options).code == 0
    outcome = anomed(
        "score", tmp_path / "model", samples / "ct_dicom_series", "-o", tmp_path / "out", "--maps", "nifti"
    )
    assert outcome.code == 0, outcome.err
    (row,) = rows(tmp_path / "out/volumes.csv")
    assert (row["slices"], row["scored"], row["area"], row["note"]) == ("24", "24", "lung 24", "")
    image = nibabel.load(tmp_path / "out" / row["map"])
    assert image.shape == (512, 512, 24)
    (volume,) = volumes_of(discover(samples / "ct_dicom_series"))
    assert volume.affine is not None
    np.testing.assert_allclose(image.affine, volume.affine, atol=1e-4)
    as_dicom = ("-o", tmp_path / "dicom", "--maps", "dicom", "--no-overlays")
    outcome = anomed("score", tmp_path / "model", samples / "ct_dicom_series", *as_dicom)
    assert outcome.code == 0, outcome.err
    (row,) = rows(tmp_path / "dicom/volumes.csv")
    written = discover(tmp_path / "dicom" / row["map"])
    (over,) = volumes_of(written)
    assert over.affine is not None
    np.testing.assert_allclose(over.affine, volume.affine, atol=1e-6)
    step = pydicom.dcmread(str(written[0].path)).RescaleSlope
    shown = np.asarray(image.dataobj)[:, :, 11].T
    assert np.abs(read(written[11]).pixels - shown).max() <= 0.51 * float(step)
    scan = samples / "nifti/brats_pat0002_flair.nii.gz"
    assert anomed("score", tmp_path / "model", scan, "-o", tmp_path / "head", "--maps", "nifti").code in (0, 3)
    (row,) = rows(tmp_path / "head/volumes.csv")
    np.testing.assert_array_equal(nibabel.load(tmp_path / "head" / row["map"]).affine, nibabel.load(scan).affine)
