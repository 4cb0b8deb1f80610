"""The map of a DICOM series as a DICOM series that lies over the scan."""

import csv
from pathlib import Path

import numpy as np
import pydicom
import pytest

from anomalib_med import FittedModel, PatchCore, Preprocessing, fit, score_to_folder
from anomalib_med.datasets.folder import discover
from anomalib_med.datasets.readers import read
from anomalib_med.datasets.scans import volumes_of
from anomalib_med.outputs.maps import png_scale
from tests.made_up_files import write_nifti
from tests.made_up_series import chest_volume, write_series

pytestmark = pytest.mark.filterwarnings("ignore:.*held out")

TILT = (1.0, 0, 0, 0, float(np.cos(0.2)), float(np.sin(0.2)))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> FittedModel:
    normals = tmp_path_factory.mktemp("normals")
    write_series(normals, chest_volume(0, 6, 64), spacing=(4, 5, 5), PatientID="N")
    return fit(PatchCore(bank_size=200), normals, calibration=0, preprocessing=Preprocessing(size=64), device="cpu")


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scan")
    tags = {
        "PatientID": "SECRET-7",
        "PatientName": "Doe^Jane",
        "FrameOfReferenceUID": "1.2.9.55",
        "StudyDate": "20200101",
    }
    files = write_series(
        folder,
        chest_volume(1, 6, 64),
        origin=(-100, -90, 40),
        axes=TILT,
        spacing=(4, 5, 5),
        order=[4, 1, 3, 0, 5, 2],
        **tags,
    )
    files[2].unlink()
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_read_back_it_has_the_values_and_the_geometry(model: FittedModel, scan: Path, tmp_path: Path) -> None:
    score_to_folder(model, scan, tmp_path / "out", maps="dicom", overlays=False)
    (row,) = rows(tmp_path / "out/volumes.csv")
    samples = discover(tmp_path / "out" / row["map"])
    (ours,), (scanned,) = volumes_of(samples), volumes_of(discover(scan))
    assert ours.affine is not None
    assert scanned.affine is not None
    np.testing.assert_allclose(ours.affine, scanned.affine, atol=1e-6)
    assert ours.slots == scanned.slots == (0, 1, 3, 4, 5)
    expected = model.score(scan).maps
    step = png_scale(model.map_range)[1]
    for sample, map in zip(samples, expected, strict=True):
        image = read(sample)
        assert image.missing is None
        assert np.abs(image.pixels - map).max() <= 0.5 * step * 1.001
        assert image.window == pytest.approx(model.map_range)
    slices = rows(tmp_path / "out/scores.csv")
    assert all((tmp_path / "out" / slice["map"]).is_file() for slice in slices)
    assert len({slice["map"] for slice in slices}) == 5


def test_it_belongs_to_the_study_and_names_nobody(model: FittedModel, scan: Path, tmp_path: Path) -> None:
    for name, keep in (("a", False), ("b", False), ("named", True)):
        score_to_folder(model, scan, tmp_path / name, maps="dicom", overlays=False, keep_patient_ids=keep)
    files = sorted((tmp_path / "a/maps").rglob("*.dcm"))
    for file in files:
        assert b"SECRET" not in file.read_bytes()
        assert b"Doe" not in file.read_bytes()
        assert b"20200101" not in file.read_bytes()
        again = tmp_path / "b" / file.relative_to(tmp_path / "a")
        assert file.read_bytes() == again.read_bytes()
    d = pydicom.dcmread(files[0])
    assert (d.StudyInstanceUID, d.FrameOfReferenceUID) == ("1.2.9", "1.2.9.55")
    assert d.SeriesInstanceUID != "1.2.9.1"
    assert len({pydicom.dcmread(file).SOPInstanceUID for file in files}) == len(files) == 5
    assert d.RescaleType == "US"
    assert d.PatientID.startswith("dicom-")
    named = next((tmp_path / "named/maps").rglob("*.dcm"))
    assert pydicom.dcmread(named).PatientID == "SECRET-7"
    assert b"Doe" not in named.read_bytes()


def test_other_volumes_get_nifti_and_an_overwrite_removes_what_was_there(
    model: FittedModel, scan: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    score_to_folder(model, scan, out, maps="dicom", overlays=False)
    write_nifti(tmp_path / "a.nii.gz", chest_volume(2, 3, 64).T)
    score_to_folder(model, tmp_path / "a.nii.gz", out, maps="dicom", overlays=False, overwrite=True)
    assert [file.name for file in (out / "maps").iterdir()] == ["a.nii.gz.nii.gz"]


def test_a_run_that_was_cut_off_leaves_no_half_series(model: FittedModel, scan: Path, tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop(stage: str, done: int, total: int, note: str = "") -> None:
        if done == 3:
            raise StopError

    with pytest.raises(StopError):
        score_to_folder(model, scan, tmp_path / "out", maps="dicom", overlays=False, progress=stop)
    assert not list((tmp_path / "out/maps").iterdir())
    score_to_folder(model, scan, tmp_path / "out", maps="dicom", overlays=False)
    assert len(list((tmp_path / "out/maps").rglob("*.dcm"))) == 5
