import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomalib_med.config import parse_config
from anomalib_med.errors import ConfigError, ReadError
from anomalib_med.preprocessing import CT_WINDOWS, Preprocessing, prepare
from anomalib_med.preprocessing.prepare import fit_geometry, resize
from anomalib_med.records import Image, Sample
from tests.conftest import normal_picture

FULL = Preprocessing(windows=((0.0, 255.0),))


def image(pixels: np.ndarray, **rest: object) -> Image:
    return Image(pixels.astype(np.float32), Sample("x"), **rest)


@settings(max_examples=300)
@given(st.integers(40, 3000), st.integers(40, 3000), st.sampled_from([64, 224, 512]))
def test_keep_makes_no_padding_keeps_area_and_nearly_the_aspect(rows: int, columns: int, size: int) -> None:
    geometry = fit_geometry((rows, columns), Preprocessing(size=size))
    height, width = geometry.input
    assert geometry.content == (0, 0, height, width)
    assert height % 16 == 0 and width % 16 == 0
    assert 0.6 < height * width / size**2 < 1.6
    if 0.5 < rows / columns < 2:
        assert abs(np.log(height / width / (rows / columns))) < (0.15 if size == 64 else 0.05)


def test_a_square_image_becomes_the_size_asked_for() -> None:
    assert fit_geometry((1024, 1024), Preprocessing(size=224)).input == (224, 224)


def test_pad_keeps_the_aspect_and_marks_the_rest_invalid() -> None:
    frame = prepare(image(normal_picture(0, (100, 200))), Preprocessing(size=64, aspect="pad", windows=((0.0, 255.0),)))
    assert frame.pixels.shape == (1, 64, 64)
    assert frame.geometry.content == (16, 0, 32, 64)
    assert frame.valid[16:48].all() and not frame.valid[:16].any() and not frame.valid[48:].any()


@pytest.mark.parametrize("aspect", ["keep", "pad", "stretch"])
@pytest.mark.parametrize("shape", [(300, 200), (97, 411), (64, 64)])
def test_a_spot_comes_back_to_where_it_was(aspect: str, shape: tuple[int, int]) -> None:
    spot = np.zeros(shape, np.float32)
    row, column = shape[0] // 3, 2 * shape[1] // 3
    cv2.circle(spot, (column, row), min(shape) // 12, 255, -1)
    spot += np.linspace(0, 20, shape[1])
    frame = prepare(image(spot), Preprocessing(size=128, aspect=aspect, windows=((0.0, 255.0),)))
    back = frame.geometry.to_original(frame.pixels[0])
    assert back.shape == shape
    found = np.argwhere(back > 0.7 * back.max()).mean(0)
    assert abs(found - [row, column]).max() < 0.02 * max(shape)


def test_windows_become_channels_in_order() -> None:
    hu = np.linspace(-1000, 1000, 64 * 64, dtype=np.float32).reshape(64, 64)
    frame = prepare(
        image(hu, modality="CT"), Preprocessing(size=64, windows=("lung", "mediastinum", (0.0, 100.0)), valid="all")
    )
    for channel, (low, high) in zip(
        frame.pixels, [CT_WINDOWS["lung"], CT_WINDOWS["mediastinum"], (0, 100)], strict=True
    ):
        np.testing.assert_allclose(channel, np.clip((hu - low) / (high - low), 0, 1), atol=1e-6)


def test_values_lie_between_0_and_1_whatever_the_image_holds() -> None:
    wild = np.random.default_rng(0).normal(0, 1e6, (70, 90)).astype(np.float32)
    for window in ("percentile", "voi", "lung", (0.0, 1.0)):
        frame = prepare(image(wild), Preprocessing(size=64, windows=(window,)))
        assert frame.pixels.dtype == np.float32
        assert frame.pixels.min() >= 0 and frame.pixels.max() <= 1


def test_voi_uses_the_window_of_the_file_and_else_percentiles() -> None:
    ramp = np.linspace(0, 4000, 64 * 64, dtype=np.float32).reshape(64, 64)
    settings_ = Preprocessing(size=64, windows=("voi",), valid="all")
    stated = prepare(image(ramp, window=(1000, 2000)), settings_)
    np.testing.assert_allclose(stated.pixels[0], np.clip((ramp - 1000) / 1000, 0, 1), atol=1e-6)
    low, high = np.percentile(ramp, (0.5, 99.5))
    np.testing.assert_allclose(
        prepare(image(ramp), settings_).pixels[0], np.clip((ramp - low) / (high - low), 0, 1), atol=1e-4
    )


@pytest.mark.parametrize(
    ("pixels", "rest", "window"),
    [
        (normal_picture(0), {}, (0.0, 255.0)),
        (normal_picture(0).astype(np.float32) * 16, {}, "percentile"),
        (normal_picture(0).astype(np.float32) * 16, {"window": (0.0, 4095.0), "modality": "DX"}, "voi"),
        (normal_picture(0).astype(np.float32) * 5 - 1000, {}, "lung"),
        (normal_picture(0).astype(np.float32), {"modality": "CT", "window": (0, 80)}, "lung"),
    ],
)
def test_auto_window_is_chosen_from_the_normals(pixels: np.ndarray, rest: dict, window: object) -> None:
    assert Preprocessing().resolved([image(pixels, **rest)] * 3).windows == (window,)


def test_one_resize_for_everything_is_the_mean_of_the_area() -> None:
    pixels = np.random.default_rng(0).normal(size=(120, 80)).astype(np.float32)
    np.testing.assert_allclose(resize(pixels, (30, 20)), pixels.reshape(30, 4, 20, 4).mean((1, 3)), atol=1e-5)
    assert resize(pixels, (120, 80)) is pixels


def test_colour_is_kept_on_request_and_else_its_luminance() -> None:
    rgb = np.random.default_rng(0).uniform(0, 255, (64, 64, 3)).astype(np.float32)
    kept = prepare(image(rgb), Preprocessing(size=64, colour=True, windows=((0.0, 255.0),)))
    np.testing.assert_allclose(kept.pixels, np.moveaxis(rgb, 2, 0) / 255, atol=1e-6)
    grey = prepare(image(rgb), Preprocessing(size=64, windows=((0.0, 255.0),)))
    np.testing.assert_allclose(grey.pixels[0], rgb @ [0.299, 0.587, 0.114] / 255, atol=1e-5)


def test_constant_bars_are_not_valid() -> None:
    pixels = normal_picture(1, (128, 128)).astype(np.float32)
    pixels[:16] = 0
    pixels[:, 112:] = 0
    valid = prepare(image(pixels), Preprocessing(size=128, windows=((0.0, 255.0),))).valid
    assert not valid[:15].any() and not valid[:, 113:].any()
    assert valid[18:, :110].all()


def test_a_dark_half_is_not_a_border() -> None:
    pixels = normal_picture(1, (128, 128)).astype(np.float32)
    pixels[:, :64] = 0
    assert prepare(image(pixels), Preprocessing(size=128, windows=((0.0, 255.0),))).valid.all()


def test_ct_valid_area_is_the_body_with_its_lungs_without_table_and_air() -> None:
    hu = np.full((256, 256), -1000, np.float32)
    cv2.ellipse(hu, (128, 120), (90, 65), 0, 0, 360, 40, -1)
    cv2.ellipse(hu, (90, 120), (30, 40), 0, 0, 360, -850, -1)
    cv2.ellipse(hu, (166, 120), (30, 40), 0, 0, 360, -850, -1)
    cv2.line(hu, (20, 215), (236, 215), 200, 2)
    hu += np.random.default_rng(0).normal(0, 20, hu.shape).astype(np.float32)
    valid = prepare(image(hu, modality="CT"), Preprocessing(size=256, windows=("lung",))).valid
    assert valid[120, 90] and valid[120, 166] and valid[120, 128]
    assert not valid[215].any() and not valid[5].any()
    assert abs(valid.mean() - np.pi * 90 * 65 / 256**2) < 0.02


def test_missing_pixels_are_not_valid() -> None:
    missing = np.zeros((64, 64), bool)
    missing[10:30, 10:30] = True
    valid = prepare(
        image(normal_picture(0, (64, 64)), missing=missing), Preprocessing(size=64, windows=((0.0, 255.0),))
    ).valid
    assert (valid == ~missing).all()


def test_a_constant_image_is_refused() -> None:
    with pytest.raises(ReadError, match="every pixel has the value 7"):
        prepare(image(np.full((50, 50), 7)), FULL)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"size": 3}, "size"),
        ({"windows": ((5.0, 1.0),)}, "windows"),
        ({"aspect": "crop"}, "aspect"),
        ({"sise": 3}, 'did you mean "size"'),
    ],
)
def test_impossible_settings_are_refused(settings_: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(Preprocessing, settings_, "preprocessing")


def test_display_is_8_bit_in_the_geometry_of_the_image() -> None:
    frame = prepare(image(normal_picture(0, (600, 1500)).astype(np.float32)), FULL, display=True)
    assert frame.display is not None
    assert frame.display.dtype == np.uint8 and frame.display.shape == (410, 1024)


def test_a_turned_image_gives_the_same_input_and_its_map_comes_back_turned() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.normal(0, 300, (96, 64)).astype(np.float32)
    settings = Preprocessing(size=64, windows=((-1000.0, 1000.0),), valid="all")
    upright = prepare(Image(pixels, Sample("a")), settings)
    prone = prepare(Image(pixels[::-1, ::-1], Sample("a"), flips=(True, True)), settings)
    np.testing.assert_array_equal(prone.pixels, upright.pixels)
    grid = rng.random((6, 4)).astype(np.float32)
    there, back = upright.geometry.to_original(grid), prone.geometry.to_original(grid)
    np.testing.assert_array_equal(back, there[::-1, ::-1])


@pytest.mark.parametrize(
    ("shape", "spacing"), [((512, 512), (0.7, 0.7)), ((100, 60), (3.0, 2.0)), ((64, 640), (1.0, 0.5))]
)
def test_a_chosen_spacing_keeps_anatomy_at_its_size_and_maps_come_back(
    shape: tuple[int, int], spacing: tuple[float, float]
) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.normal(0, 300, shape).astype(np.float32)
    mark = (round(0.3 * shape[0]), round(0.7 * shape[1]))
    frame = prepare(
        Image(pixels, Sample("a"), spacing=spacing), Preprocessing(spacing=2.0, valid="all", windows=("lung",))
    )
    top, left, rows, columns = frame.geometry.content
    assert abs(rows * 2.0 - shape[0] * spacing[0]) <= 1
    assert abs(columns * 2.0 - shape[1] * spacing[1]) <= 1
    assert frame.pixels.shape[1] % 16 == frame.pixels.shape[2] % 16 == 0
    assert frame.valid.sum() == rows * columns
    grid = np.zeros(frame.geometry.input, np.float32)
    grid[top + round(mark[0] / shape[0] * rows), left + round(mark[1] / shape[1] * columns)] = 1
    back = frame.geometry.to_original(grid)
    assert back.shape == shape
    peak = np.unravel_index(int(np.argmax(back)), shape)
    assert abs(peak[0] - mark[0]) * spacing[0] <= 3
    assert abs(peak[1] - mark[1]) * spacing[1] <= 3


def test_a_chosen_spacing_needs_an_image_that_states_its_own() -> None:
    pixels = np.random.default_rng(0).normal(0, 300, (64, 64)).astype(np.float32)
    with pytest.raises(ReadError, match="does not say how large a pixel is"):
        prepare(Image(pixels, Sample("a")), Preprocessing(spacing=2.0, windows=("lung",)))
    with pytest.raises(ReadError, match="too large"):
        prepare(Image(pixels, Sample("a"), spacing=(90.0, 90.0)), Preprocessing(spacing=0.5, windows=("lung",)))
