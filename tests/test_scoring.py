"""What scoring into a folder promises: bounded memory, results of these images alone, maps in their geometry."""

# nibabel leaves most of its functions without types.
# mypy: disallow-untyped-calls=False

import os
import shutil
import tracemalloc
from pathlib import Path

import cv2
import nibabel
import numpy as np
import pytest
from pydicom.pixels.decoders.base import Decoder

from anomalib_med import FittedModel, Sample, fit, load, score_to_folder
from anomalib_med.errors import ConfigError, InputError, OutputError
from anomalib_med.outputs.run import flat_table
from anomalib_med.outputs.tables import FAILURES, read_scores
from tests.conftest import SMALL, abnormal_picture, normal_picture, small_patchcore
from tests.made_up_files import read_png_map, write_dicom, write_nifti, write_pictures, write_table


@pytest.fixture(scope="module")
def model() -> FittedModel:
    """A model that scores quickly."""
    normals = np.stack([normal_picture(i) for i in range(12)])
    return fit(small_patchcore(bank_size=50), normals, preprocessing=SMALL, device="cpu")


# What it says and writes


def test_the_summary_counts_what_was_done(model: FittedModel, tmp_path: Path) -> None:
    images = write_pictures(tmp_path / "images", 5)
    cv2.imwrite(str(images / "z_lesion.png"), abnormal_picture(3)[0])
    (images / "bad.png").write_text("none")
    summary = score_to_folder(model, images, tmp_path / "out", false_alarm_rate=0.4, report=True)
    assert (summary.scored, summary.failed, summary.resumed) == (6, 1, 0)
    assert summary.flagged == sum(bool(row.flagged) for row in read_scores(tmp_path / "out/scores.csv")) > 0
    assert summary.report == tmp_path / "out/report.html"
    assert [row.id for row in FAILURES.read(tmp_path / "out/failures.csv")] == ["bad.png"]
    again = score_to_folder(model, images, tmp_path / "out", false_alarm_rate=0.4)
    assert (again.scored, again.flagged, again.failed, again.resumed) == (6, summary.flagged, 1, 6)
    assert again.report is None


def test_it_writes_what_the_object_in_memory_writes(model: FittedModel, tmp_path: Path) -> None:
    images = write_pictures(tmp_path / "images", 4)
    (images / "bad.png").write_text("none")
    score_to_folder(model, images, tmp_path / "a", report=True)
    model.score(images).report(tmp_path / "b")
    files = {p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()}
    assert files == {p.relative_to(tmp_path / "b") for p in (tmp_path / "b").rglob("*") if p.is_file()}
    assert len(files) == 12
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_arrays_and_samples_in_memory_are_scored_into_a_folder(model: FittedModel, tmp_path: Path) -> None:
    pictures = np.stack([normal_picture(i) for i in range(3)])
    score_to_folder(model, pictures, tmp_path / "a")
    samples = [Sample(f"p/{i}", array=picture, patient="anna") for i, picture in enumerate(pictures)]
    score_to_folder(model, samples, tmp_path / "b", maps="png")
    a, b = read_scores(tmp_path / "a/scores.csv"), read_scores(tmp_path / "b/scores.csv")
    assert [row.score for row in a] == [row.score for row in b]
    assert [(row.id, row.patient, row.path) for row in b] == [(f"p/{i}", "anna", "") for i in range(3)]
    assert read_png_map(tmp_path / "b" / b[0].map).shape == (96, 80)


def test_labels_of_a_table_reach_the_report(model: FittedModel, tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", 2)
    table = write_table(
        tmp_path / "list.csv", "path,label", "images/image_00.png,normal", "images/image_01.png,abnormal"
    )
    summary = score_to_folder(model, table, tmp_path / "out", report=True)
    assert summary.report is not None
    page = summary.report.read_text(encoding="utf-8")
    assert "abnormal" in page


def test_progress_goes_on_from_what_an_earlier_run_did(model: FittedModel, tmp_path: Path) -> None:
    images = write_pictures(tmp_path / "images", 4)

    def stop(stage: str, done: int, total: int, note: str = "") -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_to_folder(model, images, tmp_path / "out", progress=stop)
    said: list[tuple[str, int, int]] = []
    summary = score_to_folder(model, images, tmp_path / "out", progress=lambda *step: said.append(step[:3]))
    assert said == [("scoring", done, 4) for done in range(summary.resumed + 1, 5)]
    assert summary.resumed > 0


# Volumes


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR"])
def test_maps_of_a_volume_lie_in_the_space_of_the_scan(model: FittedModel, tmp_path: Path, axes: str) -> None:
    slices = np.stack([normal_picture(k, (40, 36)) for k in range(3)], axis=2).astype(np.float32)
    straight = nibabel.Nifti1Image(
        slices, np.diag([0.7, 0.8, 2.5, 1]) + np.array([[0, 0, 0, t] for t in (5, -3, 9, 0)])
    )
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(straight.affine), nibabel.orientations.axcodes2ornt(axes)
    )
    scan = straight.as_reoriented(turn)
    nibabel.save(scan, tmp_path / "scan.nii.gz")
    score_to_folder(model, tmp_path / "scan.nii.gz", tmp_path / "out", maps="nifti")

    (file,) = (tmp_path / "out/maps").iterdir()
    map = nibabel.load(file)
    assert isinstance(map, nibabel.Nifti1Image)
    assert map.shape == scan.shape
    np.testing.assert_array_equal(map.affine, scan.affine.astype(np.float32))
    assert nibabel.aff2axcodes(map.affine) == tuple(axes)
    canonical = nibabel.as_closest_canonical(map).get_fdata()
    for k, expected in enumerate(model.score(tmp_path / "scan.nii.gz").maps):
        np.testing.assert_array_equal(canonical[::-1, ::-1, k].T, expected)
    assert [row.frame for row in read_scores(tmp_path / "out/scores.csv")] == [0, 1, 2]


def test_nifti_maps_of_pictures_are_arrays(model: FittedModel, tmp_path: Path) -> None:
    images = write_pictures(tmp_path / "images", 1)
    write_nifti(images / "scan.nii", normal_picture(1, (40, 36))[:, :, None].repeat(2, 2).astype(np.float32))
    write_dicom(images / "a.dcm", normal_picture(2, (50, 60)).astype(np.uint16))
    score_to_folder(model, images, tmp_path / "out", maps="nifti")
    kinds = {row.path.rpartition("/")[2]: row.map for row in read_scores(tmp_path / "out/scores.csv")}
    assert kinds["image_00.png"].endswith(".npy")
    assert kinds["scan.nii"].endswith(".nii.gz")
    assert np.load(tmp_path / "out" / kinds["a.dcm"], allow_pickle=False).shape == (50, 60)


# Results of these images and no others


def test_other_images_of_the_same_names_are_not_taken_for_those_scored(model: FittedModel, tmp_path: Path) -> None:
    monday, tuesday = write_pictures(tmp_path / "monday", 2), write_pictures(tmp_path / "tuesday", 2, first=50)
    score_to_folder(model, monday, tmp_path / "out")
    before = (tmp_path / "out/scores.csv").read_bytes()
    with pytest.raises(OutputError, match=r"holds results of another run \(images differs\)"):
        score_to_folder(model, tuesday, tmp_path / "out")
    assert (tmp_path / "out/scores.csv").read_bytes() == before


def test_an_image_that_changed_since_is_not_taken_for_the_one_scored(model: FittedModel, tmp_path: Path) -> None:
    images = write_pictures(tmp_path / "images", 2)
    score_to_folder(model, images, tmp_path / "out")
    shutil.copy(write_pictures(tmp_path / "new", 1, first=70) / "image_00.png", images / "image_00.png")
    with pytest.raises(OutputError, match="images differs"):
        score_to_folder(model, images, tmp_path / "out")
    score_to_folder(model, images, tmp_path / "out", overwrite=True)
    assert [row.score for row in read_scores(tmp_path / "out/scores.csv")] == model.score(images).scores.tolist()


def test_other_arrays_are_not_taken_for_those_scored(model: FittedModel, tmp_path: Path) -> None:
    score_to_folder(model, normal_picture(1)[None], tmp_path)
    with pytest.raises(OutputError, match="images differs"):
        score_to_folder(model, normal_picture(2)[None], tmp_path)
    assert score_to_folder(model, normal_picture(1)[None], tmp_path).resumed == 1


def test_another_model_does_not_go_on_where_the_first_stopped(model: FittedModel, tmp_path: Path) -> None:
    images = write_pictures(tmp_path / "images", 3)
    score_to_folder(model, images, tmp_path / "out")
    other = fit(small_patchcore(bank_size=20), images, preprocessing=SMALL, device="cpu")
    with pytest.raises(OutputError, match="model differs"):
        score_to_folder(other, images, tmp_path / "out")


@pytest.mark.filterwarnings("ignore:.*random weights")
def test_the_model_loaded_again_goes_on_where_it_stopped(model: FittedModel, tmp_path: Path) -> None:
    images = write_pictures(tmp_path / "images", 3)
    score_to_folder(model, images, tmp_path / "out")
    assert score_to_folder(load(model.save(tmp_path / "model"), device="cpu"), images, tmp_path / "out").resumed == 3


def test_results_inside_the_image_folder_are_not_scored(
    model: FittedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(tmp_path, 3)
    monkeypatch.chdir(tmp_path)
    assert score_to_folder(model, ".", "out").scored == 3
    assert len(list(Path("out").rglob("*.npy"))) == 3
    again = score_to_folder(model, Path(), tmp_path / "out")
    assert (again.scored, again.resumed) == (3, 3)
    with pytest.raises(InputError, match=r"out: the images lie in the output folder; choose another folder"):
        score_to_folder(model, "out/maps", "out")


def test_a_folder_whose_name_begins_like_the_output_is_scored(model: FittedModel, tmp_path: Path) -> None:
    write_pictures(tmp_path / "out2", 1)
    assert score_to_folder(model, tmp_path / "out2", tmp_path / "out").scored == 1


def test_a_failure_whose_cause_is_gone_is_tried_again(
    model: FittedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = write_pictures(tmp_path / "images", 2)
    write_dicom(images / "scan.dcm", normal_picture(1).astype(np.uint16))
    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "is_available", False)  # the extra is not installed yet
        assert score_to_folder(model, images, tmp_path / "out").failed == 1
    summary = score_to_folder(model, images, tmp_path / "out")
    assert (summary.scored, summary.failed, summary.resumed) == (3, 0, 2)


@pytest.mark.parametrize("rate", [0.0, 1.0, float("nan")])
def test_a_rate_that_is_none_leaves_no_folder(model: FittedModel, tmp_path: Path, rate: float) -> None:
    images = write_pictures(tmp_path / "images", 1)
    with pytest.raises(ConfigError, match="must lie between 0 and 1"):
        score_to_folder(model, images, tmp_path / "out", false_alarm_rate=rate)
    assert not (tmp_path / "out").exists()


# Memory and order


def test_memory_does_not_grow_with_the_number_of_images(model: FittedModel, tmp_path: Path) -> None:
    images = write_pictures(tmp_path / "images", 200, shape=(200, 240))  # a map of each would be 38 MB
    files = sorted(images.iterdir())

    def peak(count: int) -> int:
        tracemalloc.start()
        score_to_folder(model, files[:count], tmp_path / f"out{count}", report=True)
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    peak(8)
    assert peak(200) < peak(60) + 1_000_000


def test_the_order_of_the_images_is_that_of_the_table_and_changes_no_score(model: FittedModel, tmp_path: Path) -> None:
    files = sorted(write_pictures(tmp_path / "images", 9).iterdir())
    shuffled = [files[i] for i in np.random.default_rng(0).permutation(9)]
    score_to_folder(model, files, tmp_path / "a", maps="none", overlays=False)
    score_to_folder(model, shuffled, tmp_path / "b", maps="none", overlays=False)
    a, b = read_scores(tmp_path / "a/scores.csv"), read_scores(tmp_path / "b/scores.csv")
    assert [row.path for row in b] == [os.fspath(file) for file in shuffled]
    assert {row.id: row.score for row in a} == {row.id: row.score for row in b}


def test_a_nested_description_becomes_one_table() -> None:
    nested = {"a": 1, "b": {"c": [1, "x"], "d": {"e": None}}, "f": True}
    assert flat_table(nested) == {"a": "1", "b.c": "1, x", "b.d.e": "", "f": "True"}
