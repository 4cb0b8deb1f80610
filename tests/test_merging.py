"""What add and merge promise: a model as if fitted on all, nothing of old calibration, no model that does not fit."""

from pathlib import Path

import numpy as np
import pytest
import torch

from anomalib_med import (
    Detector,
    FittedModel,
    PatchCore,
    Preprocessing,
    add_normals,
    detectors,
    fit,
    load,
    merge_models,
)
from anomalib_med.errors import ConfigError, FitError, InputError
from anomalib_med.models.base import DetectorConfig
from anomalib_med.models.memory_bank.spade import Spade
from anomalib_med.preprocessing import Frames
from tests.cli.command import anomed, assert_refused
from tests.conftest import SMALL, abnormal_picture, normal_picture, small_patchcore
from tests.made_up_files import write_pictures

FIRST = np.stack([normal_picture(i) for i in range(12)])
SECOND = np.stack([normal_picture(100 + i) for i in range(10)])
CALIBRATION = np.stack([normal_picture(200 + i) for i in range(20)])
NEW = np.stack([*(normal_picture(300 + i) for i in range(4)), *(abnormal_picture(400 + i)[0] for i in range(4))])

QUICK = {"patchcore": {"bank_size": 200}}
MERGEABLE = [
    name
    for name, detector in detectors().items()
    if detector.merge is not Detector.merge and detector.__module__.startswith("anomalib_med.")
]


def fitted(name: str, normals: np.ndarray, **options: object) -> FittedModel:
    detector = detectors()[name](**QUICK.get(name, {}))
    return fit(detector, normals, **({"preprocessing": SMALL, "device": "cpu", "calibration": 0} | options))


def test_the_memory_banks_can_be_merged() -> None:
    assert {"patchcore", "spade"} <= set(MERGEABLE)


@pytest.mark.parametrize("name", MERGEABLE)
def test_a_merged_model_finds_the_abnormal_is_saved_and_leaves_its_parts_alone(name: str, tmp_path: Path) -> None:
    first, second = fitted(name, FIRST), fitted(name, SECOND)
    before = first.fingerprint(), second.fingerprint()
    merged = merge_models(first, second, device="cpu")
    assert (first.fingerprint(), second.fingerprint()) == before
    assert merged.fingerprint() not in before
    scores = merged.score(NEW).scores
    assert scores[:4].max() < scores[4:].min()
    assert load(merged.save(tmp_path / "model"), device="cpu").score(NEW).scores.tolist() == scores.tolist()
    again = merge_models(first, second, device="cpu")
    assert again.fingerprint() == merged.fingerprint()


@pytest.mark.parametrize("detector", [PatchCore(weights="random", sampling="full"), Spade(weights="random")])
def test_where_everything_is_kept_merging_and_adding_are_fitting_on_all(detector: Detector) -> None:
    def fit_on(normals: np.ndarray) -> FittedModel:
        new = type(detector)(**detector.config.model_dump())
        return fit(new, normals, preprocessing=SMALL, calibration=0, device="cpu")

    whole = fit_on(np.concatenate([FIRST, SECOND])).score(NEW)
    merged = merge_models(fit_on(FIRST), fit_on(SECOND), device="cpu").score(NEW)
    added = add_normals(fit_on(FIRST), SECOND, calibration=0, device="cpu").score(NEW)
    for scores in (merged, added):
        np.testing.assert_allclose(scores.scores, whole.scores, rtol=1e-4)
        for one, other in zip(scores.maps, whole.maps, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)


def test_a_merged_bank_keeps_its_size_and_stands_for_the_normals_of_both() -> None:
    for sampling in ("coreset", "random", "kmeans"):
        models = [
            fit(small_patchcore(sampling=sampling), part, preprocessing=SMALL, calibration=0, device="cpu")
            for part in (FIRST, SECOND)
        ]
        merged = merge_models(*models, device="cpu").detector
        assert isinstance(merged, PatchCore)
        assert len(merged.bank) == 200
        assert merged.seen == 22 * 80
    shares = [fit(small_patchcore(bank_size=0.1), p, preprocessing=SMALL, calibration=0) for p in (FIRST, SECOND)]
    assert len(merge_models(*shares, device="cpu").detector.bank) == 22 * 8


def test_a_random_bank_draws_from_each_part_by_the_patches_it_stands_for() -> None:
    large = np.concatenate([FIRST, SECOND, CALIBRATION])
    models = [
        fit(small_patchcore(sampling="random"), part, preprocessing=SMALL, calibration=0, device="cpu")
        for part in (large, FIRST[:4])
    ]
    bank = merge_models(*models, device="cpu").detector.bank
    few = {tuple(row) for row in models[1].detector.bank.tolist()}
    share = sum(tuple(row) in few for row in bank.tolist()) / len(bank)
    assert 0.02 < share < 0.2  # 4 of 46 images; half of the two banks


# Calibration


def test_added_normals_replace_the_calibration_and_are_scored_with_the_new_bank() -> None:
    model = fitted("patchcore", np.concatenate([FIRST, CALIBRATION]), calibration=0.5)
    added = add_normals(model, SECOND, calibration=0.4, device="cpu")
    assert model.calibration is not None and len(model.calibration.scores) == 16
    assert added.calibration is not None and len(added.calibration.scores) == 4
    found = added.score(SECOND).scores.tolist()
    assert all(score in found for score in added.calibration.scores.tolist())
    assert any("p-values come from the normals that were added last" in note for note in added.notes)
    assert add_normals(model, SECOND, calibration=0, device="cpu").calibration is None


def test_a_merged_model_has_p_values_from_normals_that_are_given_for_it_and_else_none() -> None:
    models = fitted("patchcore", FIRST, calibration=0.3), fitted("patchcore", SECOND, calibration=0.3)
    bare = merge_models(*models, device="cpu")
    assert bare.calibration is None
    assert any("no normals were held out" in note for note in bare.notes)
    assert bare.map_range[0] == min(m.map_range[0] for m in models)
    assert bare.map_range[1] == max(m.map_range[1] for m in models)
    calibrated = merge_models(*models, calibration_normals=CALIBRATION, device="cpu")
    assert calibrated.calibration is not None
    assert calibrated.calibration.scores.tolist() == calibrated.score(CALIBRATION).scores.tolist()
    assert [r.flagged for r in calibrated.score(NEW)] == [False] * 4 + [True] * 4


def test_the_record_counts_all_and_keeps_that_of_each_part() -> None:
    first, second = fitted("patchcore", FIRST, calibration=0.25), fitted("patchcore", SECOND, calibration=0)
    merged = merge_models(first, second, calibration_normals=CALIBRATION, device="cpu")
    t = merged.training
    assert (t["images"], t["patients"], t["held_out_images"]) == (19, 19, 20)
    assert t["parts"][:2] == [first.training, second.training]
    assert t["ids_sha256"] not in [part["ids_sha256"] for part in t["parts"]]
    more = add_normals(merged, SECOND + 1, calibration=0.2, device="cpu").training
    assert (more["images"], len(more["parts"]), more["held_out_images"]) == (27, 4, 2)


# What does not fit


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bank_size": 100}, r'setting "bank_size" is 200.0 in the first and 100.0 in the second'),
        ({"neighbourhood": 1}, r'setting "neighbourhood" is 3 in the first and 1'),
        ({"backbone": "resnet18", "layers": ("layer2",), "weights": "random"}, "is radlite in the first and resnet18"),
        ({"weights": "random"}, r'backbone "sha256" is '),
    ],
)
def test_models_of_other_settings_are_refused(options: dict[str, object], message: str) -> None:
    other = fit(PatchCore(**({"bank_size": 200} | options)), SECOND, preprocessing=SMALL, calibration=0, device="cpu")
    with pytest.raises(ConfigError, match=f"cannot be merged: .*{message}.*fit both with the same settings"):
        merge_models(fitted("patchcore", FIRST), other, device="cpu")


def test_models_of_other_inputs_or_detectors_are_refused() -> None:
    model = fitted("patchcore", FIRST)
    with pytest.raises(ConfigError, match=r'preprocessing "size" is 64 in the first and 96'):
        merge_models(model, fitted("patchcore", SECOND, preprocessing=Preprocessing(size=96)), device="cpu")
    with pytest.raises(ConfigError, match=r'preprocessing "windows" is .* in the first and \[.percentile.\]'):
        merge_models(model, fitted("patchcore", SECOND.astype(np.uint16) * 200), device="cpu")
    with pytest.raises(ConfigError, match="the detector is patchcore in the first and spade in the second"):
        merge_models(model, fitted("spade", SECOND), device="cpu")


class Unmergeable(Detector):
    """Learns nothing."""

    name = "unmergeable"
    title = "A detector that cannot be merged"
    Config = DetectorConfig

    def fit(self, frames: Frames) -> None:
        assert len(frames)

    def anomaly_map(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(1)

    def state(self) -> tuple[dict, dict]:
        return {}, {}

    def load_state(self, tensors: object, extra: object) -> None:
        pass


def test_a_detector_that_cannot_be_merged_says_so_before_it_reads_an_image() -> None:
    model = fit(Unmergeable(), FIRST, preprocessing=SMALL, calibration=0, device="cpu")
    message = "detector unmergeable cannot be merged: fit it anew on all normals"
    with pytest.raises(ConfigError, match=message):
        add_normals(model, "no such folder")
    with pytest.raises(ConfigError, match=message):
        merge_models(model, model)


def test_normals_that_cannot_be_used_are_refused() -> None:
    model = fitted("patchcore", FIRST)
    with pytest.raises(ConfigError, match="calibration 2 must be a share"):
        add_normals(model, SECOND, calibration=2)
    with pytest.raises(InputError):
        merge_models(model, model, calibration_normals="no such folder")
    with pytest.raises(FitError, match="belong to one patient"):
        add_normals(model, SECOND[:1])


# On the command line


def test_add_and_merge_on_the_command_line(tmp_path: Path) -> None:
    for i, part in enumerate(("a", "b", "c")):
        write_pictures(tmp_path / part, 8 + i)
    options = ("--size", 64, "-s", "bank_size=100")
    assert anomed("fit", tmp_path / "a", "-o", tmp_path / "model_a", *options).code == 0
    outcome = anomed("add", tmp_path / "model_a", tmp_path / "b", "-o", tmp_path / "more", "--calibration", 0.4)
    assert outcome.code == 0
    assert "fitted twoview on 11 images of 11 patients; 4 images of 4 patients held out" in outcome.out
    assert "note: merged: p-values come from the normals that were added last alone" in outcome.out
    assert anomed("fit", tmp_path / "b", "-o", tmp_path / "model_b", *options).code == 0
    merge = ("merge", tmp_path / "model_a", tmp_path / "model_b", "-o", tmp_path / "both")
    outcome = anomed(*merge, "--calibration-normals", tmp_path / "c")
    assert outcome.code == 0
    assert "fitted twoview on 13 images of 13 patients; 10 images of 10 patients held out" in outcome.out
    assert anomed("score", tmp_path / "both", tmp_path / "c", "-o", tmp_path / "out", "--report").code == 0
    assert "training.parts.1.images" in anomed("info", tmp_path / "both").out
    assert_refused(anomed(*merge), "already holds a model")
    assert anomed(*merge, "--overwrite").code == 0
    assert anomed("fit", tmp_path / "b", "-o", tmp_path / "other", "--size", 96).code == 0
    assert_refused(
        anomed("merge", tmp_path / "model_a", tmp_path / "other", "-o", tmp_path / "no"), 'setting "bank_size" is 100'
    )
