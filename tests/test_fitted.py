"""What a fitted model promises: scores that are the same tomorrow, decisions that follow from them, any detector."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import JsonValue

from anomalib_med import Detector, DetectorConfig, FittedModel, Preprocessing, detectors, fit, load
from anomalib_med.errors import ConfigError, InputError, ModelError
from anomalib_med.preprocessing import Frames
from tests.conftest import SMALL, abnormal_picture, normal_picture, small_patchcore
from tests.made_up_files import write_dicom, write_nifti

pytestmark = pytest.mark.filterwarnings("ignore:.*(random weights|held out)")

PICTURES = np.stack([normal_picture(300 + i) for i in range(6)])
ABNORMAL = np.stack([abnormal_picture(400 + i)[0] for i in range(6)])


# The object that score gives


def test_scores_p_values_decisions_and_maps_are_arrays_in_the_order_of_the_images(small_model: FittedModel) -> None:
    scores = small_model.score(np.concatenate([PICTURES, ABNORMAL]), false_alarm_rate=0.3)
    assert len(scores) == len(scores.maps) == 12
    assert scores.scores.shape == scores.p_values.shape == scores.flagged.shape == (12,)
    assert scores.scores.dtype == scores.p_values.dtype == np.float64
    assert scores.flagged.dtype == bool
    assert ((scores.p_values > 0) & (scores.p_values <= 1)).all()
    assert all(map.shape == (96, 80) and map.dtype == np.float32 for map in scores.maps)
    assert [result.id for result in scores] == scores.ids
    assert [result.score for result in scores[:3]] == scores.scores[:3].tolist()


def test_what_is_flagged_lies_above_the_threshold_and_nothing_else(small_model: FittedModel) -> None:
    images = np.concatenate([PICTURES, ABNORMAL])
    for rate in (0.25, 0.3, 0.5, 0.75, 0.9):
        threshold = small_model.threshold(rate)
        assert threshold is not None
        scores = small_model.score(images, false_alarm_rate=rate)
        assert scores.flagged.tolist() == (scores.scores > threshold).tolist()
        assert scores.flagged.tolist() == (scores.p_values <= rate + 1e-9).tolist()


def test_a_higher_score_never_has_a_higher_p_value(small_model: FittedModel) -> None:
    scores = small_model.score(np.concatenate([PICTURES, ABNORMAL]))
    order = np.argsort(scores.scores)
    assert (np.diff(scores.p_values[order]) <= 0).all()


def test_the_csv_is_the_table_of_the_command(small_model: FittedModel, tmp_path: Path) -> None:
    scores = small_model.score(PICTURES)
    lines = scores.to_csv(tmp_path / "scores.csv").read_text().splitlines()
    assert lines[0] == "id,path,frame,patient,score,p_value,flagged,area,map"
    assert [float(line.split(",")[4]) for line in lines[1:]] == scores.scores.tolist()


def test_a_report_is_one_page_beside_its_table_and_maps(small_model: FittedModel, tmp_path: Path) -> None:
    scores = small_model.score(ABNORMAL)
    page = scores.report(tmp_path / "out")
    assert page == tmp_path / "out" / "report.html"
    assert len(list((tmp_path / "out/maps").glob("*.npy"))) == 6
    assert (tmp_path / "out/scores.csv").read_text().count("\n") == 7


def test_a_report_of_other_images_is_not_mixed_with_the_first(small_model: FittedModel, tmp_path: Path) -> None:
    small_model.score(ABNORMAL).report(tmp_path)
    before = (tmp_path / "scores.csv").read_bytes()
    with pytest.raises(Exception, match="images differs"):
        small_model.score(PICTURES).report(tmp_path)  # the same ids, other pixels
    assert (tmp_path / "scores.csv").read_bytes() == before


def test_an_image_that_cannot_be_read_has_a_result_that_says_why(small_model: FittedModel, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("none")
    np.save(tmp_path / "good.npy", PICTURES[0])
    scores = small_model.score(tmp_path)
    assert np.isnan(scores.scores[0]) and np.isfinite(scores.scores[1])
    assert np.isnan(scores.p_values[0]) and not scores.flagged[0]
    assert [result.id for result in scores.failures] == ["bad.png"]
    assert "not an image" in scores[0].status
    with pytest.raises(ValueError, match=r"bad\.png has no anomaly map: .*not an image"):
        scores.maps[0]
    assert (scores.to_csv(tmp_path / "scores.csv")).read_text().count("\n") == 2


def test_a_rate_that_is_none_is_refused(small_model: FittedModel) -> None:
    for rate in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match=r"must lie between 0 and 1, for example 0\.05"):
            small_model.score(PICTURES, false_alarm_rate=rate)


def test_nothing_to_score_is_refused(small_model: FittedModel) -> None:
    with pytest.raises(InputError, match="the list of images is empty"):
        small_model.score([])


def test_progress_counts_the_images(small_model: FittedModel) -> None:
    said: list[tuple[str, int, int]] = []
    small_model.score(PICTURES, progress=lambda *step: said.append(step))
    assert said == [("scoring", i, 6) for i in range(1, 7)]


# Formats


def test_dicom_and_nifti_have_maps_of_their_rows_and_columns(small_model: FittedModel, tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", normal_picture(1, (70, 50)).astype(np.uint16))
    volume = np.stack([normal_picture(k, (40, 36)) for k in range(3)], axis=2).astype(np.float32)
    write_nifti(tmp_path / "b.nii.gz", volume)
    scores = small_model.score(tmp_path)
    assert scores.ids == ["a.dcm", "b.nii.gz#000", "b.nii.gz#001", "b.nii.gz#002"]
    assert [map.shape for map in scores.maps] == [(70, 50), (36, 40), (36, 40), (36, 40)]
    assert len({result.patient for result in scores[1:]}) == 1


def test_the_same_pixels_score_alike_from_every_format(small_model: FittedModel, tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", PICTURES[0].astype(np.uint16))
    np.save(tmp_path / "b.npy", PICTURES[0])
    write_nifti(tmp_path / "c.nii", PICTURES[0][::-1, ::-1].T[:, :, None].astype(np.float32))
    assert set(small_model.score(tmp_path).scores) == {small_model.score(PICTURES[:1]).scores[0]}


# Saved and loaded


def test_saved_and_loaded_it_is_the_same_model(small_model: FittedModel, model_folder: Path) -> None:
    loaded = load(model_folder, device="cpu")
    assert loaded.fingerprint() == small_model.fingerprint()
    assert loaded.describe() == small_model.describe()
    before, after = small_model.score(ABNORMAL), loaded.score(ABNORMAL)
    assert np.array_equal(before.scores, after.scores)
    assert np.array_equal(before.p_values, after.p_values)
    assert all(np.array_equal(a, b) for a, b in zip(before.maps, after.maps, strict=True))


def test_saved_again_it_gives_the_same_files(model_folder: Path, tmp_path: Path) -> None:
    again = load(model_folder, device="cpu").save(tmp_path / "again")
    for file in model_folder.iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes()


def test_loading_says_what_a_reader_of_its_scores_must_know(model_folder: Path) -> None:
    with pytest.warns(UserWarning, match="random weights.*only 3 patients were held out"):
        load(model_folder, device="cpu")


def test_any_change_of_the_model_changes_its_fingerprint(normals_folder: Path, small_model: FittedModel) -> None:
    pattern = r"(patient\d+)"
    others = [
        fit(small_patchcore(**settings), normals_folder, preprocessing=SMALL, patient_pattern=pattern, device="cpu")
        for settings in ({"bank_size": 100}, {"pooling": "max"}, {"seed": 1})
    ]
    assert len({model.fingerprint() for model in [small_model, *others]}) == 4


def test_the_description_is_json_without_numbers_that_json_lacks(small_model: FittedModel) -> None:
    text = json.dumps(small_model.describe(), allow_nan=False)
    assert json.loads(text) == small_model.describe()


# A detector of one's own


class MeanDifference(Detector):
    """Difference to the mean normal image."""

    name = "mean_difference_of_a_test"
    title = "Mean difference (test of the package)"

    class Config(DetectorConfig):
        """One setting."""

        exponent: float = 1.0

    config: Config

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings)
        self.mean = torch.empty(0)

    def fit(self, frames: Frames) -> None:
        self.mean = torch.cat([batch.x for batch in frames.batches(4)]).mean(0)

    def anomaly_map(self, x: torch.Tensor) -> torch.Tensor:
        return ((x - self.mean).abs() ** self.config.exponent).mean(1)

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, JsonValue]]:
        return {"mean": self.mean}, {"note": "kept"}

    def load_state(self, tensors: Mapping[str, torch.Tensor], extra: Mapping[str, JsonValue]) -> None:
        assert extra == {"note": "kept"}
        self.mean = tensors["mean"]


def test_a_detector_of_ones_own_is_registered_fitted_saved_and_loaded(tmp_path: Path) -> None:
    assert detectors()["mean_difference_of_a_test"] is MeanDifference
    model = fit(MeanDifference(exponent="2"), PICTURES, preprocessing=Preprocessing(size=64), device="cpu")
    assert not model.detector.uses_features
    loaded = load(model.save(tmp_path / "model"), device="cpu")
    assert isinstance(loaded.detector, MeanDifference)
    assert loaded.detector.config.exponent == 2
    assert loaded.score(ABNORMAL).scores.tolist() == model.score(ABNORMAL).scores.tolist()
    assert loaded.score(ABNORMAL).maps[0].shape == (96, 80)
    assert loaded.fingerprint() == model.fingerprint()


def test_a_detector_can_be_given_by_name() -> None:
    model = fit("mean_difference_of_a_test", PICTURES, preprocessing=SMALL, device="cpu")
    assert isinstance(model.detector, MeanDifference)


def test_a_feature_cache_is_refused_where_there_are_no_features(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no backbone: a feature cache is of no use to it"):
        fit(MeanDifference(), PICTURES, cache=tmp_path, device="cpu")


def test_a_model_whose_detector_is_not_there_says_what_to_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fit(MeanDifference(), PICTURES, preprocessing=SMALL, device="cpu").save(tmp_path / "model")
    monkeypatch.setattr(MeanDifference, "name", "another")  # as if its module were not imported
    with pytest.raises(
        ModelError,
        match=r'model: its detector "mean_difference_of_a_test" is not part of this package; import the module',
    ):
        load(model)


def test_a_model_saved_with_settings_that_are_no_more_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fit(MeanDifference(), PICTURES, preprocessing=SMALL, device="cpu").save(tmp_path / "model")
    monkeypatch.setattr(MeanDifference, "Config", DetectorConfig)
    with pytest.raises(ModelError, match=r"model: the model does not fit this version .*exponent.*; fit again"):
        load(model)


# Devices


def test_an_unknown_or_absent_device_is_refused(small_model: FittedModel, model_folder: Path) -> None:
    for name in ("gpu", "cuda:99"):
        with pytest.raises(ConfigError, match=f'device "{name}" is not'):
            small_model.to(name)
        with pytest.raises(ConfigError, match=f'device "{name}" is not'):
            load(model_folder, device=name)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_gpu_and_cpu_rank_alike_within_one_part_in_ten_thousand(model_folder: Path) -> None:
    images = np.concatenate([PICTURES, ABNORMAL])
    cpu, gpu = (load(model_folder, device=device).score(images).scores for device in ("cpu", "cuda"))
    np.testing.assert_allclose(gpu, cpu, rtol=1e-4)
    assert np.argsort(gpu).tolist() == np.argsort(cpu).tolist()


def test_a_map_is_quiet_where_no_score_is_taken() -> None:
    normals = np.stack([normal_picture(i) for i in range(12)])
    model = fit(small_patchcore(), normals, preprocessing=Preprocessing(size=64), calibration=0, device="cpu")
    barred = np.zeros((96, 120), np.uint8)
    barred[:, 20:100] = normal_picture(50)
    grid = model.score(barred[None])[0].grid
    assert grid is not None
    inside = grid[:, 2:-2]
    assert (grid[:, [0, -1]] == inside.min()).all()
    assert inside.max() > inside.min()
