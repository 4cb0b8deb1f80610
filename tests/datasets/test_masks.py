"""What masks promise: one boolean array in the geometry of the image, whatever form the lesion was published in."""

from pathlib import Path

import cv2
import nibabel
import numpy as np
import pytest

from anomalib_med.datasets import read
from anomalib_med.datasets.masks import decode_rle, encode_rle, filled_boxes, filled_polygons, has_mask, read_mask
from anomalib_med.errors import ReadError
from anomalib_med.records import Lesion, Sample


def test_run_lengths_go_down_the_columns_and_start_at_one() -> None:
    mask = decode_rle("2 2 6 1", (3, 4))
    assert np.argwhere(mask).tolist() == [[1, 0], [2, 0], [2, 1]]


def test_relative_run_lengths_count_from_the_last_run() -> None:
    # Three empty pixels, two lesion pixels, one empty, four lesion pixels: as SIIM-ACR publishes them.
    flat = np.array([0, 0, 0, 1, 1, 0, 1, 1, 1, 1, 0, 0], bool)
    np.testing.assert_array_equal(decode_rle("3 2 1 4", (3, 4), relative=True), flat.reshape(4, 3).T)


@pytest.mark.parametrize("text", ["", "-1", " -1 "])
def test_no_run_is_an_empty_mask(text: str) -> None:
    assert not decode_rle(text, (3, 4)).any()


@pytest.mark.parametrize(
    ("text", "words"),
    [("1 2 3", "odd number of 3"), ("1 x", "not whole numbers"), ("1 13", "ends at pixel 13"), ("0 1", "ends at")],
)
def test_wrong_run_lengths_are_refused(text: str, words: str) -> None:
    with pytest.raises(ReadError, match=words):
        decode_rle(text, (3, 4))


def test_boxes_cover_whole_pixels_and_stay_inside() -> None:
    mask = filled_boxes(((1.0, 0.0, 2.0, 1.0), (3.5, 3.5, 9.0, 9.0), (-2.0, 2.0, 2.5, 0.0)), (4, 5))
    expected = [[0, 1], [0, 2], [2, 0], [3, 3], [3, 4]]
    assert np.argwhere(mask).tolist() == expected


def test_polygons_may_overlap_and_need_three_points() -> None:
    square = [[1.0, 1.0], [3.0, 1.0], [3.0, 3.0], [1.0, 3.0]]
    mask = filled_polygons([square, square, [[0.0, 0.0], [4.0, 4.0]]], (6, 6))
    assert mask.sum() == 9
    assert mask[1:4, 1:4].all()


def test_each_form_is_read(tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    cv2.imwrite(str(image), np.zeros((6, 5), np.uint8))
    square = (((1.0, 1.0), (3.0, 1.0), (3.0, 3.0), (1.0, 3.0)),)
    for sample, pixels in (
        (Sample("a", image, label=0), 0),
        (Sample("b", image, label=1, boxes=((1, 1, 2, 2),)), 4),
        (Sample("c", image, label=1, lesion=Lesion(runs=("1 2", "4 3"))), 5),
        (Sample("d", image, label=1, lesion=Lesion(runs=("0 2 2 3",), relative=True)), 5),
        (Sample("e", image, label=1, lesion=Lesion(polygons=square)), 9),
    ):
        mask = read_mask(sample)
        assert mask is not None
        assert mask.shape == (6, 5)
        assert mask.dtype == np.bool_
        assert mask.sum() == pixels
        assert has_mask(sample)
    unknown = Sample("f", image, label=1)
    assert read_mask(unknown) is None
    assert not has_mask(unknown)


def test_a_mask_of_another_shape_is_refused(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "mask.png"), np.ones((4, 4), np.uint8))
    sample = Sample("a", tmp_path / "image.png", label=1, mask=tmp_path / "mask.png")
    with pytest.raises(ReadError, match=r"mask\.png: the mask is \(4, 4\), the image .* is \(6, 5\)"):
        read_mask(sample, (6, 5))


def test_a_mask_volume_gives_the_slice_and_the_classes_of_the_sample(tmp_path: Path) -> None:
    classes = np.zeros((5, 6, 4), np.uint8)
    classes[1, 2, 3], classes[3, 4, 3], classes[0, 0, 1] = 1, 2, 4
    for name in ("image", "mask"):
        nibabel.Nifti1Image(classes, np.eye(4)).to_filename(tmp_path / f"{name}.nii.gz")
    volume = Sample("a#003", tmp_path / "image.nii.gz", frame=3, label=1, mask=tmp_path / "mask.nii.gz")
    mask = read_mask(volume, read(volume).shape)
    assert mask is not None
    assert mask.sum() == 2
    np.testing.assert_array_equal(mask, read(volume).pixels > 0)
    chosen = Sample("a", volume.path, frame=3, label=1, mask=volume.mask, lesion=Lesion(values=(2, 4)))
    mask = read_mask(chosen)
    assert mask is not None
    assert mask.sum() == 1


def test_run_lengths_come_back() -> None:
    mask = np.random.default_rng(0).random((7, 5)) > 0.5
    mask[0, 0] = mask[-1, -1] = True
    np.testing.assert_array_equal(decode_rle(encode_rle(mask), (7, 5)), mask)
    assert encode_rle(np.zeros((7, 5), np.bool_)) == ""
