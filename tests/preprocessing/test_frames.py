"""Frames of many samples: their order, their progress, and what could not be read."""

from pathlib import Path

import numpy as np
import torch

from anomalib_med import Preprocessing
from anomalib_med.datasets.folder import discover
from anomalib_med.preprocessing import Frames
from tests.made_up_files import write_pictures

SETTINGS = Preprocessing(size=32, windows=((0.0, 255.0),))


def test_every_pass_reads_all_samples_in_order_and_says_so(tmp_path: Path) -> None:
    write_pictures(tmp_path, 12)
    (tmp_path / "image_03.png").write_bytes(b"no picture")
    told: list[tuple[str, int, int]] = []

    def progress(stage: str, done: int, total: int, note: str = "", /) -> None:
        told.append((stage, done, total))

    frames = Frames(discover(tmp_path), SETTINGS, stage="reading normals", progress=progress)
    for _ in range(2):
        told.clear()
        ids = [frame.sample.id for frame in frames]
        assert ids == [f"image_{i:02d}.png" for i in range(12) if i != 3]
        assert told == [("reading normals", i, 12) for i in range(1, 13)]
    assert list(frames.failures) == ["image_03.png"]


def test_batches_hold_consecutive_frames_of_one_shape(tmp_path: Path) -> None:
    write_pictures(tmp_path, 3, shape=(64, 64))
    write_pictures(tmp_path, 2, first=7, shape=(64, 128))
    batches = list(Frames(discover(tmp_path), SETTINGS).batches(2))
    assert [len(batch.frames) for batch in batches] == [2, 1]
    assert [tuple(batch.x.shape[2:]) for batch in batches] == [(16, 32), (32, 32)]
    for batch in batches:
        assert torch.equal(batch.x, torch.from_numpy(np.stack([frame.pixels for frame in batch.frames])))


def test_every_setting_says_what_it_is() -> None:
    assert all(field.description for field in Preprocessing.model_fields.values())
