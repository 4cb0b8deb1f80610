"""What fit promises: any source of normals, whole patients held out, one way to look at every image."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from anomalib_med import FittedModel, Preprocessing, Sample, fit, fitting
from anomalib_med.datasets.folder import Source, discover
from anomalib_med.datasets.splits import split_by_patient
from anomalib_med.errors import ConfigError, FitError, InputError
from anomalib_med.features import FeatureExtractor
from anomalib_med.preprocessing import Frames
from anomalib_med.records import Frame
from tests.conftest import SMALL, normal_picture, small_patchcore
from tests.made_up_files import write_dicom, write_nifti, write_pictures, write_table

PICTURES = np.stack([normal_picture(i) for i in range(10)])


def small_fit(normals: Source, **options: object) -> FittedModel:
    return fit(small_patchcore(bank_size=100), normals, **({"preprocessing": SMALL, "device": "cpu"} | options))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten normal pictures."""
    return write_pictures(tmp_path_factory.mktemp("fitting") / "images", 10)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[list[Sample]]:
    """The samples that each pass over images read, in order: first what is fitted on, then what calibrates.

    The constructor is patched because a model holds no id of its normals on purpose: which ones were held out is told
    nowhere.
    """
    passes: list[list[Sample]] = []
    original = Frames.__init__

    def remember(self: Frames, samples: list[Sample], *rest: object, **options: object) -> None:
        passes.append(list(samples))
        original(self, samples, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Frames, "__init__", remember)
    return passes


# Sources


def test_every_source_of_the_same_images_gives_the_same_scores(folder: Path) -> None:
    files = sorted(folder.iterdir())
    table = write_table(folder.parent / "list.csv", "path,scanner", *(f"images/{file.name},A" for file in files))
    sources: list[Source] = [folder, str(folder), files, [str(f) for f in files], f"{folder}/*.png", table]
    sources += [discover(folder), PICTURES, list(PICTURES)]
    scores = [small_fit(source, calibration=0).score(PICTURES).scores.tolist() for source in sources]
    assert all(other == scores[0] for other in scores)


def test_images_of_different_size_and_colour_are_fitted_together(tmp_path: Path) -> None:
    for i, shape in enumerate(((96, 80), (80, 96), (200, 150))):
        cv2.imwrite(str(tmp_path / f"{i}.png"), normal_picture(i, shape))
    colour = np.stack([normal_picture(i) for i in (4, 5, 6)], axis=2)
    cv2.imwrite(str(tmp_path / "colour.png"), colour)
    model = small_fit(tmp_path)
    assert np.isfinite(model.score(tmp_path).scores).all()


def test_images_labelled_abnormal_are_refused() -> None:
    samples = [Sample(f"{i}", array=PICTURES[i], label=int(i in (3, 5))) for i in range(8)]
    with pytest.raises(InputError, match="2 of the images to fit on are labelled abnormal, first 3: leave them out"):
        small_fit(samples)


def test_images_without_a_label_and_labelled_normal_are_taken() -> None:
    samples = [Sample(f"{i}", array=PICTURES[i], label=0 if i % 2 else None) for i in range(8)]
    assert small_fit(samples).training["images"] == 6


# Patients


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_whole_patients_of_a_table_are_held_out(folder: Path, seen: list[list[Sample]], seed: int) -> None:
    names = [f"{folder / f'image_{i:02d}.png'},{'anna' if i < 4 else f'p{i}'}" for i in range(10)]
    model = small_fit(write_table(folder.parent / "patients.csv", "path,patient", *names), calibration=0.4, seed=seed)
    kept, held_out = seen
    assert not {s.patient for s in kept} & {s.patient for s in held_out}
    assert len(kept) + len(held_out) == 10
    assert len({s.patient for s in held_out}) == 3  # 40 % of 7 patients
    assert model.calibration is not None
    assert model.calibration.patient_count == 3
    assert len(model.calibration.scores) == len(held_out)


def test_the_patients_of_a_pattern_and_of_dicom_files_stay_together(tmp_path: Path, seen: list[list[Sample]]) -> None:
    for i in range(8):
        write_dicom(tmp_path / f"{i}.dcm", PICTURES[i].astype(np.uint16), PatientID=f"P{i // 2}")
    small_fit(tmp_path, calibration=0.25)
    small_fit(tmp_path, calibration=0.25, patient_pattern=r"([0-9])\.dcm")
    by_header, by_pattern = seen[1], seen[3]
    assert len(by_header) == 2 and len({s.patient for s in by_header}) == 1
    assert len(by_pattern) == 2 and len({s.patient for s in by_pattern}) == 2


def test_held_out_normals_are_those_of_the_seed(folder: Path, seen: list[list[Sample]]) -> None:
    small_fit(folder, seed=5)
    assert [s.id for s in seen[1]] == [s.id for s in split_by_patient(discover(folder), 0.2, 5)[1]]


def test_the_seed_of_the_detector_is_that_of_the_split(seen: list[list[Sample]]) -> None:
    for seed in (0, 1):
        small_fit(PICTURES, seed=seed)
        fit(small_patchcore(bank_size=10, seed=seed), PICTURES, preprocessing=SMALL, device="cpu")
    held_out = [{s.id for s in samples} for samples in seen[1::2]]
    assert held_out[0] == held_out[1]
    assert held_out[2] == held_out[3]


def test_calibration_scores_are_those_that_scoring_gives(folder: Path) -> None:
    model = small_fit(folder, calibration=0.3)
    held_out = split_by_patient(discover(folder), 0.3, 0)[1]
    assert model.calibration is not None
    assert model.calibration.scores.tolist() == model.score(held_out).scores.tolist()


# Calibration


def test_without_calibration_there_are_scores_and_maps_and_no_decisions() -> None:
    model = small_fit(PICTURES, calibration=0)
    assert model.calibration is None
    assert model.threshold() is None
    assert model.training["images"] == 10
    assert model.training["held_out_images"] == 0
    assert any("no normals were held out" in note for note in model.notes)
    scores = model.score(PICTURES[:2])
    assert np.isfinite(scores.scores).all()
    assert np.isnan(scores.p_values).all()
    assert [result.flagged for result in scores] == [None, None]
    assert model.map_range[0] < model.map_range[1]


@pytest.mark.parametrize("room", [64, 0])
def test_without_calibration_no_image_goes_through_the_backbone_twice(
    room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[int] = []
    original = FeatureExtractor.layers

    def counted(self: FeatureExtractor, x: torch.Tensor) -> list[torch.Tensor]:
        passed.append(len(x))
        return original(self, x)

    expected = small_fit(PICTURES, calibration=0).fingerprint()
    monkeypatch.setattr(FeatureExtractor, "layers", counted)  # how often the backbone runs is told nowhere
    monkeypatch.setattr(fitting, "KEPT_MB", room)
    model = small_fit(PICTURES, calibration=0)
    assert sum(passed) == (10 if room else 20)
    assert model.fingerprint() == expected
    assert model.detector.extractor.cache is None


def test_too_few_held_out_patients_are_said() -> None:
    notes = small_fit(PICTURES).notes
    assert any(
        "only 2 patients were held out: nothing can be flagged below a false-alarm rate of 0.333" in n for n in notes
    )


def test_enough_held_out_patients_need_no_note() -> None:
    normals = np.stack([normal_picture(i, (40, 40)) for i in range(24)])
    model = small_fit(normals, calibration=0.8)
    assert model.calibration is not None and model.calibration.patient_count == 19
    assert not any("held out" in note for note in model.notes)


@pytest.mark.parametrize("share", [-0.1, 1.0, 2.0, float("nan")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match=r"calibration .* must be a share from 0 to below 1, for example 0\.2"):
        small_fit(PICTURES, calibration=share)


def test_one_patient_cannot_be_divided() -> None:
    samples = [Sample(f"{i}", array=PICTURES[i], patient="anna") for i in range(5)]
    with pytest.raises(FitError, match=r"all 5 images belong to one patient \(anna\).*or set calibration to 0"):
        small_fit(samples)
    assert small_fit(samples, calibration=0).training["patients"] == 1


def test_two_images_are_enough() -> None:
    model = small_fit(PICTURES[:2])
    assert (model.training["images"], model.training["held_out_images"]) == (1, 1)


# Windows


def settled(model: FittedModel) -> object:
    return model.preprocessing.windows[0]


def test_8_bit_pictures_keep_their_full_range() -> None:
    assert settled(small_fit(PICTURES)) == (0.0, 255.0)


def test_16_bit_pictures_get_their_percentiles() -> None:
    assert settled(small_fit(PICTURES.astype(np.uint16) * 200)) == "percentile"


def test_radiographs_that_state_a_window_get_it(tmp_path: Path) -> None:
    for i in range(4):
        write_dicom(
            tmp_path / f"{i}.dcm", PICTURES[i].astype(np.uint16), PatientID=f"{i}", WindowCenter=120, WindowWidth=200
        )
    assert settled(small_fit(tmp_path)) == "voi"


def test_ct_in_hounsfield_units_gets_the_lung_window(tmp_path: Path) -> None:
    for i in range(3):
        volume = np.stack([normal_picture(3 * i + k, (48, 40)) for k in range(3)], axis=2) * 8.0 - 1024
        write_nifti(tmp_path / f"{i}.nii.gz", volume.astype(np.float32))
    assert settled(small_fit(tmp_path)) == "lung"


def test_a_window_that_is_given_stays() -> None:
    assert settled(small_fit(PICTURES, preprocessing=Preprocessing(size=64, windows=("percentile",)))) == "percentile"


def test_empty_images_do_not_change_the_window() -> None:
    model = small_fit(np.concatenate([np.zeros_like(PICTURES[:2]), PICTURES]))
    assert settled(model) == (0.0, 255.0)
    assert len(model.failures) == 2


# Settings, cache, progress


def test_inputs_have_sides_that_the_backbone_takes() -> None:
    detector = small_patchcore(backbone="resnet18", layers=("layer3", "layer4"), bank_size=50)
    model = fit(detector, PICTURES, preprocessing=SMALL, device="cpu")
    assert model.preprocessing.multiple == 32


def test_an_unknown_name_of_a_detector_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match='did you mean "patchcore"'):
        fit("patchcor", PICTURES)


def test_scores_with_and_without_a_cache_are_identical(folder: Path, tmp_path: Path) -> None:
    expected = small_fit(folder).score(folder).scores.tolist()
    cached = small_fit(folder, cache=tmp_path / "cache")
    assert cached.score(folder).scores.tolist() == expected


def test_a_cache_spares_the_backbone_and_gives_the_same_model_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = small_fit(folder, cache=tmp_path / "cache")
    expected = first.score(folder).scores.tolist()
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 10

    def fail(*_: object) -> None:
        raise AssertionError("the backbone ran")

    monkeypatch.setattr(FeatureExtractor, "layers", fail)  # how often the backbone runs is told nowhere
    second = small_fit(folder, cache=tmp_path / "cache")
    assert second.score(folder).scores.tolist() == expected
    assert second.fingerprint() == first.fingerprint()


def test_progress_tells_each_stage_to_its_end() -> None:
    said: list[tuple[str, int, int]] = []
    small_fit(PICTURES, progress=lambda *step: said.append(step))
    assert [step for step in said if step[0] == "reading normals"] == [("reading normals", i, 8) for i in range(1, 9)]
    assert ("scoring held-out normals", 2, 2) in said
    assert ("choosing the bank", 100, 100) in said


def test_images_that_cannot_be_read_are_left_out_and_counted(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("none")
    model = small_fit([*sorted(folder.iterdir()), tmp_path / "bad.png"])
    assert [reason for reason in model.failures.values() if "bad.png" in reason] == list(model.failures.values())
    assert model.training["unreadable"] == 1
    assert int(str(model.training["images"])) + int(str(model.training["held_out_images"])) == 10


def test_images_are_treated_alike_at_fit_and_at_score(folder: Path) -> None:
    model = small_fit(folder)
    frames = [f.pixels for f in Frames(discover(folder), model.preprocessing) if isinstance(f, Frame)]
    again = [f.pixels for f in Frames(discover(PICTURES), model.preprocessing)]
    assert all(np.array_equal(a, b) for a, b in zip(frames, again, strict=True))
