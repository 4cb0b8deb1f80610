"""What choosing an epoch by unlabelled images promises: it is off by default, it says so, and it survives a kill."""

from pathlib import Path

import numpy as np
import pytest
import torch

from anomalib_med import fit, load
from anomalib_med.errors import ConfigError, InputError, OutputError
from anomalib_med.evaluation import AUCp, aucp, image_auroc
from anomalib_med.models.training import Selection, TrainedDetector
from anomalib_med.records import Progress, silent
from tests.conftest import abnormal_picture, normal_picture
from tests.models.training.test_trainer import (
    PICTURES,
    Killed,
    Tiny,
    alike,
    equal,
    every_step,
    fitted,
    kill_after,
    trained,
    training,
)

HEALTHY = [normal_picture(50 + i, (40, 40)) for i in range(6)]
SICK = [abnormal_picture(90 + i, (48, 48))[0][:40, :40] for i in range(6)]
UNLABELLED = np.stack(HEALTHY + SICK)
SETTINGS = {"epochs": 6, "learning_rate": 0.03}


def test_aucp_is_the_auroc_watered_by_the_healthy_share() -> None:
    rng = np.random.default_rng(0)
    normal, abnormal = rng.normal(size=30), rng.normal(1, size=20)
    true = image_auroc([0] * 30 + [1] * 20, [*normal, *abnormal])
    rho = 30 / 50
    assert aucp(normal, [*normal, *abnormal]) == pytest.approx((1 - rho) * true + rho / 2)
    with pytest.raises(ValueError, match="needs normal and abnormal images"):
        aucp(normal, [])


def test_the_epoch_with_the_highest_aucp_is_kept() -> None:
    of_epochs = [fitted(Tiny(**(SETTINGS | {"epochs": epochs}))) for epochs in range(1, 7)]
    values = [aucp(m.score(PICTURES).scores, m.score(UNLABELLED).scores) for m in of_epochs]
    best = int(np.argmax(values))
    assert best < 5, "the last epoch is the best: the test would not tell"
    chosen = fitted(Tiny(**SETTINGS), epoch_choice=AUCp(UNLABELLED))
    assert equal(chosen, of_epochs[best])
    assert training(chosen).selected_step == 4 * (best + 1)
    assert training(chosen).selected_value == pytest.approx(values[best])
    assert equal(fitted(Tiny(**SETTINGS)), of_epochs[-1])


def test_the_model_says_that_it_is_transductive(tmp_path: Path) -> None:
    chosen = fitted(Tiny(epochs=1), epoch_choice=AUCp(UNLABELLED))
    (note,) = [note for note in chosen.notes if note.startswith("transductive")]
    assert "AUCp" in note and "12 unlabelled images" in note
    assert chosen.training["selection"]["step"] == 4
    with pytest.warns(UserWarning, match="transductive"):
        load(chosen.save(tmp_path / "model"))
    assert not any("transductive" in note for note in fitted(Tiny(epochs=1)).notes)


def test_a_detector_that_chose_once_does_not_choose_again() -> None:
    detector = Tiny(**SETTINGS)
    fitted(detector, epoch_choice=AUCp(UNLABELLED))
    assert equal(fitted(detector), fitted(Tiny(**SETTINGS)))


def test_an_interrupted_choice_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    x = torch.rand(6, 1, 32, 32)

    def chosen(file: Path, progress: Progress = silent) -> TrainedDetector:
        detector = Tiny(**SETTINGS)
        selection = Selection("x", lambda: float(detector.anomaly_map(x).detach().mean()))
        return trained(detector, every_step(file, progress, selection))

    whole = chosen(tmp_path / "whole")
    assert whole.training is not None and 0 < whole.training.selected_step < 24
    for step in np.random.default_rng().choice(np.arange(1, 24), 3, replace=False):
        file = tmp_path / f"{step}"
        with pytest.raises(Killed):
            chosen(file, kill_after(int(step)))
        resumed = chosen(file)
        assert alike(resumed, whole), f"interrupted at step {step}"
        assert resumed.training is not None and resumed.training.selected_step == whole.training.selected_step


def test_a_choice_by_other_images_is_another_training(tmp_path: Path) -> None:
    file = tmp_path / "training"
    fitted(Tiny(epochs=1), epoch_choice=AUCp(UNLABELLED), checkpoint=file)
    for other in ({"epoch_choice": AUCp(UNLABELLED[:3])}, {}):
        with pytest.raises(OutputError, match="another training"):
            fitted(Tiny(epochs=1), checkpoint=file, **other)


def test_a_training_cut_within_an_epoch_has_a_choice() -> None:
    cut = fitted(Tiny(epochs=1000, max_minutes=1e-6), epoch_choice=AUCp(UNLABELLED))
    assert training(cut).stopped == "time" and training(cut).selected_step == training(cut).step == 1


def test_what_cannot_choose_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="patchcore has no epochs to choose from"):
        fit("patchcore", PICTURES, epoch_choice=AUCp(UNLABELLED), device="cpu")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(InputError, match="none of the 1 unlabelled images could be read"):
        fitted(Tiny(epochs=1), epoch_choice=AUCp([broken]))
