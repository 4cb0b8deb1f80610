"""The student-teacher family: what is particular to each. The promises of every detector: test_contract.py."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from anomalib_med import FittedModel, Preprocessing, fit, load
from anomalib_med.errors import ConfigError, FitError
from anomalib_med.evaluation import pixel_auroc
from anomalib_med.features import FeatureExtractor
from anomalib_med.models.student_teacher.dinomaly import Dinomaly, LinearAttention, hardened
from anomalib_med.models.student_teacher.efficientad import EfficientAD, Scale, mean_of_hardest, with_exposure
from anomalib_med.models.student_teacher.mkd import MKD, inside
from anomalib_med.models.student_teacher.pdn import PDN, Autoencoder, grid_of, margins
from anomalib_med.models.student_teacher.rd4ad import RD4AD
from anomalib_med.models.student_teacher.rdpp import RDPlusPlus, with_noise
from anomalib_med.models.student_teacher.stfpm import STFPM
from anomalib_med.models.student_teacher.teaching import (
    Student,
    cosine_distance,
    distance_maps,
    flat_cosine_distance,
    fold,
    teacher_layers,
    unfold,
)
from anomalib_med.models.training import StepBatch, TrainedDetector
from tests.conftest import abnormal_picture, normal_picture
from tests.models.made_up_frames import frames_of

NORMALS = np.stack([normal_picture(i) for i in range(24)])
ABNORMAL = [abnormal_picture(900 + i) for i in range(8)]
SIZE = Preprocessing(size=64)
CARDS = Path(__file__).parents[2] / "models"
TINY = {"steps": 2, "batch_size": 4}
RESNET = {"backbone": "resnet18", "weights": "random", "layers": "layer1,layer2,layer3"}
FAMILY = [STFPM, RD4AD, RDPlusPlus, MKD, Dinomaly, EfficientAD]


def fitted(detector: TrainedDetector, normals: np.ndarray = NORMALS) -> FittedModel:
    return fit(detector, normals, calibration=0, preprocessing=SIZE, device="cpu")


def batch_of(x: torch.Tensor, **progress: int) -> StepBatch:
    return StepBatch(x, torch.ones(len(x), 64, 64, dtype=torch.bool), **progress)


def found(model: FittedModel) -> float:
    maps = model.score(np.stack([picture for picture, _ in ABNORMAL])).maps
    return pixel_auroc([mask for _, mask in ABNORMAL], list(maps))


# What they share


def test_unfold_gives_back_what_was_folded() -> None:
    teacher, x = FeatureExtractor(), torch.rand(2, 1, 64, 64)
    layers = teacher_layers(teacher, x)
    folded = fold([x, *layers])
    assert folded.shape == (2, 256 + 4 * 64 + 64, 4, 4) and folded.dtype == torch.float16
    parts = unfold(folded.float(), teacher)
    assert all(torch.equal(a, b) for a, b in zip(parts, [x.half().float(), *layers], strict=True))
    assert len(unfold(fold(layers), teacher)) == 2


def test_maps_of_all_layers_come_on_the_finest_grid() -> None:
    given = [torch.rand(2, 5, 8, 8), torch.rand(2, 3, 4, 4)]
    maps = distance_maps(given, [torch.ones_like(layer) for layer in given])
    assert maps.shape == (2, 2, 8, 8)
    assert torch.equal(maps[0], cosine_distance(given[0], torch.ones(2, 5, 8, 8)))
    assert maps[1].mean() == pytest.approx(float(cosine_distance(given[1], torch.ones(2, 3, 4, 4)).mean()), rel=0.2)


def test_distance_of_directions_is_half_the_squared_distance_of_unit_vectors() -> None:
    t, s = torch.randn(2, 2, 7, 4, 4)
    unit = [v / v.norm(dim=1, keepdim=True) for v in (t, s)]
    assert torch.allclose(cosine_distance(t, s), 0.5 * (unit[0] - unit[1]).square().sum(1), atol=1e-6)
    assert torch.isfinite(cosine_distance(t, torch.zeros_like(s))).all()
    assert torch.allclose(flat_cosine_distance(t, 3 * t), torch.zeros(2), atol=1e-6)


def test_what_a_teacher_says_of_an_image_does_not_depend_on_the_batch() -> None:
    teacher = FeatureExtractor()
    x = torch.rand(9, 1, 64, 64)
    together = teacher_layers(teacher, x)
    for i in range(9):
        assert all(
            torch.equal(a[i : i + 1], b) for a, b in zip(together, teacher_layers(teacher, x[i : i + 1]), strict=True)
        )


@pytest.mark.parametrize("settings", [{}, RESNET])
def test_a_student_has_the_layers_of_its_teacher_and_none_of_its_weights(settings: dict[str, str]) -> None:
    teacher = STFPM(**settings).extractor
    assert teacher is not None
    student = Student(teacher, seed=1).eval()
    x = torch.rand(2, 1, 64, 64)
    pairs = list(zip(teacher.layers(x), student(x), strict=True))
    assert all(a.shape == b.shape and not torch.allclose(a, b, atol=1e-2) for a, b in pairs)
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in student.modules())
    assert all(p.requires_grad for p in student.parameters())


@pytest.mark.parametrize("settings", [{}, RESNET])
def test_a_student_scores_with_what_it_learnt_last(settings: dict[str, str]) -> None:
    teacher = STFPM(**settings).extractor
    assert teacher is not None
    student, x = Student(teacher, seed=1), torch.rand(3, 1, 64, 64)
    for _ in range(2):
        student.train()
        student(x)  # batch norms learn
        student.eval()
        with torch.no_grad():
            pairs = list(zip(student(x), student.score(x), strict=True))
        assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in pairs)


@pytest.mark.parametrize("kind", [STFPM, RD4AD, RDPlusPlus, MKD, Dinomaly])
def test_any_network_can_teach(kind: type[TrainedDetector]) -> None:
    model = fitted(kind(**TINY, **RESNET))
    assert torch.isfinite(model.detector.anomaly_map(torch.rand(2, 1, 64, 64))).all()
    colour = fit(
        kind(**TINY), np.repeat(NORMALS[..., None], 3, 3), calibration=0, device="cpu",
        preprocessing=Preprocessing(size=64, colour=True),
    )  # fmt: skip
    assert colour.detector.anomaly_map(torch.rand(2, 3, 64, 64)).shape[0] == 2


@pytest.mark.parametrize("kind", [STFPM, RD4AD, RDPlusPlus, MKD, Dinomaly, EfficientAD])
def test_features_are_compared_as_they_are_and_impossible_settings_are_refused(kind: type[TrainedDetector]) -> None:
    with pytest.raises(ConfigError, match="steps"):
        kind(steps=-1)
    if kind is not EfficientAD:
        assert kind().extractor.neighbourhood == 1
        with pytest.raises(ConfigError, match='no option "neighbourhood"'):
            kind(neighbourhood=3)


@pytest.mark.parametrize("kind", FAMILY)
def test_an_image_alone_has_the_score_it_has_in_a_set_with_extreme_ones(kind: type[TrainedDetector]) -> None:
    """No map is stretched to its own smallest and largest value, nor to those of the other images."""
    model = fitted(kind(**TINY))
    image = normal_picture(50)
    extreme = np.stack([image, np.zeros_like(image) + np.eye(len(image), image.shape[1]) * 255, 255 - image])
    together, alone = model.score(extreme), model.score(image[None])
    assert together.scores[0] == alone.scores[0]
    assert np.array_equal(together.maps[0], alone.maps[0])
    peaks = [float(map.max()) for map in together.maps]
    assert max(peaks) - min(peaks) > 1e-6  # each image has its own range


@pytest.mark.parametrize("kind", FAMILY)
def test_scoring_teaches_a_model_nothing(kind: type[TrainedDetector]) -> None:
    """Statistics, scales and norms are those of the normals: no image that is scored changes them."""
    model = fitted(kind(**TINY))
    before = {key: value.clone() for key, value in model.detector.state()[0].items()}
    first = model.score(NORMALS[:2]).scores
    model.score(np.stack([picture for picture, _ in ABNORMAL]))
    after = model.detector.state()[0]
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert np.array_equal(model.score(NORMALS[:2]).scores, first)


@pytest.mark.parametrize("kind", [STFPM, RD4AD, RDPlusPlus, MKD, Dinomaly])
def test_the_smallest_inputs_are_trained_on_and_scored(kind: type[TrainedDetector]) -> None:
    """Norms over a grid of one cell have nothing to divide by."""
    side = max(32, kind().multiple)
    small = Preprocessing(size=side)
    model = fit(kind(**TINY), NORMALS[:6], calibration=0, preprocessing=small, device="cpu")
    maps = model.detector.anomaly_map(torch.rand(3, 1, side, side))
    assert maps.shape[0] == 3 and torch.isfinite(maps).all()
    assert np.isfinite(model.score(NORMALS[:2]).scores).all()


@pytest.mark.parametrize("size", [32, 64, 96, 224])
@pytest.mark.parametrize("settings", [{}, RESNET])
@pytest.mark.parametrize("kind", [STFPM, RD4AD])
def test_maps_are_the_same_bits_in_any_batch_at_any_size(
    kind: type[TrainedDetector], settings: dict[str, str], size: int
) -> None:
    detector = kind(**settings)
    torch.manual_seed(0)
    x = torch.rand(7, 1, size, size)
    detector.initialise(tuple(detector.prepare(x[:1]).shape[1:]))
    detector.load_state(*detector.state())
    together = detector.anomaly_map(x)
    for start, stop in ((0, 1), (0, 2), (2, 5), (6, 7)):
        assert torch.equal(detector.anomaly_map(x[start:stop].clone()), together[start:stop])


# STFPM


@pytest.mark.parametrize("combine", ["mul", "add"])
def test_stfpm_finds_what_the_student_did_not_learn(combine: str) -> None:
    assert found(fitted(STFPM(steps=60, batch_size=8, combine=combine))) > 0.9


def test_stfpm_joins_the_layers_as_it_is_told() -> None:
    model = fitted(STFPM(**TINY, backbone="resnet18", weights="random", layers="layer2"))
    summed = fitted(STFPM(**TINY, backbone="resnet18", weights="random", layers="layer2", combine="add"))
    x = torch.rand(2, 1, 64, 64)
    assert torch.equal(model.detector.anomaly_map(x), summed.detector.anomaly_map(x))  # one layer: nothing to join


@pytest.mark.parametrize("settings", [{}, RESNET])
def test_stfpm_keeps_its_large_learning_rate_on_few_images(settings: dict[str, str]) -> None:
    detector = STFPM(steps=40, batch_size=4, **settings)
    fitted(detector, NORMALS[:6])
    assert detector.training is not None and detector.training.losses["distance"] < 1.0
    assert detector.config.learning_rate == 1.6


# Reverse distillation


@pytest.mark.parametrize("loss", ["flat", "pixel"])
def test_rd4ad_finds_what_it_cannot_give_back(loss: str) -> None:
    assert found(fitted(RD4AD(steps=60, batch_size=8, loss=loss))) > 0.85


def test_rd4ad_never_sees_the_image_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = 0
    original = FeatureExtractor.layers

    def counted(self: FeatureExtractor, x: torch.Tensor) -> list[torch.Tensor]:
        nonlocal seen
        seen += len(x)
        return original(self, x)

    # Passes of the network are what is counted: no public result tells how many there were.
    monkeypatch.setattr(FeatureExtractor, "layers", counted)
    RD4AD(steps=12, batch_size=8).fit(frames_of(NORMALS))
    assert seen == len(NORMALS)


def test_the_embedding_is_narrower_than_the_features() -> None:
    detector = RD4AD()
    assert detector.multiple == 32
    detector.build((64 * 4 + 64, 4, 4))
    given = [torch.rand(2, 64, 8, 8), torch.rand(2, 64, 4, 4)]
    embedding = detector.bottleneck(given)
    assert embedding.shape == (2, 128, 2, 2)
    assert [layer.shape for layer in detector.decoder(embedding)] == [layer.shape for layer in given]
    assert embedding[0].numel() * 4 < sum(layer[0].numel() for layer in given)


def test_rdpp_noise_is_in_one_small_patch_of_each_image() -> None:
    torch.manual_seed(0)
    x = torch.full((6, 1, 128, 128), 0.5)
    changed = (with_noise(x, 0.2) != x)[:, 0]
    for image in changed:
        rows, columns = torch.nonzero(image.any(1))[:, 0], torch.nonzero(image.any(0))[:, 0]
        assert 0 < int(rows.max() - rows.min()) < 16 and 0 < int(columns.max() - columns.min()) < 16
    assert torch.equal(x, torch.full_like(x, 0.5))


def test_rdpp_trains_projections_and_decoder_at_their_own_rates() -> None:
    detector = RDPlusPlus(**TINY)
    fitted(detector)
    rates = [group["lr"] for group in detector.optimizers()["all"].param_groups]
    assert rates == [5e-3, 1e-3]
    losses = detector.training_step(batch_of(torch.rand(4, 1, 64, 64)))
    assert set(losses) == {"distance", "reconstruction", "contrast"}
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None for p in detector.projections.parameters())


# MKD


def test_mkd_scores_an_image_by_its_loss_and_its_map_is_comparable_across_images() -> None:
    model = fitted(MKD(steps=60, batch_size=8, learning_rate=3e-3))
    detector = model.detector
    assert isinstance(detector, MKD)
    x = torch.rand(3, 1, 64, 64)
    everywhere = torch.ones(3, 64, 64, dtype=torch.bool)
    with torch.no_grad():
        scores = detector.image_score(x, detector.anomaly_map(x), everywhere)
        losses = [sum(detector.training_step(batch_of(detector.prepare(one[None]).float())).values()) for one in x]
    assert torch.allclose(scores, torch.stack(losses), rtol=1e-4)  # type: ignore[arg-type]
    assert found(model) > 0.8


def test_mkd_leaves_invalid_cells_out_of_its_score() -> None:
    detector = fitted(MKD(**TINY)).detector
    assert isinstance(detector, MKD)
    x = torch.rand(1, 1, 64, 64)
    whole, half = torch.ones(64, 64, dtype=torch.bool), torch.ones(64, 64, dtype=torch.bool)
    half[:, 32:] = False
    with torch.no_grad():
        (pair,) = detector.pairs(x)

        def loss(valid: torch.Tensor) -> float:
            return float(sum(detector.losses(*(inside(layers, valid) for layers in pair)).values()))

        scores = [loss(valid) for valid in (whole, half)]
        assert [float(detector.image_score(x, torch.empty(0), valid[None])) for valid in (whole, half)] == scores
        for t in pair[0]:
            t[..., t.shape[3] // 2 :] += 9
        odd = [loss(valid) for valid in (whole, half)]
    assert scores[0] != odd[0] and scores[1] == odd[1]


def test_mkd_gives_map_and_score_of_a_batch_in_one_pass() -> None:
    detector = fitted(MKD(**TINY)).detector
    assert isinstance(detector, MKD)
    x, valid = torch.rand(3, 1, 64, 64), torch.ones(3, 64, 64, dtype=torch.bool)
    with torch.no_grad():
        maps = detector.anomaly_map(x)
        score = detector.image_score(x, maps, valid)
        detector.anomaly_map(torch.rand(2, 1, 64, 64))
        assert torch.equal(detector.image_score(x, maps, valid), score)


def test_the_cloner_is_much_smaller_than_its_teacher() -> None:
    model = fitted(MKD(**TINY, **RESNET))
    detector = model.detector
    assert isinstance(detector, MKD)
    teacher = sum(p.numel() for p in detector.extractor.backbone.network.parameters())
    assert sum(p.numel() for p in detector.cloner.parameters()) * 10 < teacher


# EfficientAD


def test_the_student_sees_33_pixels_and_its_grid_lies_over_the_image() -> None:
    assert grid_of(256, 256) == (56, 56) and margins(256, 56) == (4, 4)
    for network in ("T", "S", "M"):
        pdn = PDN(network, 1, 4) if network == "T" else PDN(network, 1, 2)
        x = torch.zeros(1, 1, 64, 64, requires_grad=True)
        y = pdn(x)
        assert tuple(y.shape[2:]) == grid_of(64, 64)
        y[0, 0, 3, 3].backward()
        rows = torch.nonzero(x.grad[0, 0].abs().sum(1))[:, 0]
        assert int(rows.max() - rows.min()) + 1 <= 33
        centre = (int(rows.max()) + int(rows.min())) / 2
        assert abs(centre / 4 - (3 + margins(64, 8)[0])) <= 0.5


def test_inputs_too_small_are_refused_and_the_autoencoder_takes_all_others() -> None:
    with pytest.raises(ConfigError, match="at least 64 pixels"):
        fit(
            EfficientAD(**TINY, network="T"), NORMALS, calibration=0, device="cpu", preprocessing=Preprocessing(size=32)
        )
    for side in (64, 96, 224, 256):
        size = grid_of(side, side)
        assert Autoencoder(1, 3, (side, side), size)(torch.rand(1, 1, side, side)).shape[2:] == size


def test_the_hardest_differences_are_those_above_the_quantile_also_of_large_tensors() -> None:
    values = torch.rand(4, 50, 20)
    expected = values[values >= torch.quantile(values, 0.99)].mean()
    assert torch.allclose(mean_of_hardest(values, 0.99), expected)
    large = torch.arange(17_000_000, dtype=torch.float32)  # torch.quantile refuses more than 16 million
    assert float(mean_of_hardest(large, 0.999)) > 16_980_000


def test_the_two_maps_come_on_one_scale_from_normals_held_out() -> None:
    scale = Scale()
    scale.set(0, 2.0, 4.0)
    assert torch.allclose(scale(0, torch.tensor([2.0, 4.0, 6.0])), torch.tensor([0.0, 0.1, 0.2]))
    scale.set(1, 3.0, 3.0)  # all normals alike
    assert torch.isfinite(scale(1, torch.tensor([3.0, 5.0]))).all()
    seen: list[int] = []

    class Watched(EfficientAD):
        def after_training(self, batches):  # type: ignore[no-untyped-def]
            held = list(batches)
            seen.append(sum(len(b.x) for b in held))
            super().after_training(iter(held))

    detector = Watched(**TINY, network="T")
    fitted(detector)
    assert seen == [2]  # a tenth of 24
    held, _ = detector.scale.ends.T
    assert (held > 0).all()


def test_one_patient_alone_is_learnt_from_and_scaled_by() -> None:
    detector = EfficientAD(**TINY, network="T")
    frames = frames_of(NORMALS[:4], patients=["one"] * 4)
    detector.fit(frames)
    assert detector.scale.ends[0, 1] > detector.scale.ends[0, 0] > 0


def test_the_teacher_is_standardised_over_the_normals() -> None:
    detector = EfficientAD(**TINY, network="T")
    frames = frames_of(NORMALS)
    detector.fit(frames)
    taught = detector.standard(detector.taught(frames.x))
    assert taught.mean((0, 2, 3)).abs().max() < 0.2 and (taught.std((0, 2, 3)) - 1).abs().max() < 0.2


def test_a_teacher_file_teaches_is_saved_with_the_model_and_its_folder_is_not(tmp_path: Path) -> None:
    torch.manual_seed(3)
    teacher = PDN("T", 3, 24)
    save_file({key: value.contiguous() for key, value in teacher.state_dict().items()}, tmp_path / "mine.safetensors")
    detector = EfficientAD(**TINY, network="T", teacher=str(tmp_path / "mine.safetensors"))
    model = fitted(detector)
    assert not detector.uses_features and detector.standard.mean.shape == (24, 1, 1)
    before = model.score(NORMALS[:3])
    folder = model.save(tmp_path / "model")
    assert str(tmp_path) not in (folder / "model.json").read_text()
    (tmp_path / "mine.safetensors").unlink()
    assert np.array_equal(load(folder).score(NORMALS[:3]).scores, before.scores)


def test_a_teacher_is_distilled_from_the_backbone_and_teaches(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for i, picture in enumerate(NORMALS[:4]):
        cv2.imwrite(str(tmp_path / "images" / f"{i}.png"), picture)
    out = tmp_path / "teacher.safetensors"
    command = [sys.executable, CARDS / "efficientad" / "distil.py", tmp_path / "images", "-o", out]
    options = ["--network", "T", "--size", "64", "--steps", "2", "--device", "cpu"]
    subprocess.run([*map(str, command), *options], check=True, capture_output=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "teacher.safetensors"]
    detector = EfficientAD(**TINY, network="T", teacher=str(out))
    fitted(detector)
    assert detector.teacher.inputs == 1 and detector.teacher.channels == 128


def test_a_teacher_file_is_not_read_by_the_detector_itself() -> None:
    with pytest.raises(FitError, match=r'efficientad: teacher names "mine\.safetensors".*fit with anomalib_med\.fit'):
        EfficientAD(**TINY, teacher="mine.safetensors").fit(frames_of(NORMALS))


def test_a_file_that_holds_no_teacher_is_refused(tmp_path: Path) -> None:
    save_file({"fc.weight": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match=r"no patch description network.*distil\.py"):
        fitted(EfficientAD(**TINY, network="T", teacher=str(tmp_path / "other.safetensors")))
    with pytest.raises(ConfigError, match="no such file"):
        fitted(EfficientAD(**TINY, network="T", teacher=str(tmp_path / "absent.safetensors")))


def test_only_the_features_of_the_normals_are_kept_in_a_cache(tmp_path: Path) -> None:
    """Each exposed image is another one: kept, they would fill the disk."""
    detector = EfficientAD(steps=6, batch_size=2, network="T")
    model = fit(detector, NORMALS[:8], calibration=0, preprocessing=SIZE, device="cpu", cache=tmp_path)
    assert len(list(tmp_path.rglob("*.npy"))) == 2 * 8  # as they are read, and in training's half precision
    assert np.isfinite(model.score(NORMALS[:2]).scores).all()


def test_penalty_images_are_optional_and_hold_the_student_back(tmp_path: Path) -> None:
    for i in range(3):
        noise = np.random.default_rng(i).integers(0, 255, (80, 100), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / f"{i}.png"), noise)
    losses = {}
    for penalty in ("", str(tmp_path)):
        detector = EfficientAD(**TINY, network="T", penalty=penalty)
        fitted(detector)
        assert detector.training is not None
        losses[penalty] = detector.training.losses
    assert "penalty" not in losses[""] and losses[str(tmp_path)]["penalty"] > 0


def test_exposure_stays_in_range_and_leaves_the_image_alone() -> None:
    torch.manual_seed(0)
    x = torch.rand(8, 1, 16, 16)
    kept = x.clone()
    y = with_exposure(x)
    assert torch.equal(x, kept) and float(y.min()) >= 0 and float(y.max()) <= 1
    assert all(not torch.equal(a, b) for a, b in zip(x, y, strict=True))


# Dinomaly


def test_attention_of_tokens_that_say_nothing_is_finite() -> None:
    attention = LinearAttention(128)
    with torch.no_grad():
        attention.qkv.weight.fill_(-1e4)  # elu + 1 of all queries and keys is 0: the denominator would be
    for tokens in (torch.zeros(2, 9, 128), torch.ones(2, 9, 128), 1e4 * torch.ones(1, 9, 128)):
        assert torch.isfinite(attention(tokens)).all()


def test_linear_attention_is_the_weighted_mean_it_stands_for() -> None:
    torch.manual_seed(0)
    attention = LinearAttention(64)
    x = torch.randn(1, 5, 64)
    q, k, v = attention.qkv(x)[0].chunk(3, 1)
    weights = (torch.nn.functional.elu(q) + 1) @ (torch.nn.functional.elu(k) + 1).T
    expected = attention.project((weights / weights.sum(1, keepdim=True)) @ v)
    assert torch.allclose(attention(x)[0], expected, atol=1e-5)


def test_hard_mining_keeps_the_loss_and_a_tenth_of_the_gradient_of_easy_positions() -> None:
    torch.manual_seed(0)
    t, s = torch.randn(1, 8, 4, 5), torch.randn(1, 8, 4, 5, requires_grad=True)
    gradients = []
    for easy in (0.0, 0.75):
        loss = flat_cosine_distance(t, hardened(t, s, easy)).sum()
        gradients.append((float(loss.detach()), torch.autograd.grad(loss, s)[0]))
    assert gradients[0][0] == pytest.approx(gradients[1][0])
    share = gradients[1][1].norm(dim=1) / gradients[0][1].norm(dim=1)
    assert int((share < 0.11).sum()) == 15 and int((share > 0.99).sum()) == 5
    hard = cosine_distance(t, s)[0].flatten() >= cosine_distance(t, s)[0].flatten().topk(5).values[-1]
    assert torch.equal(share.flatten() > 0.99, hard)


def test_dinomaly_takes_the_layers_of_a_transformer_in_two_groups() -> None:
    settings = {"backbone": "vit_tiny_patch16_224", "weights": "random", "layers": "2,3,4,5", "blocks": 4}
    model = fitted(Dinomaly(**TINY, **settings))
    detector = model.detector
    assert isinstance(detector, Dinomaly)
    assert detector.groups == [192, 192] and detector.restorer.averaged
    assert detector.anomaly_map(torch.rand(2, 1, 64, 64)).shape == (2, 4, 4)
    x = torch.rand(1, 1, 64, 64)
    layers = teacher_layers(detector.extractor, x)  # type: ignore[arg-type]
    assert torch.allclose(detector.prepare(x)[:, :192].float(), (layers[0].float() + layers[1].float()) / 2, atol=1e-2)


def test_dinomaly_needs_a_block_for_each_group_of_layers() -> None:
    with pytest.raises(ConfigError, match="2 blocks cannot give back 3 layers"):
        fitted(Dinomaly(**TINY, **RESNET, blocks=2))


def test_dinomaly_finds_what_it_cannot_give_back() -> None:
    assert found(fitted(Dinomaly(steps=60, batch_size=8, blocks=2))) > 0.85
