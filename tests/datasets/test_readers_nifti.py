"""What the NIfTI reader and writer promise."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
import pytest

from anomalib_med.datasets import read, write_volume
from anomalib_med.datasets.readers import header, nifti
from anomalib_med.errors import OutputError, ReadError
from anomalib_med.records import Sample

CANONICAL = np.random.default_rng(0).integers(-1000, 1000, (5, 7, 4)).astype(np.int16)  # right, anterior, superior
ZOOMS = (0.5, 0.75, 3.0)
ORIENTATIONS = ["RAS", "LPS", "LAS", "RPI", "ASR", "SAL", "PIR", "ILA"]


def volume_in(codes: str) -> nibabel.Nifti1Image:
    volume = nibabel.Nifti1Image(CANONICAL, np.diag([*ZOOMS, 1.0]) + np.eye(4, k=3) * -40)
    to = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(codes)
    )
    return volume.as_reoriented(to)


def saved(path: Path, codes: str = "RAS") -> Path:
    volume_in(codes).to_filename(path)
    return path


def slice_of(path: Path, frame: int = 0):
    return read(Sample(f"{path.name}#{frame}", path, frame=frame))


@pytest.mark.parametrize("codes", ORIENTATIONS)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_slices_are_shown_radiologically_in_every_orientation(tmp_path, codes, suffix):
    path = saved(tmp_path / f"a{suffix}", codes)
    assert nibabel.aff2axcodes(nibabel.load(path).affine) == tuple(codes)
    assert header(path).frames == 4
    for k in range(4):
        image = slice_of(path, k)
        np.testing.assert_array_equal(image.pixels, CANONICAL[::-1, ::-1, k].T)
        assert image.spacing == (0.75, 0.5)
        assert image.modality == ""


@pytest.mark.parametrize("codes", ORIENTATIONS)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_maps_are_written_in_the_space_of_the_volume(tmp_path, codes, suffix):
    path = saved(tmp_path / f"a{suffix}", codes)
    maps = np.stack([slice_of(path, k).pixels for k in range(4)])
    write_volume(maps, path, tmp_path / f"map{suffix}")
    original, written = nibabel.load(path), nibabel.load(tmp_path / f"map{suffix}")
    np.testing.assert_array_equal(written.get_fdata(), original.get_fdata())
    np.testing.assert_array_equal(written.affine, original.affine)
    assert written.header["qform_code"] == original.header["qform_code"]
    assert written.header["sform_code"] == original.header["sform_code"]
    assert written.get_data_dtype() == np.float32
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([path.name, f"map{suffix}"])


def test_an_oblique_volume_keeps_its_affine(tmp_path):
    angle = 0.3
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn * ZOOMS
    nibabel.Nifti1Image(CANONICAL, affine).to_filename(tmp_path / "a.nii")
    maps = np.stack([slice_of(tmp_path / "a.nii", k).pixels for k in range(4)])
    write_volume(maps, tmp_path / "a.nii", tmp_path / "map.nii")
    np.testing.assert_array_equal(nibabel.load(tmp_path / "map.nii").affine, nibabel.load(tmp_path / "a.nii").affine)
    np.testing.assert_array_equal(nibabel.load(tmp_path / "map.nii").get_fdata(), CANONICAL)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_scaling_is_applied_and_not_inherited(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    volume = nibabel.Nifti1Image(CANONICAL, np.eye(4))
    volume.header.set_slope_inter(2.0, -1024.0)
    volume.to_filename(path)
    expected = nibabel.load(path).get_fdata()[::-1, ::-1, 1].T
    np.testing.assert_allclose(slice_of(path, 1).pixels, expected)
    maps = np.random.default_rng(1).random((4, 7, 5), dtype=np.float32)
    write_volume(maps, path, tmp_path / "map.nii")
    np.testing.assert_array_equal(nibabel.load(tmp_path / "map.nii").get_fdata()[::-1, ::-1, 2].T, maps[2])


def test_what_the_header_says_of_the_patient_is_not_written(tmp_path):
    volume = nibabel.Nifti1Image(CANONICAL, np.eye(4))
    volume.header["descrip"] = b"Doe^Jane"
    volume.header["db_name"] = b"Doe^Jane"
    volume.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"Doe^Jane"))
    volume.to_filename(tmp_path / "a.nii")
    write_volume(np.zeros((4, 7, 5), np.float32), tmp_path / "a.nii", tmp_path / "map.nii")
    assert b"Doe" in (tmp_path / "a.nii").read_bytes()
    assert b"Doe" not in (tmp_path / "map.nii").read_bytes()


def test_a_memory_mapped_stack_is_written(tmp_path):
    path = saved(tmp_path / "a.nii", "LPS")
    maps = np.lib.format.open_memmap(tmp_path / "m.npy", "w+", np.float32, (4, 7, 5))
    maps[:] = np.arange(maps.size).reshape(maps.shape)
    write_volume(maps, path, tmp_path / "map.nii.gz")
    np.testing.assert_array_equal(slice_of(tmp_path / "map.nii.gz", 3).pixels, maps[3])


def test_maps_of_another_shape_or_name_are_refused(tmp_path):
    path = saved(tmp_path / "a.nii")
    with pytest.raises(OutputError, match=r"\(4, 5, 7\) do not fit a\.nii"):
        write_volume(np.zeros((4, 5, 7), np.float32), path, tmp_path / "map.nii")
    with pytest.raises(OutputError, match=r"map\.npy: a volume is written as"):
        write_volume(np.zeros((4, 7, 5), np.float32), path, tmp_path / "map.npy")


def test_a_full_disk_leaves_the_earlier_file_and_no_other(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.nii")
    (tmp_path / "map.nii").write_bytes(b"earlier")

    def full(self, file):
        file.write(b"begun")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nibabel.Nifti1Header, "write_to", full)
    with pytest.raises(OutputError, match=r"map\.nii: the disk is full \(No space left on device\)"):
        write_volume(np.zeros((4, 7, 5), np.float32), path, tmp_path / "map.nii")
    assert (tmp_path / "map.nii").read_bytes() == b"earlier"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nii", "map.nii"]


def test_a_compressed_volume_is_decompressed_once_for_many_threads(tmp_path):
    path = saved(tmp_path / "a.nii.gz")
    nifti._decompressed.cache_clear()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda k: slice_of(path, k % 4), range(40)))
    assert nifti._decompressed.cache_info().misses == 1


def test_a_replaced_volume_is_read_again(tmp_path):
    path = saved(tmp_path / "a.nii.gz")
    slice_of(path)
    nibabel.Nifti1Image(CANONICAL + 1, np.eye(4)).to_filename(path)
    os.utime(path, ns=(1, 1))
    np.testing.assert_array_equal(slice_of(path).pixels, (CANONICAL + 1)[::-1, ::-1, 0].T)


def test_only_one_slice_of_an_uncompressed_volume_is_read(tmp_path):
    path = saved(tmp_path / "a.nii")
    nifti._decompressed.cache_clear()
    slice_of(path)
    assert nifti._decompressed.cache_info().misses == 0


def test_nan_becomes_missing(tmp_path):
    values = CANONICAL.astype(np.float32)
    values[:2, :, 0] = np.nan
    values[:, :, 1] = np.nan
    nibabel.Nifti1Image(values, np.eye(4)).to_filename(tmp_path / "a.nii")
    image = slice_of(tmp_path / "a.nii", 0)
    np.testing.assert_array_equal(image.missing, np.isnan(values)[::-1, ::-1, 0].T)
    assert np.isfinite(image.pixels).all()
    with pytest.raises(ReadError, match=r"a\.nii: not one pixel is a finite number"):
        slice_of(tmp_path / "a.nii", 1)


def test_a_series_of_volumes_is_refused_with_its_shape(tmp_path):
    nibabel.Nifti1Image(np.zeros((3, 4, 5, 2), np.float32), np.eye(4)).to_filename(tmp_path / "a.nii")
    with pytest.raises(ReadError, match=r"of shape \(3, 4, 5, 2\)"):
        slice_of(tmp_path / "a.nii")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_fourth_axis_of_one_is_one_volume(tmp_path, suffix):
    nibabel.Nifti1Image(CANONICAL[..., None], np.eye(4)).to_filename(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(slice_of(tmp_path / f"a{suffix}", 2).pixels, CANONICAL[::-1, ::-1, 2].T)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_truncated_volume_is_an_error(tmp_path, suffix):
    path = saved(tmp_path / f"a{suffix}")
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(ReadError, match=r"a\.nii.*damaged"):
        slice_of(path, 3)


def test_a_slice_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(ReadError, match="holds 4 axial slices, there is no frame 4"):
        slice_of(saved(tmp_path / "a.nii"), 4)


@pytest.mark.real
def test_real_volume_has_nibabels_values():
    folder = os.environ.get("ANOMED_TEST_DATA")
    if not folder:
        pytest.skip("ANOMED_TEST_DATA is not set")
    path = Path(folder) / "reader_samples/nifti/brats_pat0002_flair.nii.gz"
    canonical = nibabel.as_closest_canonical(nibabel.load(path)).get_fdata(dtype=np.float32)
    assert header(path).frames == canonical.shape[2] == 155
    for k in (0, 80, 154):
        np.testing.assert_array_equal(slice_of(path, k).pixels, canonical[::-1, ::-1, k].T)
