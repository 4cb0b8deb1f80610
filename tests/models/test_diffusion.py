"""The diffusion detectors: noise, schedules, the way back, what is particular to each. The rest: test_contract.py."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from anomalib_med import fit
from anomalib_med.errors import ConfigError
from anomalib_med.models.inpainting.anoddpm import AnoDDPM
from anomalib_med.models.inpainting.diffusion import (
    DenoisingUNet,
    cosine_alpha_bar,
    denoised,
    linear_alpha_bar,
    noised,
    sinusoidal_embedding,
    update_average,
)
from anomalib_med.models.inpainting.holes import block_holes, seeded
from anomalib_med.models.inpainting.noise import GRADIENTS, REPEAT, octaves_of_noise, simplex
from anomalib_med.models.inpainting.pddpm import PatchedDiffusion
from anomalib_med.models.training import StepBatch, TrainedDetector
from anomalib_med.preprocessing import Preprocessing
from tests.conftest import normal_picture

NORMALS = np.stack([normal_picture(i) for i in range(12)])
TINY: dict[str, object] = {"steps": 3, "batch_size": 4, "widths": (8, 8, 8)}
KINDS: dict[type[TrainedDetector], dict[str, object]] = {
    AnoDDPM: {"draws": 2, "denoising_steps": 2},
    PatchedDiffusion: {},
}


def trained(kind: type[TrainedDetector], **settings: object) -> TrainedDetector:
    preprocessing = Preprocessing(size=32, aspect="stretch")
    detector = fit(
        kind(**(TINY | KINDS[kind] | settings)), NORMALS, calibration=0, preprocessing=preprocessing, device="cpu"
    ).detector
    assert isinstance(detector, kind)
    return detector


def replace_output(module: nn.Module, network: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    module.register_forward_hook(lambda _, arguments, __: network(*arguments))


def images(count: int = 2, side: int = 32) -> torch.Tensor:
    return torch.rand(count, 1, side, side, generator=seeded(0))


# Noise


def slow_simplex(table: np.ndarray, y: float, x: float) -> float:
    """Every lattice point in a wide square around the place, one after the other."""
    squish = (math.sqrt(3) - 1) / 2
    total = 0.0
    centre = x - squish * (x + y) / (1 + 2 * squish), y - squish * (x + y) / (1 + 2 * squish)
    for i in range(math.floor(centre[0]) - 5, math.floor(centre[0]) + 6):
        for j in range(math.floor(centre[1]) - 5, math.floor(centre[1]) + 6):
            dx, dy = x - (i + squish * (i + j)), y - (j + squish * (i + j))
            reach = 2 - dx * dx - dy * dy
            if reach > 0:
                gx, gy = GRADIENTS[table[i % REPEAT, j % REPEAT]]
                total += reach**4 * (gx * dx + gy * dy)
    return total / 47


def test_simplex_noise_is_the_sum_over_all_lattice_points_in_reach() -> None:
    table = torch.randint(8, (2, REPEAT, REPEAT), generator=seeded(0))
    rows, columns = torch.tensor([0.0, 0.3, 7.77, 63.2]), torch.tensor([0.0, 1.9, 20.5, 41.01, 130.4])
    noise = simplex(table, rows, columns)
    for b in range(2):
        expected = [[slow_simplex(table[b].numpy(), y, x) for x in columns.tolist()] for y in rows.tolist()]
        assert np.allclose(noise[b].numpy(), expected, atol=1e-5)


def test_simplex_noise_has_no_seams_and_stays_within_one() -> None:
    table = torch.randint(8, (4, REPEAT, REPEAT), generator=seeded(1))
    noise = simplex(table, torch.arange(300) / 10, torch.arange(400) / 10)
    assert noise.abs().max() <= 1
    assert 0.25 < noise.std() < 0.5
    assert noise.diff(dim=1).abs().max() < 0.3
    assert noise.diff(dim=2).abs().max() < 0.3


def test_octaves_add_finer_noise_of_falling_amplitude() -> None:
    one, six = (octaves_of_noise(40, (64, 64), 64.0, octaves=n, generator=seeded(0)) for n in (1, 6))
    spectrum = torch.fft.rfft2(six)[:, 0].abs().mean(0)
    assert spectrum[1:4].mean() > 2 * spectrum[8:12].mean() > 4 * spectrum[24:30].mean()
    expected = math.sqrt(sum(0.8 ** (2 * k) for k in range(6)))
    assert 0.6 * expected < six.std() / simplex_deviation() < 1.4 * expected
    assert one.diff(dim=2).abs().mean() < 0.2 * six.diff(dim=2).abs().mean()


def simplex_deviation() -> float:
    table = torch.randint(8, (20, REPEAT, REPEAT), generator=seeded(2))
    return float(simplex(table, torch.arange(100) / 4, torch.arange(100) / 4).std())


def test_octaves_finer_than_two_pixels_are_left_out() -> None:
    a, b = (octaves_of_noise(1, (32, 32), 4.0, octaves=n, generator=seeded(0)) for n in (2, 6))
    assert torch.equal(a, b)


def test_a_seed_fixes_the_noise_and_training_draws_new() -> None:
    assert torch.equal(*(octaves_of_noise(2, (32, 48), 16.0, generator=seeded(3)) for _ in range(2)))
    first, second = octaves_of_noise(2, (32, 48), 16.0)
    assert not torch.equal(first, second)
    assert not torch.equal(octaves_of_noise(1, (32, 48), 16.0), octaves_of_noise(1, (32, 48), 16.0))


# Diffusion


@pytest.mark.parametrize("alpha_bar", [linear_alpha_bar(), cosine_alpha_bar()])
def test_the_image_s_share_goes_from_nearly_all_to_nearly_none(alpha_bar: torch.Tensor) -> None:
    assert alpha_bar.shape == (1000,)
    assert alpha_bar[0] > 0.999
    assert alpha_bar[-1] < 1e-4
    assert (alpha_bar.diff() < 0).all()


def test_the_linear_schedule_is_that_of_ho_et_al() -> None:
    left = 1.0
    for t in range(1000):
        left *= 1 - (1e-4 + (0.02 - 1e-4) * t / 999)
        if t in (0, 249, 799):
            assert math.isclose(left, float(linear_alpha_bar()[t]), rel_tol=1e-5)


def test_noise_that_is_known_is_taken_out_in_any_number_of_steps() -> None:
    x, noise, alpha_bar = 2 * images() - 1, octaves_of_noise(2, (32, 32), 8.0)[:, None], linear_alpha_bar()
    start = noised(x, noise, alpha_bar[[249, 249]])
    for times in ([249], [249, 100, 10], list(range(249, -1, -10))):
        assert torch.allclose(denoised(lambda *_: noise, start, alpha_bar, times), x, atol=1e-4)


def test_a_new_network_gives_nothing_and_one_that_learnt_knows_the_time() -> None:
    network = DenoisingUNet(1, (8, 16, 16))
    x, times = images(), torch.tensor([0, 500])
    assert network(x, times).abs().max() == 0
    for weights in network.parameters():
        nn.init.normal_(weights, std=0.2)
    assert network(x, times).shape == x.shape
    assert not torch.allclose(network(x, times), network(x, times + 100))


def test_the_embedding_tells_times_apart() -> None:
    known = sinusoidal_embedding(torch.arange(1000), 32)
    assert known.shape == (1000, 32)
    assert torch.pdist(known).min() > 0.01
    assert torch.equal(known[0], torch.cat([torch.ones(16), torch.zeros(16)]))


def test_the_moving_average_follows_quickly_at_first() -> None:
    network, average = nn.Linear(1, 1), nn.Linear(1, 1)
    with torch.no_grad():
        network.weight.fill_(1.0)
        average.weight.fill_(0.0)
    update_average(average, network, 0, 0.9999)
    assert math.isclose(average.weight.item(), 0.9, rel_tol=1e-5)
    update_average(average, network, 10**7, 0.99)
    assert math.isclose(average.weight.item(), 0.9 + 0.1 * 0.01, rel_tol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_what_scores_is_the_moving_average(kind: type[TrainedDetector]) -> None:
    detector = trained(kind, average=0.5)
    weights = detector.state()[0]
    assert any(not torch.equal(weights[k], weights["unet" + k[3:]]) for k in weights if k.startswith("ema."))
    before = detector.anomaly_map(images())
    with torch.no_grad():
        for weight in detector.unet.parameters():  # type: ignore[attr-defined]
            weight.fill_(7.0)
    assert torch.equal(before, detector.anomaly_map(images()))


@pytest.mark.parametrize("kind", KINDS)
def test_the_noise_of_a_score_belongs_to_the_place_not_to_the_image(kind: type[TrainedDetector]) -> None:
    detector, x = trained(kind), images(2)
    seen: list[torch.Tensor] = []
    detector.ema.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0][0, 0]))  # type: ignore[attr-defined]
    for image in x:
        detector.anomaly_map(image[None])
    first, second = seen[0], seen[len(seen) // 2]
    share = linear_alpha_bar()[249] if kind is AnoDDPM else cosine_alpha_bar()[499]
    noisy = slice(None) if kind is AnoDDPM else block_holes((32, 32), 2)[0]
    assert torch.allclose((first - second)[noisy], (share.sqrt() * 2 * (x[0, 0] - x[1, 0]))[noisy], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_in_a_batch_is_that_of_the_image_alone(kind: type[TrainedDetector]) -> None:
    detector, x = trained(kind), images(5)
    assert torch.equal(detector.anomaly_map(x), torch.cat([detector.anomaly_map(image[None]) for image in x]))


# AnoDDPM


def test_anoddpm_learns_the_noise() -> None:
    detector = trained(AnoDDPM, longest=300)
    assert isinstance(detector, AnoDDPM)
    seen: list[torch.Tensor] = []

    def network(x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        assert int(times.max()) < 300
        seen.append(x)
        left = linear_alpha_bar()[times][:, None, None, None]
        return (x - left.sqrt() * (2 * batch.x - 1)) / (1 - left).sqrt()  # what was added, exactly

    batch = StepBatch(images(4), torch.ones(4, 32, 32, dtype=torch.bool))
    replace_output(detector.unet, network)
    assert detector.training_step(batch)["noise"] < 1e-4
    assert len(seen) == 1


def test_anoddpm_goes_from_the_start_to_the_image() -> None:
    detector = trained(AnoDDPM, start=250, denoising_steps=10, draws=2)
    assert isinstance(detector, AnoDDPM)
    times: list[int] = []

    def network(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        assert x.shape == (2, 1, 32, 32)
        times.append(int(time[0]))
        return torch.zeros_like(x)

    replace_output(detector.ema, network)
    detector.reconstruct(images(1))
    assert times[0] == 249
    assert len(times) == 10
    assert times == sorted(times, reverse=True)


def test_anoddpm_refuses_what_cannot_be() -> None:
    for bad in ({"start": 900}, {"denoising_steps": 300}, {"window": 4}):
        with pytest.raises(ConfigError):
            AnoDDPM(**bad)


# pDDPM


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_blocks_hide_every_pixel_exactly_once(parts: int) -> None:
    holes = block_holes((32, 50), parts)
    assert holes.shape == (parts**2, 32, 50)
    assert (holes.sum(0) == 1).all()
    assert holes.flatten(1).any(1).all()


def test_pddpm_noises_one_patch_and_sees_the_rest_as_it_is() -> None:
    detector = trained(PatchedDiffusion)
    assert isinstance(detector, PatchedDiffusion)
    seen: list[torch.Tensor] = []

    def network(x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        assert (times == 499).all()
        return torch.zeros_like(x)

    replace_output(detector.ema, network)
    x = images(1)
    y = detector.inpainted(x)
    assert seen[0].shape == (4, 1, 32, 32)
    for turn, hole in zip(seen[0], block_holes((32, 32), 2), strict=True):
        assert torch.equal(turn[0][~hole], (2 * x - 1)[0, 0][~hole])
        assert not torch.isclose(turn[0][hole], (2 * x - 1)[0, 0][hole]).all()
        assert torch.allclose(y[0, 0][hole], (turn[0][hole].clamp(-1, 1) + 1) / 2)


def test_pddpm_learns_from_the_patch_alone() -> None:
    detector = trained(PatchedDiffusion)
    assert isinstance(detector, PatchedDiffusion)
    batch = StepBatch(images(4), torch.ones(4, 32, 32, dtype=torch.bool))
    exact = 2 * batch.x - 1

    def network(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        untouched = x == exact
        return torch.where(untouched, 100.0, exact - x)  # nonsense where nothing was noised

    replace_output(detector.unet, network)
    assert detector.training_step(batch)["patch"] < 1e-3
