"""DICOM folders as they are: mixed, unsorted, gappy, doubled; nothing is lost and every oddity is said."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from anomalib_med.datasets.folder import discover
from anomalib_med.datasets.readers import read
from anomalib_med.datasets.scans import volumes_of
from anomalib_med.errors import ReadError
from anomalib_med.records import Volume
from tests.made_up_files import write_dicom, write_dicom_without_pixels, write_nifti
from tests.made_up_series import write_capture, write_series, write_slice

RNG = np.random.default_rng(0)


def noise(slices: int = 6, rows: int = 8, columns: int = 10) -> np.ndarray:
    return RNG.integers(-1000, 1000, (slices, rows, columns)).astype(np.float32)


def one(folder: Path) -> Volume:
    (volume,) = volumes_of(discover(folder))
    return volume


def set_aside(folder: Path) -> dict[str, str]:
    return {s.id: s.aside for s in discover(folder) if s.aside}


def test_slices_are_sorted_by_place_and_not_by_name_or_number(tmp_path: Path) -> None:
    voxels = noise()
    write_series(tmp_path, voxels, order=[3, 0, 5, 1, 4, 2], spacing=(2.5, 0.7, 0.8), origin=(-5, -7, 30))
    volume = one(tmp_path)
    assert [s.id for s in volume.samples] == [f"{i:04d}.dcm" for i in (3, 0, 5, 1, 4, 2)]
    np.testing.assert_array_equal(np.stack([read(s).pixels for s in volume.samples]), voxels)
    assert volume.thickness == pytest.approx(2.5)
    expected = [[-0.8, 0, 0, 5], [0, -0.7, 0, 7], [0, 0, 2.5, 30], [0, 0, 0, 1]]
    np.testing.assert_allclose(volume.affine, expected, atol=1e-9)
    assert volume.note == ""


def test_a_series_that_runs_from_head_to_feet_begins_at_the_feet(tmp_path: Path) -> None:
    voxels = noise()
    write_series(tmp_path, voxels, way=(0, 0, -1))
    np.testing.assert_array_equal(read(one(tmp_path).samples[0]).pixels, voxels[-1])


def test_an_oblique_series_knows_where_its_pixels_lie(tmp_path: Path) -> None:
    a, b = np.deg2rad(12), np.deg2rad(-7)
    turn = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]]) @ np.array(
        [[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]]
    )
    axes = (*turn[:, 0], *turn[:, 1])
    write_series(tmp_path, noise(), axes=axes, origin=(10, 20, -30), spacing=(3, 0.5, 0.6), order=[5, 1, 3, 0, 2, 4])
    volume = one(tmp_path)
    assert volume.affine is not None
    at = volume.affine @ [4, 2, 3, 1]  # column, row, slice
    expected = np.array([10, 20, -30]) + turn @ [4 * 0.6, 2 * 0.5, 3 * 3]
    np.testing.assert_allclose(at[:3], expected * [-1, -1, 1], atol=1e-4)
    assert volume.note == ""


def test_two_series_in_one_folder_are_two_volumes(tmp_path: Path) -> None:
    write_series(tmp_path / "a", noise(), SeriesInstanceUID="1.2.9.1")
    write_series(tmp_path / "b", noise(4), SeriesInstanceUID="1.2.9.2")
    for file in (tmp_path / "b").iterdir():
        file.rename(tmp_path / "a" / f"x{file.name}")
    found = volumes_of(discover(tmp_path))
    assert sorted(len(v.samples) for v in found) == [4, 6]
    assert len({v.id for v in found}) == 2
    assert not any(v.note for v in found)


def test_a_missing_slice_leaves_a_gap_and_is_said(tmp_path: Path) -> None:
    write_series(tmp_path, noise())[2].unlink()
    volume = one(tmp_path)
    assert volume.slots == (0, 1, 3, 4, 5)
    assert volume.length == 6
    assert "1 slice is missing" in volume.note


def test_uneven_slices_are_kept_without_an_affine(tmp_path: Path) -> None:
    for k, z in enumerate((0, 1, 2, 3.4, 4.4)):
        write_slice(tmp_path / f"{k}.dcm", noise(1)[0], (0, 0, z))
    volume = one(tmp_path)
    assert len(volume.samples) == 5
    assert volume.affine is None
    assert "1.00 to 1.40 mm apart" in volume.note


def test_slices_of_different_sizes_are_volumes_of_their_own(tmp_path: Path) -> None:
    write_series(tmp_path, noise())
    for k in range(2):
        write_slice(tmp_path / f"small{k}.dcm", noise(1, 4, 4)[0], (0, 0, 20 + k))
    found = volumes_of(discover(tmp_path))
    assert [len(v.samples) for v in found] == [6, 2]
    assert all("several sizes" in v.note for v in found)


def test_slices_without_position_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for k in range(5):
        write_slice(tmp_path / f"{k}.dcm", noise(1)[0], None, InstanceNumber=5 - k)
    volume = one(tmp_path)
    assert [s.id for s in volume.samples] == ["4.dcm", "3.dcm", "2.dcm", "1.dcm", "0.dcm"]
    assert volume.affine is None
    assert "no ImagePositionPatient" in volume.note


@pytest.mark.parametrize("position", [["0", "0"], ["nan", "0", "1"]])
def test_a_position_that_makes_no_sense_is_none(tmp_path: Path, position: list[str]) -> None:
    files = write_series(tmp_path, noise())
    import pydicom

    ds = pydicom.dcmread(files[0])
    ds.ImagePositionPatient = position
    ds.save_as(files[0])
    assert len(discover(tmp_path)) == 6
    assert len(one(tmp_path).samples) == 5


def test_a_tilted_gantry_is_said_and_its_affine_is_sheared(tmp_path: Path) -> None:
    write_series(tmp_path, noise(), way=(0, np.sin(np.deg2rad(15)), np.cos(np.deg2rad(15))))
    volume = one(tmp_path)
    assert "tilted gantry: slices are shifted by 15.0 degrees" in volume.note
    assert volume.affine is not None
    np.testing.assert_allclose(volume.affine[:3, 2], [0, -np.sin(np.deg2rad(15)), np.cos(np.deg2rad(15))], atol=1e-5)


def test_what_is_no_slice_of_the_scan_is_set_aside_with_its_reason(tmp_path: Path) -> None:
    write_series(tmp_path, noise())
    write_slice(tmp_path / "scout.dcm", noise(1)[0], (0, 0, 0), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_capture(tmp_path / "capture.dcm")
    write_slice(tmp_path / "pet.dcm", noise(1)[0], (0, 0, 0), Modality="PT", SeriesInstanceUID="1.2.9.3")
    coronal = {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1], "SeriesInstanceUID": "1.2.9.4"}
    write_slice(tmp_path / "coronal.dcm", noise(1)[0], (0, 0, 0), **coronal)
    reasons = set_aside(tmp_path)
    assert sorted(reasons) == ["capture.dcm", "coronal.dcm", "pet.dcm", "scout.dcm"]
    for name, words in {
        "scout": "localizer",
        "capture": "secondary capture",
        "pet": "PT",
        "coronal": "coronal",
    }.items():
        assert words in reasons[f"{name}.dcm"]
    assert len(one(tmp_path).samples) == 6
    scout = next(s for s in discover(tmp_path) if s.id == "scout.dcm")
    with pytest.raises(ReadError, match=r"scout\.dcm: set aside: a localizer"):
        read(scout)


def test_an_object_without_pixels_is_set_aside(tmp_path: Path) -> None:
    write_series(tmp_path, noise(), StudyInstanceUID="1.2.3")
    write_dicom_without_pixels(tmp_path / "report.dcm")
    assert "without pixels" in set_aside(tmp_path)["report.dcm"]


def test_a_study_without_ct_is_left_as_it_is(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", np.ones((8, 8), np.uint16))
    write_capture(tmp_path / "b.dcm")
    found = discover(tmp_path)
    assert [s.id for s in found] == ["a.dcm", "b.dcm"]
    assert not set_aside(tmp_path)
    assert not any(s.place for s in found)


def test_a_second_slice_at_one_place_is_set_aside(tmp_path: Path) -> None:
    files = write_series(tmp_path, noise())
    (tmp_path / "copy.dcm").write_bytes(files[2].read_bytes())
    assert "at the place of 0002.dcm" in set_aside(tmp_path)["copy.dcm"]
    assert len(one(tmp_path).samples) == 6


def test_two_passes_over_the_same_places_are_two_volumes(tmp_path: Path) -> None:
    write_series(tmp_path / "a", noise(), AcquisitionNumber=1)
    write_series(tmp_path / "b", noise(), AcquisitionNumber=2)
    found = volumes_of(discover(tmp_path))
    assert [len(v.samples) for v in found] == [6, 6]
    assert [{s.id[0] for s in v.samples} for v in found] == [{"a"}, {"b"}]


def test_a_prone_patient_is_read_as_stored_and_turned_for_the_model(tmp_path: Path) -> None:
    hu = noise(1)[0]
    write_slice(tmp_path / "a.dcm", hu, (0, 0, 0), ImageOrientationPatient=[-1, 0, 0, 0, -1, 0])
    image = read(discover(tmp_path)[0])
    np.testing.assert_array_equal(image.pixels, hu)
    assert image.flips == (True, True)


def test_the_affine_of_a_nifti_leads_to_the_patient_whatever_its_orientation(tmp_path: Path) -> None:
    voxels = noise(5, 6, 7)
    turned = np.array([[0, 0, 2.0, -10], [-0.7, 0, 0, 20], [0, 3.0, 0, -5], [0, 0, 0, 1]])
    write_nifti(tmp_path / "a.nii", voxels, turned)
    volume = one(tmp_path)
    assert volume.affine is not None
    image = nibabel.load(tmp_path / "a.nii")
    for slot in (0, 4):
        pixels = read(volume.samples[slot]).pixels
        for row, column in ((0, 0), (2, 3)):
            world = volume.affine @ [column, row, slot, 1]
            i, j, k = np.rint(np.linalg.inv(image.affine) @ world).astype(int)[:3]
            assert voxels[i, j, k] == pixels[row, column]


def test_a_sheared_nifti_is_kept_and_said(tmp_path: Path) -> None:
    affine = np.eye(4)
    affine[1, 2] = np.tan(np.deg2rad(10))
    write_nifti(tmp_path / "a.nii", noise(), affine)
    assert "sheared: axes meet at 80.0 degrees" in one(tmp_path).note


@pytest.mark.parametrize("shape", [(6, 5, 4, 3), (6, 5)])
def test_a_nifti_of_several_volumes_is_one_sample_that_fails(tmp_path: Path, shape: tuple[int, ...]) -> None:
    nibabel.Nifti1Image(np.zeros(shape, np.float32), np.eye(4)).to_filename(tmp_path / "a.nii")
    (sample,) = discover(tmp_path)
    with pytest.raises(ReadError, match="not one volume"):
        read(sample)
