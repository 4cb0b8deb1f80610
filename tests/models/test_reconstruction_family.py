"""What is particular to the detectors that reconstruct the image. The promises of every detector: test_contract.py."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from anomalib_med import FittedModel, Preprocessing, fit
from anomalib_med.errors import ConfigError
from anomalib_med.evaluation import pixel_auroc
from anomalib_med.models.blocks import dense_encoder, spatial_bottleneck
from anomalib_med.models.reconstruction import latent
from anomalib_med.models.reconstruction.aeu import UncertaintyAutoencoder
from anomalib_med.models.reconstruction.autoencoder import Autoencoder
from anomalib_med.models.reconstruction.cevae import ContextEncodingVAE, keep_large, paint_squares
from anomalib_med.models.reconstruction.cvad import Cvad
from anomalib_med.models.reconstruction.dae import DenoisingAutoencoder
from anomalib_med.models.reconstruction.fanogan import FAnoGan, gradient_penalty, residual_encoder
from anomalib_med.models.reconstruction.ganomaly import Ganomaly
from anomalib_med.models.reconstruction.memae import Memory, MemoryAutoencoder
from anomalib_med.models.reconstruction.vae import VariationalAutoencoder
from anomalib_med.models.registry import detector_class
from anomalib_med.models.training import StepBatch, TrainedDetector
from tests.conftest import abnormal_picture, normal_picture
from tests.models.test_contract import SMALL
from tests.models.training.test_trainer import Killed, alike, every_step, kill_after, trained

NORMALS = np.stack([normal_picture(i) for i in range(24)])
ABNORMAL = [abnormal_picture(900 + i) for i in range(8)]
FAMILY = ["aeu", "autoencoder", "cevae", "cvad", "dae", "fanogan", "ganomaly", "memae", "vae"]
NARROW = {"widths": (8, 16, 32), "hidden": 64, "batch_size": 8, "learning_rate": 3e-3, "steps": 100}


def fitted(detector: TrainedDetector, size: int = 64) -> FittedModel:
    return fit(detector, NORMALS, calibration=0, preprocessing=Preprocessing(size=size), device="cpu")


def auroc(model: FittedModel) -> float:
    maps = model.score(np.stack([picture for picture, _ in ABNORMAL])).maps
    return pixel_auroc([mask for _, mask in ABNORMAL], list(maps))


def inputs(count: int = 3, side: int = 64) -> torch.Tensor:
    return torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", FAMILY)
def test_a_reconstruction_has_the_shape_of_the_image_and_depends_on_it_alone(name: str) -> None:
    model = fitted(detector_class(name)(**(SMALL[name] | {"steps": 2})))
    x = inputs()
    with torch.inference_mode():
        together = model.detector.reconstruct(x)
        assert together.shape == x.shape
        assert torch.equal(together[1:2], model.detector.reconstruct(x[1:2]))


def test_lists_may_be_written_with_commas() -> None:
    assert DenoisingAutoencoder(widths="16, 32").config.widths == (16, 32)
    with pytest.raises(ConfigError, match="widths"):
        DenoisingAutoencoder(widths="16,many")


# Latent distributions


def test_divergences_are_those_of_torch() -> None:
    torch.manual_seed(0)
    mean, log_variance = torch.randn(4, 5), torch.randn(4, 5)
    normal = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0))
    assert torch.allclose(latent.gaussian(torch.cat([mean, log_variance], 1), draw=False)[1], expected, atol=1e-5)
    code, prior = torch.randn(4, 5), torch.distributions.Dirichlet(torch.full((5,), 0.7))
    concentration = F.softplus(code) + latent.LEAST
    expected = torch.distributions.kl_divergence(torch.distributions.Dirichlet(concentration), prior)
    assert torch.allclose(latent.dirichlet(code, 0.7, draw=False)[1], expected, atol=1e-4)
    code = torch.full((1, 5), 0.7 - latent.LEAST).expm1().log()  # the prior itself
    assert latent.dirichlet(code, 0.7, draw=False)[1].abs().item() < 1e-5


def test_draws_pass_gradients_and_lie_about_their_mean() -> None:
    torch.manual_seed(0)
    code = torch.randn(1, 6).expand(4000, 6).clone().requires_grad_()
    draws, mean = (latent.dirichlet(code, 1.0, draw=draw)[0] for draw in (True, False))
    assert torch.allclose(draws.sum(1), torch.ones(4000), atol=1e-4)
    assert torch.allclose(draws.mean(0), mean[0], atol=0.02)
    draws[:, 0].sum().backward()
    assert code.grad is not None and code.grad.abs().sum() > 0
    draws, _ = latent.gaussian(torch.tensor([[1.0, -2.0, 0.0, -4.0]]).expand(4000, 4), draw=True)
    assert torch.allclose(draws.mean(0), torch.tensor([1.0, -2.0]), atol=0.05)
    assert torch.allclose(draws.std(0), torch.tensor([1.0, 0.1353]), atol=0.05)


def test_the_gradient_at_the_input_is_taken_in_inference_mode_too() -> None:
    with torch.inference_mode():
        x = torch.rand(2, 1, 4, 4)
        slope = latent.input_gradient(lambda image: image.square().sum((1, 2, 3)), x)
        assert torch.allclose(slope, 2 * x)


# VAE


@pytest.mark.parametrize("prior", ["gaussian", "dirichlet"])
def test_vae_finds_what_it_cannot_reconstruct(prior: str) -> None:
    assert auroc(fitted(VariationalAutoencoder(prior=prior, **NARROW))) > 0.85


def test_each_map_of_the_vae_is_what_its_name_says() -> None:
    trained = fitted(VariationalAutoencoder(**(NARROW | {"steps": 5, "beta": 0.5, "capacity": 0.1})))
    tensors, extra = trained.detector.state()
    x, maps = inputs(2), {}
    kinds = ("reconstruction", "reconstruction_gradient", "kl_gradient", "elbo_gradient", "combined")
    for score in kinds:
        other = VariationalAutoencoder(**(NARROW | {"score": score, "beta": 0.5, "capacity": 0.1}))
        other.load_state(tensors, extra)
        with torch.inference_mode():
            maps[score] = other.anomaly_map(x)
    assert all(m.shape == (2, 64, 64) and bool((m >= 0).all()) for m in maps.values())
    assert torch.allclose(maps["combined"], maps["reconstruction"] * maps["kl_gradient"], atol=1e-7)
    # The gradient of a sum, taken by differences: a small step along one pixel.
    detector = other
    step, one = 1e-3, x[:1].clone()
    one[0, 0, 30, 30] += step
    with torch.no_grad():
        divergences = latent.gaussian(detector.autoencoder.encode(torch.cat([one, x[:1]])), draw=False)[1].mean(1)
    change = (divergences[0] - divergences[1]).item() / step
    assert abs(change) == pytest.approx(maps["kl_gradient"][0, 30, 30].item(), rel=0.05, abs=1e-5)


def test_capacity_is_a_divergence_that_costs_nothing() -> None:
    torch.manual_seed(0)
    x = inputs(4)
    batch = StepBatch(x, torch.ones(4, 64, 64, dtype=torch.bool))
    detector = VariationalAutoencoder(beta=2.0, capacity=0.5, widths=(4, 8), hidden=16)
    detector.build((1, 64, 64))
    divergence = latent.gaussian(detector.autoencoder.encode(x), draw=False)[1].mean(1)
    weighted = detector.training_step(batch)["divergence"]
    assert torch.allclose(weighted, 2 * (divergence - 0.5).abs().mean(), rtol=1e-4)


# AE-U


def test_aeu_is_less_sure_where_normals_differ() -> None:
    model = fitted(UncertaintyAutoencoder(**NARROW))
    assert auroc(model) > 0.85
    flat = NORMALS.copy()
    flat[:, :, :40] = 90
    x = torch.from_numpy(flat[:2, None, :64, :64] / 255).float()
    model = fit(
        UncertaintyAutoencoder(**NARROW), flat, calibration=0, preprocessing=Preprocessing(size=64), device="cpu"
    )
    with torch.no_grad():
        log_variance = model.detector.predict(x)[1]  # type: ignore[attr-defined]
    assert log_variance[..., 4:20].mean() < log_variance[..., 44:60].mean() - 1


def test_aeu_scores_with_the_error_alone_where_asked() -> None:
    model = fitted(UncertaintyAutoencoder(**(NARROW | {"steps": 2, "score": "l2"})))
    x = inputs(2)
    with torch.inference_mode():
        expected = (x - model.detector.reconstruct(x)).square()[:, 0]  # type: ignore[attr-defined]
        assert torch.allclose(model.detector.anomaly_map(x), expected, atol=1e-6)


# Spatial and constrained autoencoder


@pytest.mark.parametrize("settings", [{"bottleneck": "spatial", "latent": 2}, {"constraint": 1.0}])
def test_spatial_and_constrained_autoencoders_find_what_they_cannot_reconstruct(settings: dict) -> None:
    detector = Autoencoder(loss="l2", **(NARROW | settings))
    assert auroc(fitted(detector)) > 0.8
    code = detector.autoencoder.encode(inputs())
    assert code.shape == ((3, 2, 8, 8) if "bottleneck" in settings else (3, 16))
    assert detector.training is not None
    assert ("constraint" in detector.training.losses) == ("constraint" in settings)


def test_a_spatial_bottleneck_keeps_places_apart() -> None:
    down, up = (part.eval() for part in spatial_bottleneck(6, 2, 8))
    features = torch.rand(1, 6, 4, 4)
    z = down(features)
    assert z.shape == (1, 2, 4, 4)
    changed = features.clone()
    changed[..., 0, 0] += 1
    difference = (up(down(changed)) - up(z)).abs().sum(1)[0]
    assert difference[0, 0] > 0
    assert difference.flatten()[1:].max() == 0


# MemAE


def test_a_memory_mixes_what_it_holds() -> None:
    torch.manual_seed(0)
    memory = Memory(5, 8, 0.1)
    z = 4 * torch.randn(7, 8)
    shares = memory.shares(z)
    assert shares.shape == (7, 5)
    assert torch.allclose(shares.sum(1), torch.ones(7))
    plain = torch.softmax(z @ memory.codes.T, dim=1)
    assert bool((shares[plain <= 0.1] == 0).all()) and bool((plain <= 0.1).any())
    assert torch.allclose(memory(z), shares @ memory.codes)
    memory(z).sum().backward()
    assert memory.codes.grad is not None and memory.codes.grad.abs().sum() > 0


def test_a_memory_that_would_forget_everything_is_refused() -> None:
    with pytest.raises(ConfigError, match="shrink must be below 1 / slots"):
        MemoryAutoencoder(slots=500)


def test_memae_finds_what_it_cannot_reconstruct() -> None:
    assert auroc(fitted(MemoryAutoencoder(**NARROW))) > 0.85


# DAE


def test_noise_is_coarse_and_as_large_as_asked() -> None:
    torch.manual_seed(0)
    x = torch.zeros(64, 1, 64, 64)
    noise = DenoisingAutoencoder(noise=0.2, noise_offset=-0.5).noise(x)
    assert noise.mean().item() == pytest.approx(-0.5, abs=0.01)
    assert 0.1 < noise.std().item() < 0.2  # between the numbers of the grid it is a mean of them
    inner = noise - noise.mean()
    neighbours = (inner[..., 1:] * inner[..., :-1]).mean() / inner.square().mean()
    assert neighbours > 0.9


def test_nothing_is_learnt_outside_the_valid_area() -> None:
    torch.manual_seed(0)
    detector = DenoisingAutoencoder(widths=(4, 8))
    detector.build((1, 32, 32))
    x, valid = torch.rand(2, 1, 32, 32), torch.zeros(2, 32, 32, dtype=torch.bool)
    assert detector.training_step(StepBatch(x, valid))["error"].item() == 0
    assert detector.training_step(StepBatch(x, ~valid))["error"].item() > 0


def test_the_rim_of_the_valid_area_does_not_count() -> None:
    maps, valid = torch.zeros(1, 32, 32), torch.zeros(1, 32, 32, dtype=torch.bool)
    valid[:, 8:24, 8:24] = True
    maps[:, 8:10, 8:24] = 1
    score = DenoisingAutoencoder().image_score(torch.zeros(1, 1, 32, 32), maps, valid)
    assert score.item() == 0


# ceVAE


def test_squares_are_painted_over_copies_of_the_images() -> None:
    torch.manual_seed(0)
    x = torch.rand(64, 1, 32, 40)
    before = x.clone()
    painted = paint_squares(x)
    assert torch.equal(x, before)
    changed = (painted != x).flatten(1).float().mean(1)
    assert (changed == 0).any()  # some images have no square
    assert 0.2 < changed.max() <= 1
    assert painted.min() >= x.min() and painted.max() <= x.max()
    assert not torch.equal(paint_squares(x), painted)


def test_cevae_fills_in_and_finds() -> None:
    settings = NARROW | {"hidden": 0, "latent": 16, "learning_rate": 2e-3}
    assert auroc(fitted(ContextEncodingVAE(**settings))) > 0.8
    maps = fitted(ContextEncodingVAE(**(settings | {"steps": 2, "score": "gradient"}))).score(NORMALS[:2]).maps
    assert all(np.isfinite(m).all() and m.max() > 0 for m in maps)


def test_the_score_of_cevae_is_the_loss_of_the_image() -> None:
    detector = ContextEncodingVAE(**(NARROW | {"hidden": 0, "steps": 2}))
    fitted(detector)
    x, valid = inputs(2), torch.ones(2, 64, 64, dtype=torch.bool)
    with torch.inference_mode():
        score = detector.image_score(x, detector.anomaly_map(x), valid)
        assert torch.allclose(score, detector.elbo(x), rtol=1e-5)


def test_small_pieces_are_taken_out_of_a_map() -> None:
    maps = torch.full((2, 20, 20), 0.1)
    maps[0, 2:4, 2:4] = 1.0
    maps[0, 10:16, 10:16] = 0.9
    kept = keep_large(maps, 10)
    assert kept[0, 12, 12] == pytest.approx(0.9)
    assert kept[0].count_nonzero() == 36
    assert torch.equal(keep_large(maps[:1], 10)[0], kept[0])  # of that map alone


# GANomaly


def test_an_encoder_to_a_vector_has_features_before_it() -> None:
    x = torch.rand(2, 3, 32, 48)
    encoder = dense_encoder((3, 32, 48), (4, 8), 16, 5)
    assert encoder(x).shape == (2, 5)
    assert encoder.features(x).shape == (2, 16)


def test_each_optimizer_has_its_networks() -> None:
    for detector in (Ganomaly(), FAnoGan(), Cvad(latent=8, fine_latent=8)):
        detector.build((1, 64, 64))
        held = [id(p) for o in detector.optimizers().values() for group in o.param_groups for p in group["params"]]
        every = [id(p) for module in detector.modules().values() for p in module.parameters()]
        assert sorted(held) == sorted(every)


@pytest.mark.parametrize("kind", [Ganomaly, FAnoGan, Cvad])
def test_a_training_cut_short_has_every_network_trained(kind: type[TrainedDetector]) -> None:
    small = {k: v for k, v in SMALL[kind.name].items() if k not in ("steps", "epochs")}
    untrained = kind(**small)
    untrained.initialise((1, 64, 64))
    cut = kind(steps=1000, max_minutes=1e-4, **small)
    model = fitted(cut)
    assert model.training["stopped"] == "time"
    before, after = untrained.state()[0], cut.state()[0]
    for name in cut.modules():
        assert any(not torch.equal(before[key], after[key]) for key in before if key.startswith(f"{name}."))
    assert np.isfinite(model.score(NORMALS[:2]).scores).all()


def test_ganomaly_scores_codes_or_map() -> None:
    model = fitted(Ganomaly(**(NARROW | {"steps": 60})))
    assert auroc(model) > 0.8
    scores = {
        kind: fitted(Ganomaly(**(NARROW | {"steps": 2, "image": kind}))).score(NORMALS[:3]).scores
        for kind in ("latent", "map")
    }
    assert not np.allclose(scores["latent"], scores["map"])


# f-AnoGAN


TINY_GAN = {"widths": (8, 16), "latent": 8, "batch_size": 8, "steps": 8, "critic_steps": 2}


def test_the_penalty_is_the_distance_of_the_slope_from_one() -> None:
    torch.manual_seed(0)
    critic = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 1))
    slope = critic[1].weight.norm()
    penalty = gradient_penalty(critic, torch.rand(4, 1, 8, 8), torch.rand(4, 1, 8, 8))
    assert penalty.item() == pytest.approx(((slope - 1) ** 2).item(), rel=1e-4)
    penalty.backward()
    expected = 2 * (slope - 1) * critic[1].weight / slope
    assert torch.allclose(critic[1].weight.grad, expected.detach(), atol=1e-5)


def test_the_critic_judges_each_image_alone() -> None:
    torch.manual_seed(0)
    critic, x = residual_encoder((1, 32, 32), (8, 16), 1), inputs(3, 32)
    critic.train()
    assert torch.allclose(critic(x), torch.cat([critic(image[None]) for image in x]), atol=1e-5)


def test_the_generator_stands_still_while_the_encoder_learns_alone() -> None:
    whole, half = FAnoGan(**TINY_GAN), FAnoGan(**(TINY_GAN | {"steps": 4, "gan_share": 1.0}))
    fitted(whole), fitted(half)
    a, b = whole.state()[0], half.state()[0]
    for name in ("generator", "critic"):
        assert all(torch.equal(a[key], b[key]) for key in a if key.startswith(f"{name}."))
    assert any(not torch.equal(a[key], b[key]) for key in a if key.startswith("encoder."))


@pytest.mark.parametrize("step", [3, 4, 6])
def test_f_anogan_goes_on_after_a_kill_in_either_part(step: int, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        trained(FAnoGan(**TINY_GAN), every_step(tmp_path / "training", kill_after(step)), NORMALS)
    resumed = trained(FAnoGan(**TINY_GAN), every_step(tmp_path / "training"), NORMALS)
    assert alike(resumed, trained(FAnoGan(**TINY_GAN), pictures=NORMALS))


def test_a_plateau_is_told_by_the_encoder_in_either_part() -> None:
    detector = FAnoGan(**(TINY_GAN | {"steps": 0, "epochs": 3, "patience": 3}))
    fitted(detector, 32)
    assert detector.training is not None and 0 < detector.training.best < np.inf


def test_the_score_of_f_anogan_is_of_the_image_and_of_the_features() -> None:
    x, valid = inputs(2), torch.ones(2, 64, 64, dtype=torch.bool)
    scores = {}
    for kappa in (0.0, 1.0):
        detector = FAnoGan(**TINY_GAN, kappa=kappa)
        detector.initialise((1, 64, 64))
        with torch.inference_mode():
            maps = detector.anomaly_map(x)
            scores[kappa] = detector.image_score(x, maps, valid)
            drawn = detector.reconstruct(x)
            features = (detector.critic.features(x) - detector.critic.features(drawn)).square().mean(1)
    assert torch.allclose(scores[0.0], 4 * maps.square().mean((1, 2)), rtol=1e-4)
    assert torch.allclose(scores[1.0] - scores[0.0], features, rtol=1e-3)


# CVAD


def test_the_score_of_cvad_is_in_standard_deviations_of_the_normals() -> None:
    detector = Cvad(**SMALL["cvad"])
    model = fitted(detector)
    numbers = model.score(NORMALS).scores
    assert abs(numbers.mean()) < 0.05
    assert 0.3 < numbers.std() < 1.1
    x = inputs(4)
    with torch.inference_mode():
        standard = detector.normal(detector.numbers(x))
        valid = torch.ones(4, 64, 64, dtype=torch.bool)
        together = detector.image_score(x, detector.anomaly_map(x), valid)
        alone = detector.image_score(x[:1], detector.anomaly_map(x[:1]), valid[:1])
    assert torch.allclose(together, standard.mean(1), rtol=1e-3)
    assert torch.equal(together[:1], alone)  # no extreme of other images
