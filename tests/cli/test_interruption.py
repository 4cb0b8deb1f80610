"""A run that stops half-way, by Ctrl-C or a full disk: what is there is valid, and the same command goes on from it."""

import errno
import itertools
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch

from anomalib_med import load
from anomalib_med.models.reconstruction.autoencoder import Autoencoder
from anomalib_med.models.training import StepBatch, TrainingRun
from anomalib_med.outputs.tables import read_scores
from anomalib_med.outputs.writer import ResultWriter
from anomalib_med.records import Result
from tests.cli.command import SMALL_FIT, Outcome, anomed, assert_refused, contents, rows
from tests.made_up_files import write_pictures

Write = Callable[..., Result]


def interrupt_after(images: int, error: type[BaseException]) -> Write:
    """A `ResultWriter.write` that raises instead of writing the image after so many."""
    written = 0
    original = ResultWriter.write

    def write(self: ResultWriter, result: Result, *pictures: object) -> Result:
        nonlocal written
        if written == images:
            raise error
        written += 1
        return original(self, result, *pictures)  # type: ignore[arg-type]

    return write


@contextmanager
def no_space(at: range) -> Iterator[None]:
    """A disk that is full whenever a file of these numbers, counted from 0, is put in its place."""
    original, numbers = Path.replace, itertools.count()

    def replace(self: Path, target: Path) -> Path:
        if next(numbers) in at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        yield


@pytest.fixture(scope="module")
def whole(saved_model: Path, images_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """All files of a run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert anomed("score", saved_model, images_folder, "-o", out, "--device", "cpu").code == 0
    return contents(out)


def score(model: Path, images: Path, out: Path) -> Outcome:
    return anomed("score", model, images, "-o", out, "--device", "cpu")


@pytest.mark.parametrize("images", [0, 7])
def test_ctrl_c_and_the_same_command_again_give_what_one_run_gives(
    saved_model: Path, images_folder: Path, tmp_path: Path, whole: dict[str, bytes], images: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ResultWriter, "write", interrupt_after(images, KeyboardInterrupt))
        outcome = score(saved_model, images_folder, tmp_path)
    assert outcome.code == 130
    assert "anomed: interrupted: run the same command again to continue a training, anomed score or" in outcome.err
    assert "Traceback" not in outcome.err
    assert len(rows(tmp_path / "scores.csv")) == images

    outcome = score(saved_model, images_folder, tmp_path)
    assert outcome.code == 0
    assert "scored 12 images" + (f" ({images} by an earlier run)" if images else "") in outcome.out
    assert contents(tmp_path) == whole


def test_an_image_that_was_scored_is_not_scored_again(
    saved_model: Path, images_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert score(saved_model, images_folder, tmp_path).code == 0
    monkeypatch.setattr(ResultWriter, "write", interrupt_after(0, AssertionError))
    outcome = score(saved_model, images_folder, tmp_path)
    assert outcome.code == 0
    assert "scored 12 images (12 by an earlier run)" in outcome.out


def test_an_unexpected_error_keeps_what_was_scored_and_points_to_debug(
    saved_model: Path, images_folder: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ResultWriter, "write", interrupt_after(3, ZeroDivisionError))
        outcome = score(saved_model, images_folder, tmp_path)
    assert_refused(outcome, r"unexpected ZeroDivisionError: ; run again with --debug for the traceback", code=1)
    assert len(rows(tmp_path / "scores.csv")) == 3
    assert score(saved_model, images_folder, tmp_path).code == 0
    assert contents(tmp_path) == whole


@pytest.mark.parametrize("files", [0, 1, 2, 7])
def test_a_full_disk_while_scoring_leaves_valid_files_and_the_same_command_goes_on(
    saved_model: Path, images_folder: Path, tmp_path: Path, whole: dict[str, bytes], files: int
) -> None:
    with no_space(range(files, 1000)):
        outcome = score(saved_model, images_folder, tmp_path)
    assert_refused(outcome, r"the disk is full .*: free some space and run the same command again, it resumes")
    if (tmp_path / "scores.csv").exists():
        for result in read_scores(tmp_path / "scores.csv"):
            assert (tmp_path / result.map).read_bytes() == whole[result.map]
    assert score(saved_model, images_folder, tmp_path).code == 0
    assert contents(tmp_path) == whole


def test_a_full_disk_while_saving_a_model_leaves_no_part_of_it_and_the_same_command_works(
    normals_folder: Path, tmp_path: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))  # the system refuses the rest of the weights
    try:
        outcome = anomed("fit", normals_folder, "-o", tmp_path / "model", *SMALL_FIT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_refused(outcome, r"model: the model cannot be written .*; free space or choose another folder")
    assert list(tmp_path.iterdir()) == []
    assert anomed("fit", normals_folder, "-o", tmp_path / "model", *SMALL_FIT).code == 0
    load(tmp_path / "model")


@pytest.mark.parametrize("rename", [0, 1])
def test_a_model_that_cannot_be_replaced_stays(model_folder: Path, normals_folder: Path, rename: int) -> None:
    before = contents(model_folder)
    with no_space(range(rename, rename + 1)):
        outcome = anomed("fit", normals_folder, "-o", model_folder, "--overwrite", *SMALL_FIT)
    assert_refused(outcome, r"the model cannot be written")
    assert contents(model_folder) == before
    assert [entry.name for entry in model_folder.parent.iterdir()] == [model_folder.name]


def test_ctrl_c_while_fitting_leaves_nothing(
    normals_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("anomalib_med.models.memory_bank.two_view.k_center", interrupt)
    outcome = anomed("fit", normals_folder, "-o", tmp_path / "model", *SMALL_FIT)
    assert outcome.code == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is not a signal on Windows")
def test_a_real_process_stops_at_ctrl_c_and_another_one_goes_on_to_the_same_bytes(
    saved_model: Path, tmp_path: Path
) -> None:
    images = write_pictures(tmp_path / "images", 150, shape=(400, 400))
    out = tmp_path / "out"
    arguments = ["score", str(saved_model), str(images), "-o", str(out), "--device", "cpu"]
    command = [sys.executable, "-m", "anomalib_med", *arguments]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A runner in the background may have told its children to ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    table = out / "scores.csv"
    deadline = time.monotonic() + 60
    while not (table.exists() and table.read_bytes().count(b"\n") > 3):
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline, "no row appeared within a minute"
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "anomed: interrupted" in err
    assert "Traceback" not in err
    assert 3 <= len(rows(table)) < 150

    outcome = score(saved_model, images, out)
    assert outcome.code == 0
    assert "by an earlier run" in outcome.out
    assert score(saved_model, images, tmp_path / "whole").code == 0
    assert contents(out) == contents(tmp_path / "whole")


TRAINED_FIT = (
    "-m",
    "autoencoder",
    "-s",
    "loss=l2",
    "-s",
    "epochs=6",
    "-s",
    "batch_size=8",
    "--size",
    "32",
    "--device",
    "cpu",
)


def test_ctrl_c_while_training_and_the_same_command_again_give_what_one_run_gives(
    normals_folder: Path, tmp_path: Path
) -> None:
    assert anomed("fit", normals_folder, "-o", tmp_path / "whole", *TRAINED_FIT).code == 0
    with pytest.MonkeyPatch.context() as patch:
        # No option sets the time between checkpoints, and the minute of the default is too long for a test.
        patch.setattr("anomalib_med.fitting.TrainingRun", partial(TrainingRun, checkpoint_every=0))
        original = Autoencoder.training_step

        def interrupted(self: Autoencoder, batch: StepBatch) -> dict[str, torch.Tensor]:
            if batch.step == 7:
                raise KeyboardInterrupt
            return original(self, batch)

        patch.setattr(Autoencoder, "training_step", interrupted)
        outcome = anomed("fit", normals_folder, "-o", tmp_path / "model", *TRAINED_FIT)
    assert outcome.code == 130
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model.training", "whole"]

    assert anomed("fit", normals_folder, "-o", tmp_path / "model", *TRAINED_FIT[:-4], "--size", "48").code == 2
    assert anomed("fit", normals_folder, "-o", tmp_path / "model", *TRAINED_FIT).code == 0
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model", "whole"]
    assert contents(tmp_path / "model") == contents(tmp_path / "whole")


def test_a_time_budget_is_an_option_of_fit(normals_folder: Path, tmp_path: Path) -> None:
    options = [*TRAINED_FIT, "-s", "epochs=100000", "--max-minutes", "0.01"]
    outcome = anomed("fit", normals_folder, "-o", tmp_path / "model", *options)
    assert outcome.code == 0
    assert "when max_minutes were over" in outcome.out
    assert "training: " in outcome.err and "loss " in outcome.err
    assert anomed("info", tmp_path / "model").code == 0


def test_an_epoch_chosen_by_unlabelled_images_is_an_option_of_fit(normals_folder: Path, tmp_path: Path) -> None:
    options = [*TRAINED_FIT, "--unlabelled", normals_folder]
    outcome = anomed("fit", normals_folder, "-o", tmp_path / "model", *options)
    assert outcome.code == 0
    assert "transductive" in outcome.out and "AUCp" in outcome.out
    assert anomed("fit", normals_folder, "-o", tmp_path / "other", "--unlabelled", normals_folder).code == 2
