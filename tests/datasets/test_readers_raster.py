"""What the readers of PNG, JPEG, TIFF, BMP and arrays promise."""

import io
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image as Pillow

from anomalib_med.datasets import read, samples_from_array
from anomalib_med.datasets.readers import header, is_image
from anomalib_med.errors import InputError, ReadError
from anomalib_med.records import Sample

GREY = (np.arange(30 * 41).reshape(30, 41) * 7 % 251).astype(np.uint8)
SMOOTH = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (96, 128), dtype=np.uint8), (0, 0), 4)


def pixels_of(path: Path, frame: int | None = None) -> np.ndarray:
    return read(Sample(str(path), path, frame=frame)).pixels


def write(path: Path, pixels: np.ndarray) -> Path:
    path.write_bytes(cv2.imencode(path.suffix, pixels)[1].tobytes())
    return path


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_eight_bit_values_are_kept(tmp_path, suffix):
    pixels = pixels_of(write(tmp_path / f"a{suffix}", GREY))
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels, GREY)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_sixteen_bits_are_kept(tmp_path, suffix):
    deep = GREY.astype(np.uint16) * 257 + 3
    np.testing.assert_array_equal(pixels_of(write(tmp_path / f"a{suffix}", deep)), deep)


def test_floating_point_tiff_is_kept(tmp_path):
    values = GREY.astype(np.float32) / 7 - 11
    np.testing.assert_array_equal(pixels_of(write(tmp_path / "a.tif", values)), values)


def test_jpeg_is_read_within_its_loss(tmp_path):
    assert np.abs(pixels_of(write(tmp_path / "a.jpg", SMOOTH)) - SMOOTH).mean() < 2


def test_colour_comes_in_rgb_order(tmp_path):
    rgb = np.stack([GREY, GREY[::-1], 255 - GREY], axis=-1)
    np.testing.assert_array_equal(pixels_of(write(tmp_path / "a.png", rgb[..., ::-1])), rgb)


def test_colour_with_equal_channels_becomes_grey(tmp_path):
    np.testing.assert_array_equal(pixels_of(write(tmp_path / "a.png", np.dstack([GREY] * 3))), GREY)


def test_transparency_is_dropped(tmp_path):
    Pillow.fromarray(GREY).convert("LA").save(tmp_path / "grey.png")
    rgba = np.dstack([GREY, GREY // 2, GREY // 3, np.zeros_like(GREY)])
    Pillow.fromarray(rgba).save(tmp_path / "colour.png")
    np.testing.assert_array_equal(pixels_of(tmp_path / "grey.png"), GREY)
    np.testing.assert_array_equal(pixels_of(tmp_path / "colour.png"), rgba[..., :3])


def test_palette_is_looked_up(tmp_path):
    image = Pillow.fromarray(GREY // 64)
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(tmp_path / "a.png")
    expected = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]])[GREY // 64]
    np.testing.assert_array_equal(pixels_of(tmp_path / "a.png"), expected)


def test_exif_orientation_is_ignored(tmp_path):
    exif = Pillow.Exif()
    exif[274] = 6
    Pillow.fromarray(SMOOTH).save(tmp_path / "a.jpg", exif=exif)
    assert pixels_of(tmp_path / "a.jpg").shape == SMOOTH.shape


def test_names_outside_ascii_are_read(tmp_path):
    folder = tmp_path / "Lunge_ähnlich_肺"
    folder.mkdir()
    np.testing.assert_array_equal(pixels_of(write(folder / "bïld.png", GREY)), GREY)


def test_the_content_decides_and_not_the_name(tmp_path):
    write(tmp_path / "a.png", GREY).rename(tmp_path / "a.jpg")
    np.testing.assert_array_equal(pixels_of(tmp_path / "a.jpg"), GREY)


@pytest.mark.parametrize("big", [False, True])
def test_each_page_of_a_tiff_is_a_frame(tmp_path, big):
    pages = [GREY, 255 - GREY, GREY[:12]]
    images = [Pillow.fromarray(page) for page in pages]
    images[0].save(tmp_path / "a.tif", save_all=True, append_images=images[1:], big_tiff=big)
    assert header(tmp_path / "a.tif").frames == 3
    for frame, page in enumerate(pages):
        np.testing.assert_array_equal(pixels_of(tmp_path / "a.tif", frame), page)
    with pytest.raises(ReadError, match=r"a\.tif: holds 3 pages, there is no frame 3"):
        pixels_of(tmp_path / "a.tif", 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_where_white_is_zero_is_inverted(tmp_path, dtype):
    stored = GREY.astype(dtype)
    buffer = io.BytesIO()
    Pillow.fromarray(stored).save(buffer, "TIFF")
    data = bytearray(buffer.getvalue())
    entry = data.index((262).to_bytes(2, "little") + (3).to_bytes(2, "little"))
    data[entry + 8 : entry + 10] = (0).to_bytes(2, "little")
    (tmp_path / "a.tif").write_bytes(data)
    np.testing.assert_array_equal(pixels_of(tmp_path / "a.tif"), np.iinfo(dtype).max - stored)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".bmp"])
@pytest.mark.parametrize("part", [0.5, 0.99])
def test_truncated_file_is_an_error(tmp_path, suffix, part):
    path = write(tmp_path / f"a{suffix}", SMOOTH)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(ReadError, match=rf"a\{suffix}: "):
        pixels_of(path)


def test_truncated_jpeg_with_a_thumbnail_is_an_error(tmp_path):
    whole = cv2.imencode(".jpg", SMOOTH)[1].tobytes()
    segment = b"\xff\xe1" + (len(whole) + 2).to_bytes(2, "big") + whole
    (tmp_path / "whole.jpg").write_bytes(whole[:2] + segment + whole[2:])
    (tmp_path / "cut.jpg").write_bytes(whole[:2] + segment + whole[2:-40])
    assert pixels_of(tmp_path / "whole.jpg").shape == SMOOTH.shape
    with pytest.raises(ReadError, match="is cut short: copy or export it again"):
        pixels_of(tmp_path / "cut.jpg")


def test_tiff_with_its_directory_first_and_its_pixels_cut_is_an_error(tmp_path):
    Pillow.fromarray(SMOOTH).save(tmp_path / "a.tif")
    data = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(data[:-100])
    with pytest.raises(ReadError, match="is cut short"):
        pixels_of(tmp_path / "a.tif")


def test_text_called_png_is_an_error(tmp_path):
    (tmp_path / "a.png").write_text("not an image at all")
    with pytest.raises(ReadError, match=r"a\.png: not an image"):
        pixels_of(tmp_path / "a.png")


def test_empty_file_is_an_error(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(ReadError, match=r"a\.png: the file is empty"):
        pixels_of(tmp_path / "a.png")


def test_missing_file_and_folder_are_errors(tmp_path):
    with pytest.raises(ReadError, match=r"a\.png: no such file"):
        pixels_of(tmp_path / "a.png")
    (tmp_path / "b.png").mkdir()
    with pytest.raises(ReadError, match=r"b\.png: cannot be opened"):
        pixels_of(tmp_path / "b.png")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a user who can be refused")
def test_unreadable_file_is_an_error(tmp_path):
    path = write(tmp_path / "a.png", GREY)
    path.chmod(0)
    with pytest.raises(ReadError, match=r"a\.png: cannot be opened"):
        pixels_of(path)


def test_second_frame_of_a_single_image_is_an_error(tmp_path):
    with pytest.raises(ReadError, match="there is no frame 1"):
        pixels_of(write(tmp_path / "a.png", GREY), 1)


def test_file_of_another_kind_is_an_error(tmp_path):
    (tmp_path / "a.xyz").write_text("text")
    assert not is_image(tmp_path / "a.xyz")
    with pytest.raises(ReadError, match="not an image"):
        pixels_of(tmp_path / "a.xyz")
    with pytest.raises(ReadError, match="not an image"):
        header(tmp_path / "a.xyz")


def test_constant_image_is_read(tmp_path):
    pixels = pixels_of(write(tmp_path / "a.png", np.full((8, 8), 9, np.uint8)))
    assert (pixels == 9).all()


def test_errors_are_one_line(tmp_path):
    (tmp_path / "a.dcm").write_text("text\nmore")
    (tmp_path / "a.nii").write_text("text\nmore")
    (tmp_path / "a.npy").write_text("text\nmore")
    for path in tmp_path.iterdir():
        with pytest.raises(ReadError) as error:
            pixels_of(path)
        assert "\n" not in str(error.value)
        assert str(path) in str(error.value)


def test_arrays_in_memory_are_read():
    stack = np.random.default_rng(0).normal(size=(4, 9, 7))
    samples = samples_from_array(stack)
    assert [s.id for s in samples] == ["image-000", "image-001", "image-002", "image-003"]
    assert len({s.patient for s in samples}) == 4
    np.testing.assert_array_equal(read(samples[2]).pixels, stack[2].astype(np.float32))
    assert read(samples_from_array(np.ones((1, 5, 6, 3)), prefix="x")[0]).pixels.shape == (5, 6, 3)
    assert [s.id for s in samples_from_array([np.ones((3, 4)), np.ones((5, 6))], prefix="x")] == ["x-000", "x-001"]


@pytest.mark.parametrize(
    "array",
    [np.ones((4, 4)), np.ones((0, 4, 4)), np.ones((2, 4, 4, 2)), np.array([[["a"]]]), [np.ones(3)], []],
    ids=["one image", "no image", "two channels", "text", "one axis", "empty list"],
)
def test_arrays_that_are_no_images_are_refused(array):
    with pytest.raises(InputError):
        samples_from_array(array)


def test_not_a_number_is_filled_and_marked():
    array = np.array([[[1, np.nan], [np.inf, 4]]])
    image = read(samples_from_array(array)[0])
    np.testing.assert_array_equal(image.pixels, [[1, 1], [1, 4]])
    np.testing.assert_array_equal(image.missing, [[False, True], [True, False]])


def test_nothing_but_nan_is_an_error():
    with pytest.raises(ReadError, match="image-000: not one pixel is a finite number"):
        read(samples_from_array(np.full((1, 3, 3), np.nan))[0])


def test_zero_size_image_is_an_error(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((0, 5)))
    for sample in (samples_from_array([np.ones((0, 5))])[0], Sample("a", tmp_path / "a.npy")):
        with pytest.raises(ReadError, match="empty"):
            read(sample)


def test_npy_files_are_read_frame_by_frame(tmp_path):
    stack = np.random.default_rng(0).normal(size=(3, 9, 7)).astype(np.float32)
    np.save(tmp_path / "stack.npy", stack)
    np.save(tmp_path / "one.npy", stack[0])
    assert (header(tmp_path / "stack.npy").frames, header(tmp_path / "one.npy").frames) == (3, 1)
    np.testing.assert_array_equal(pixels_of(tmp_path / "stack.npy", 2), stack[2])
    np.testing.assert_array_equal(pixels_of(tmp_path / "one.npy"), stack[0])
    with pytest.raises(ReadError, match="there is no frame 3"):
        pixels_of(tmp_path / "stack.npy", 3)


def test_npy_with_objects_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ReadError, match=r"a\.npy: not a \.npy file of numbers"):
        pixels_of(tmp_path / "a.npy")
