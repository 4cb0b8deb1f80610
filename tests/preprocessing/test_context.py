"""What a slice knows of its volume: its relative height and its neighbours."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from anomalib_med import Preprocessing, Sample
from anomalib_med.config import parse_config
from anomalib_med.datasets.folder import discover
from anomalib_med.errors import ConfigError
from anomalib_med.preprocessing import Frames
from anomalib_med.preprocessing.context import VolumeContext
from anomalib_med.records import Frame
from tests.conftest import normal_picture
from tests.made_up_files import write_nifti
from tests.made_up_series import chest_volume, write_series

RAMP = Preprocessing(size=32, multiple=8, windows=((0.0, 100.0),), valid="all")


def ramp(slices: int) -> np.ndarray:
    """A volume whose slice k is about 10 k, and not constant."""
    volume = np.zeros((slices, 32, 32), np.float32)
    volume += 10 * np.arange(slices, dtype=np.float32)[:, None, None]
    volume[:, :, 0] += 2
    return volume


def frames(samples: list[Sample], settings: Preprocessing) -> list[Frame]:
    made = Frames(samples, settings)
    kept = list(made)
    assert not made.failures
    return kept


def channels(frame: Frame) -> list[int]:
    """Which slices of `ramp` the channels show."""
    return [round(float(np.median(channel)) * 10) for channel in frame.pixels]


@pytest.mark.parametrize("kind", ["dicom", "nifti", "upside down"])
def test_neighbours_are_channels_and_the_edge_repeats(tmp_path: Path, kind: str) -> None:
    if kind == "dicom":
        write_series(tmp_path, ramp(5), order=[3, 0, 4, 1, 2], spacing=(2.5, 1, 1))
    else:
        sign = 1 if kind == "nifti" else -1
        write_nifti(tmp_path / "a.nii.gz", ramp(5)[::sign].T, np.diag([1.0, 1, sign * 2.5, 1]))
    samples = discover(tmp_path)
    shown = [channels(frame) for frame in frames(samples, RAMP.model_copy(update={"slices": 3}))]
    assert shown == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 4]]
    five = frames(samples, RAMP.model_copy(update={"slices": 5}))
    assert channels(five[1]) == [0, 0, 1, 2, 3]
    assert [frame.sample.id for frame in five] == [sample.id for sample in samples]


def test_a_neighbour_does_not_depend_on_what_else_is_read_of_a_file(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", ramp(5).T, np.diag([1.0, 1, 2, 1]))
    samples = discover(tmp_path)
    settings = RAMP.model_copy(update={"slices": 3, "height": "volume"})
    together, alone = frames(samples, settings), [frames([sample], settings)[0] for sample in samples[::-1]][::-1]
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(together, alone, strict=True))
    assert [a.height for a in together] == [b.height for b in alone] == [0, 0.25, 0.5, 0.75, 1]


def test_missing_and_unreadable_neighbours_are_replaced_by_the_slice_before(tmp_path: Path) -> None:
    files = write_series(tmp_path, ramp(6), spacing=(2, 1, 1))
    files[2].unlink()
    files[4].write_bytes(files[4].read_bytes()[:-900])
    made = Frames(discover(tmp_path), RAMP.model_copy(update={"slices": 3}))
    assert [channels(frame) for frame in made] == [[0, 0, 1], [0, 1, 1], [3, 3, 3], [5, 5, 5]]
    assert list(made.failures) == ["0004.dcm"]


def test_windows_follow_one_another_within_each_slice(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", ramp(3).T)
    settings = Preprocessing(size=32, multiple=8, windows=((0.0, 100.0), (0.0, 50.0)), valid="all", slices=3)
    assert channels(frames(discover(tmp_path), settings)[1]) == [0, 0, 1, 2, 2, 4]


def test_a_single_image_is_refused_where_neighbours_are_asked_for() -> None:
    made = Frames(discover(normal_picture(1)[None]), Preprocessing(size=64, windows=("percentile",), slices=3))
    assert not list(made)
    (reason,) = made.failures.values()
    assert "fit without slices" in reason


def test_an_even_number_of_slices_is_refused() -> None:
    with pytest.raises(ConfigError, match="odd"):
        parse_config(Preprocessing, {"slices": "2"}, "preprocessing")


def test_the_height_in_the_volume_counts_missing_slices(tmp_path: Path) -> None:
    files = write_series(tmp_path, ramp(6), order=[5, 4, 3, 2, 1, 0], spacing=(2, 1, 1))
    files[2].unlink()
    context = VolumeContext(discover(tmp_path), Preprocessing(height="volume"))
    found = [context.height(sample) for sample in discover(tmp_path)[::-1]]
    np.testing.assert_allclose(found, [1, 0.8, 0.6, 0.2, 0])


def body_with_lungs(below: int, lungs: int, above: int) -> np.ndarray:
    """A chest between slices of a body without lungs."""
    chest = chest_volume(0, lungs, 96)
    solid = np.where(chest[:1] < -600, 30, chest[:1])
    solid[:, :8] = solid[:, -8:] = -1000
    edge = chest[:1] < -960
    solid[:, edge[0]] = -1000
    return np.concatenate([np.repeat(solid, below, 0), chest, np.repeat(solid, above, 0)])


def test_the_height_in_the_lungs_does_not_depend_on_what_the_scan_covers(tmp_path: Path) -> None:
    for name, (below, above) in {"tight": (1, 1), "wide": (14, 5)}.items():
        hu = body_with_lungs(below, 20, above)
        write_series(tmp_path / name, hu, spacing=(5, 3.6, 3.6), SeriesInstanceUID=f"1.{below}", PatientID=name)
    settings = Preprocessing(height="lung", windows=("lung",))
    tight, wide = (discover(tmp_path / name) for name in ("tight", "wide"))
    low, high = VolumeContext(tight, settings), VolumeContext(wide, settings)
    ours, theirs = [low.height(s) for s in tight[1:21]], [high.height(s) for s in wide[14:34]]
    np.testing.assert_allclose(ours, np.linspace(0, 1, 20), atol=0.01)
    np.testing.assert_allclose(theirs, ours, atol=0.01)
    assert high.height(wide[10]) < -0.1
    assert high.height(wide[38]) > 1.1


def test_where_no_lungs_are_found_the_height_is_not_known(tmp_path: Path) -> None:
    write_series(tmp_path, body_with_lungs(12, 1, 0), spacing=(5, 3.6, 3.6))
    samples = discover(tmp_path)
    settings = Preprocessing(size=64, height="lung", windows=("lung",))
    assert {frame.area for frame in Frames(samples, settings)} == {"body at unknown height"}
    refused = Frames(samples, settings, known_height=True)
    assert not list(refused)
    assert "its height is not known" in refused.failures[samples[0].id]
    alone = dataclasses.replace(samples[0], volume="")
    assert np.isnan(VolumeContext([alone], settings).height(alone))
