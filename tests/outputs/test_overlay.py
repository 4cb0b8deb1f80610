import cv2
import numpy as np
import pytest
from made_up_results import RANGE, grey

from anomalib_med.outputs.overlay import colours, triptych, write_overlay


@pytest.mark.parametrize("shape", [(2000, 1500), (512, 512), (28, 28), (10, 3000), (3000, 10), (1, 1)])
@pytest.mark.parametrize("channels", [(), (3,)])
def test_a_panel_is_at_most_512_pixels(shape, channels):
    display = np.full((*shape, *channels), 90, np.uint8)
    picture = triptych(display, np.zeros(shape, np.float32), RANGE)
    assert picture.dtype == np.uint8
    assert picture.shape[0] <= 512
    assert picture.shape[1] <= 3 * 512 + 120


def test_the_first_panel_is_the_image():
    display = grey((300, 280))
    assert np.array_equal(
        triptych(display, np.zeros((300, 280), np.float32), RANGE)[:, :280], display[..., None].repeat(3, 2)
    )


def test_the_colour_bar_runs_from_the_highest_to_the_lowest_colour_with_its_numbers():
    picture = triptych(np.zeros((300, 300), np.uint8), np.zeros((300, 300), np.float32), RANGE)
    margin = picture[:, 3 * 300 + 2 * 8 :].astype(int)
    bar = margin[8:-8, 8 + 5]
    assert np.abs(bar[0] - colours(np.array([[2.0]]), RANGE)[0, 0]).max() < 12
    assert np.abs(bar[-1] - colours(np.array([[0.0]]), RANGE)[0, 0]).max() < 12
    numbers = margin[:, 28:]
    assert numbers[:30].max() > 150
    assert numbers[-30:].max() > 150
    assert numbers[60:-60].max() < 50


def test_the_numbers_of_the_colour_bar_follow_the_range():
    blank = np.zeros((300, 300), np.uint8), np.zeros((300, 300), np.float32)
    first, second = triptych(*blank, (0.0, 2.0)), triptych(*blank, (0.0, 7.0))
    assert not np.array_equal(first[:40], second[:40])


def test_the_colour_of_a_value_does_not_depend_on_the_image():
    low, high = np.zeros((4, 4), np.float32), np.zeros((4, 4), np.float32)
    low[0, 0] = high[0, 0] = 0.7
    high[1, 1] = 1.9
    assert np.array_equal(colours(low, RANGE)[0, 0], colours(high, RANGE)[0, 0])


def test_what_is_normal_stays_grey_in_the_overlay_and_what_is_not_does_not():
    display = np.full((300, 300), 120, np.uint8)
    map = np.repeat(np.array([0.0, 0.1, 2.0], np.float32), 100)[None].repeat(300, 0)
    overlay = triptych(display, map, RANGE)[:, 2 * (300 + 8) :][:, :300].astype(int)
    assert np.ptp(overlay[:, :200], axis=2).max() <= 3
    assert np.ptp(overlay[:, 200:], axis=2).min() > 60


def test_a_nan_in_a_map_is_drawn_as_the_lowest_value():
    assert np.array_equal(colours(np.array([[np.nan]]), RANGE), colours(np.array([[0.0]]), RANGE))


def test_an_image_of_another_resolution_is_fitted_to_its_map():
    map = np.zeros((400, 300), np.float32)
    assert triptych(grey((800, 600)), map, RANGE).shape == triptych(grey((400, 300)), map, RANGE).shape


def test_an_image_that_is_not_8_bit_is_refused():
    with pytest.raises(ValueError, match="must be uint8"):
        triptych(np.zeros((4, 4)), np.zeros((4, 4), np.float32), RANGE)


def test_the_overlay_file_is_a_jpeg_in_rgb_order(tmp_path):
    display = np.zeros((256, 256, 3), np.uint8)
    display[..., 0] = 200
    write_overlay(tmp_path / "a.jpg", display, np.zeros((256, 256), np.float32), RANGE)
    blue, _, red = cv2.imread(str(tmp_path / "a.jpg"))[128, 128]
    assert red > 150
    assert blue < 50
