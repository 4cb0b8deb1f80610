import nibabel
import numpy as np
import pytest
from made_up_results import RANGE, volume, volumes_in

from anomalib_med.errors import OutputError
from anomalib_med.outputs.maps import VolumeMaps, clipped_pixels, png_scale, write_npy, write_png
from tests.made_up_files import read_png_map


def test_npy_is_float32_and_bit_equal(tmp_path):
    map = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    write_npy(tmp_path / "a.npy", map)
    back = np.load(tmp_path / "a.npy", allow_pickle=False)
    assert back.dtype == np.float32
    assert np.array_equal(back, map)


def test_png_comes_back_within_half_a_step(tmp_path):
    scale = png_scale(RANGE)
    map = np.random.default_rng(0).uniform(-1.9, 13.9, (64, 48)).astype(np.float32)
    assert write_png(tmp_path / "a.png", map, scale) == 0
    assert np.abs(read_png_map(tmp_path / "a.png") - map).max() <= scale[1] * 0.501


def test_png_has_8192_steps_inside_the_colour_range():
    assert (RANGE[1] - RANGE[0]) / png_scale(RANGE)[1] == pytest.approx(8192, abs=1)


def test_png_counts_what_lies_beyond_its_scale(tmp_path):
    map = np.array([[1.0, 1e6, -1e6, np.nan, np.inf]], np.float32)
    assert write_png(tmp_path / "a.png", map, png_scale(RANGE)) == 4
    assert clipped_pixels(tmp_path / "a.png") == 4
    assert read_png_map(tmp_path / "a.png")[0, 0] == pytest.approx(1.0, abs=1e-3)


def test_a_png_of_another_program_is_refused(tmp_path):
    import cv2

    (tmp_path / "a.png").write_bytes(cv2.imencode(".png", np.zeros((4, 4), np.uint16))[1].tobytes())
    with pytest.raises(OutputError, match=r"a\.png: not a map"):
        clipped_pixels(tmp_path / "a.png")


def test_a_volume_of_maps_has_the_affine_of_its_volume_and_nan_where_a_slice_is_missing(tmp_path):
    path, results = volume(tmp_path, "v.nii.gz")
    maps = VolumeMaps(volumes_in(tmp_path)[0], tmp_path / "out.nii.gz")
    for k in (3, 1):
        maps.add(results[k].id, results[k].anomaly_map())
    maps.write()
    written, source = nibabel.load(tmp_path / "out.nii.gz"), nibabel.load(path)
    assert np.array_equal(written.affine, source.affine)
    values = np.asarray(written.dataobj)
    assert values.shape == source.shape
    assert np.isnan(values[..., [0, 2]]).all()
    assert (values[..., 1] == 2).all()
    assert (values[..., 3] == 4).all()


def test_a_discarded_volume_leaves_nothing(tmp_path):
    _, results = volume(tmp_path, "v.nii")
    maps = VolumeMaps(volumes_in(tmp_path)[0], tmp_path / "out.nii.gz")
    maps.add(results[0].id, results[0].anomaly_map())
    maps.discard()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["v.nii"]


def test_slices_of_different_size_are_refused(tmp_path):
    volume(tmp_path, "v.nii")
    maps = VolumeMaps(volumes_in(tmp_path)[0], tmp_path / "out.nii.gz")
    maps.add("v.nii#0", np.zeros((6, 5), np.float32))
    with pytest.raises(OutputError, match=r"v\.nii#1: the slice"):
        maps.add("v.nii#1", np.zeros((6, 4), np.float32))
    maps.discard()
