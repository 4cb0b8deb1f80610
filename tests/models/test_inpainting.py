"""The in-painting family: holes, residuals, and what is particular to each detector. The rest: test_contract.py."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from anomalib_med import FittedModel, fit
from anomalib_med.datasets.folder import discover
from anomalib_med.errors import ConfigError
from anomalib_med.models.filters import mean_filter
from anomalib_med.models.inpainting.anoddpm import AnoDDPM
from anomalib_med.models.inpainting.autopaint import AutoPaint, PartialConv, PartialUNet
from anomalib_med.models.inpainting.holes import (
    cell_holes,
    inpaint_everywhere,
    lattice_holes,
    seeded,
    shape_holes,
    smooth_fill,
)
from anomalib_med.models.inpainting.mae import MaskedAutoencoder
from anomalib_med.models.inpainting.pddpm import PatchedDiffusion
from anomalib_med.models.inpainting.residuals import NormalResiduals, gradient_error, grow
from anomalib_med.models.inpainting.riad import Riad
from anomalib_med.models.inpainting.squid import Squid
from anomalib_med.models.inpainting.squid_parts import Discriminator, Generated, Memory, SquidNetwork, cut, join
from anomalib_med.models.training import StepBatch, TrainedDetector
from anomalib_med.preprocessing import Frames, Preprocessing
from tests.conftest import normal_picture

NORMALS = np.stack([normal_picture(i) for i in range(16)])
TINY: dict[type[TrainedDetector], dict[str, object]] = {
    Riad: {"width": 8, "cells": (4, 8)},
    AutoPaint: {"width": 8},
    MaskedAutoencoder: {"width": 24, "depth": 2, "decoder_width": 24, "memory": 4},
    Squid: {"width": 8, "slots": 16, "augment": False},
    AnoDDPM: {"widths": (8, 8, 8, 8), "draws": 2, "denoising_steps": 2},
    PatchedDiffusion: {"widths": (8, 8, 8, 8)},
}
NORMS = nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm


def fitted(kind: type[TrainedDetector], **settings: object) -> FittedModel:
    detector = kind(**({"steps": 2, "batch_size": 4} | TINY[kind] | settings))
    return fit(detector, NORMALS, calibration=0, preprocessing=Preprocessing(size=64), device="cpu")


def trained(kind: type[TrainedDetector], **settings: object) -> TrainedDetector:
    detector = fitted(kind, **settings).detector
    assert isinstance(detector, kind)
    return detector


def images(count: int = 2, side: int = 64) -> torch.Tensor:
    return torch.rand(count, 1, side, side, generator=seeded(0))


# Holes


@pytest.mark.parametrize("cell", [2, 8])
def test_cells_hide_every_pixel_exactly_once(cell: int) -> None:
    holes = cell_holes((32, 48), cell, 3, seeded(0))
    assert (holes.sum(0) == 1).all()
    cells = holes.unfold(1, cell, cell).unfold(2, cell, cell).flatten(3)
    assert torch.equal(cells.all(3), cells.any(3))
    sizes = cells[..., 0].sum((1, 2))
    assert sizes.max() - sizes.min() <= 1


def test_a_seed_fixes_the_cells_and_training_draws_new_ones() -> None:
    torch.manual_seed(1)
    first = cell_holes((32, 32), 4, 3, seeded(5))
    drawn = cell_holes((32, 32), 4, 3)
    assert torch.equal(first, cell_holes((32, 32), 4, 3, seeded(5)))
    assert not torch.equal(drawn, cell_holes((32, 32), 4, 3))
    with pytest.raises(ValueError, match="30 x 32"):
        cell_holes((30, 32), 4, 3)


def test_cells_of_one_lattice_hole_do_not_touch() -> None:
    holes = lattice_holes((40, 64), 8)
    assert (holes.sum(0) == 1).all()
    for hole in holes:
        count, _ = cv2.connectedComponents(hole.numpy().astype(np.uint8), connectivity=8)
        assert count - 1 == hole.sum() / 64


def test_shapes_are_discs_squares_and_ellipses_of_many_sizes() -> None:
    holes = shape_holes(200, (64, 96), seeded(0))
    share = holes.float().mean((1, 2))
    assert share.std() > 0.05
    assert 0.1 < share.mean() < 0.3
    fullness = []
    for hole in holes.numpy().astype(np.uint8):
        contours, _ = cv2.findContours(hole, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        box = cv2.boundingRect(contours[0]) if contours else (0, 0, 0, 0)
        if len(contours) == 1 and box[0] > 0 and box[1] > 0 and box[0] + box[2] < 96 and box[1] + box[3] < 64:
            x, y, w, h = box
            fullness.append(hole[y : y + h, x : x + w].mean())
    assert max(fullness) > 0.95  # a square fills its box
    assert any(0.74 < f < 0.84 for f in fullness)  # a disc, pi / 4 of it


def test_what_in_paints_a_pixel_never_sees_it() -> None:
    x = images() + 1
    holes = cell_holes((64, 64), 8, 3, seeded(0))
    assert torch.equal(inpaint_everywhere(lambda masked, _: masked, x, holes), torch.zeros_like(x))
    with pytest.raises(ValueError, match="never hidden"):
        inpaint_everywhere(lambda masked, _: masked, x, holes[:2])


def test_a_pixel_hidden_twice_is_the_mean_of_both() -> None:
    holes = torch.ones(2, 4, 4, dtype=torch.bool)
    numbers = torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1).expand(2, 1, 4, 4)
    assert torch.equal(
        inpaint_everywhere(lambda *_: numbers, torch.zeros(1, 1, 4, 4), holes), torch.full((1, 1, 4, 4), 2.0)
    )


def test_a_smooth_fill_continues_a_ramp_and_keeps_what_is_known() -> None:
    ramp = torch.linspace(0, 1, 48).expand(1, 1, 40, 48)
    hole = torch.zeros(1, 40, 48, dtype=torch.bool)
    hole[0, 10:30, 14:34] = True
    filled = smooth_fill(torch.where(hole[:, None], 9.0, ramp), hole)
    assert torch.equal(filled[~hole[:, None]], ramp[~hole[:, None]])
    assert (filled - ramp).abs().max() < 0.06
    assert smooth_fill(ramp, torch.ones_like(hole)).abs().max() == 0


@pytest.mark.parametrize("kind", [Riad, AutoPaint, MaskedAutoencoder])
def test_only_holes_are_filled_and_what_is_in_them_does_not_matter(kind: type[TrainedDetector]) -> None:
    detector = trained(kind)
    x, holes = images(), torch.zeros(2, 64, 64, dtype=torch.bool)
    holes[0, 8:24, 16:40] = True
    holes[1, 40:48, 40:56] = True
    with torch.no_grad():
        y = detector.inpaint(x, holes)  # type: ignore[attr-defined]
        assert torch.equal(y, detector.inpaint(torch.where(holes[:, None], 0.7, x), holes))  # type: ignore[attr-defined]
    assert torch.equal(y[~holes[:, None]], x[~holes[:, None]])
    assert not torch.equal(y[holes[:, None]], x[holes[:, None]])


@pytest.mark.parametrize("kind", TINY)
def test_no_score_depends_on_the_random_state(kind: type[TrainedDetector]) -> None:
    detector, x = trained(kind), images()
    maps = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        with torch.no_grad():
            maps.append(detector.anomaly_map(x.clone()))
        assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(seed)))
    assert torch.equal(*maps)


@pytest.mark.parametrize("kind", TINY)
def test_every_norm_treats_an_image_alike_whatever_the_batch(kind: type[TrainedDetector]) -> None:
    detector = trained(kind)
    inputs: dict[nn.Module, torch.Tensor] = {}

    def note(layer: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        inputs.setdefault(layer, arguments[0])

    for network in detector.modules().values():
        for layer in network.modules():
            if isinstance(layer, NORMS):
                layer.register_forward_pre_hook(note)
    x, valid = images(1), torch.ones(1, 64, 64, dtype=torch.bool)
    with torch.no_grad():
        detector.image_score(x, detector.anomaly_map(x), valid)
        assert inputs
        for layer, seen in inputs.items():
            others = torch.cat([seen, 5 * seen - 1, torch.rand_like(seen)])
            assert torch.allclose(layer(others)[: len(seen)], layer(seen), atol=1e-5), layer


@pytest.mark.parametrize("kind", TINY)
def test_norms_keep_their_statistics_while_scoring(kind: type[TrainedDetector]) -> None:
    detector = trained(kind)
    before = {key: value.clone() for key, value in detector.state()[0].items()}
    model = fitted(kind)
    model.score(NORMALS[:5])
    after = model.detector.state()[0]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


# Residuals


def test_gradients_do_not_see_brightness_but_edges() -> None:
    x = F.avg_pool2d(images(1, 68), 5, 1)
    assert gradient_error(x, x).abs().max() < 1e-6
    assert gradient_error(x, x + 0.3).abs().max() < 1e-4
    flat = torch.full((1, 1, 64, 64), 0.5)
    edge = flat.clone()
    edge[..., 32:] = 0.9
    error = gradient_error(flat, edge)[0, 0]
    assert error[:, 30:34].min() > 0.5
    assert error[:, :8].max() < 1e-3


def test_gradient_similarity_of_one_level_is_the_formula() -> None:
    x, y = images(2, 32).split(1)
    magnitudes = []
    for image in (x, y):
        smooth = cv2.medianBlur((image[0, 0].numpy()).astype(np.float32), 3)
        kernel = np.array([[-1, 0, 1]] * 3, np.float32) / 3
        gx, gy = (cv2.filter2D(smooth, -1, k, borderType=cv2.BORDER_REPLICATE) for k in (kernel, kernel.T))
        magnitudes.append(np.sqrt(gx**2 + gy**2))
    g, h = magnitudes
    expected = 1 - (2 * g * h + 0.0026) / (g**2 + h**2 + 0.0026)
    assert np.allclose(gradient_error(x, y, levels=1)[0, 0].numpy(), expected, atol=1e-3)


def test_a_grown_hole_reaches_so_many_pixels_further() -> None:
    hole = torch.zeros(1, 9, 9, dtype=torch.bool)
    hole[0, 4, 4] = True
    assert grow(hole, 2)[0].nonzero().amin().item() == 2
    assert grow(hole, 2).sum() == 25


@pytest.mark.parametrize("kind", TINY)
def test_a_map_counts_in_deviations_of_the_normals(kind: type[TrainedDetector]) -> None:
    plain, relative = fitted(kind, relative=False), fitted(kind, relative=True)
    normal = plain.detector.normal  # type: ignore[attr-defined]
    assert torch.equal(normal.mean, relative.detector.normal.mean)  # type: ignore[attr-defined]
    x = images(2)
    with torch.no_grad():
        assert torch.equal(normal(plain.detector.anomaly_map(x)), relative.detector.anomaly_map(x))


def test_deviations_of_normals_are_those_of_all_batches() -> None:
    residuals = torch.rand(10, 16, 16, generator=seeded(0)) * torch.linspace(1, 5, 16)
    whole, parts = NormalResiduals((16, 16)), NormalResiduals((16, 16))
    whole.learn([residuals])
    parts.learn(residuals.split(3))
    assert torch.allclose(whole.mean, residuals.mean(0))
    assert torch.allclose(whole.deviation, parts.deviation)
    deviation = residuals.std(0, correction=0)
    assert torch.allclose(whole.deviation, mean_filter(deviation[None], 9)[0] + deviation.mean() / 2, atol=1e-6)


# RIAD


def test_riad_in_paints_each_size_of_cells_from_outside_of_them() -> None:
    detector = trained(Riad)
    assert isinstance(detector, Riad)
    x = images(1)
    changed = x.clone()
    changed[..., 8:16, 8:16] = 1.0  # one cell of 8 pixels, four of 4
    with torch.no_grad():
        before, after = detector.inpainted(x), detector.inpainted(changed)
    assert torch.equal(before[1, ..., 8:16, 8:16], after[1, ..., 8:16, 8:16])
    assert not torch.equal(before[0, ..., 8:16, 8:16], after[0, ..., 8:16, 8:16])
    assert not torch.equal(before[1], after[1])


def test_riad_s_score_has_the_paper_s_gradients_and_our_intensity() -> None:
    x = images(1)
    plain, both = (trained(Riad, intensity=weight, relative=False) for weight in (0.0, 1.0))
    with torch.no_grad():
        y = both.inpainted(x)  # type: ignore[attr-defined]
        extra = mean_filter((x - y).abs().mean((0, 2)), 21)
        assert torch.allclose(both.anomaly_map(x), plain.anomaly_map(x) + extra, atol=1e-5)


def test_riad_s_cells_are_given_on_the_command_line_too() -> None:
    assert Riad(cells="4,8").config == Riad(cells=(4, 8)).config


def test_riad_refuses_what_cannot_be() -> None:
    for bad in ({"cells": (0, 2)}, {"window": 4}, {"parts": 1}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            Riad(**bad)


# AutoPaint


def test_a_partial_convolution_of_a_constant_does_not_see_holes() -> None:
    layer = PartialConv(2, 3, 3, 1, norm="none", activation=nn.Identity())
    nn.init.normal_(layer.bias)
    known = (images(1) > 0.5).float()
    x = 0.6 * known.expand(-1, 2, -1, -1)
    # With kernels of one value each, what is known of a constant image stands for all of it.
    layer.conv.weight.data[:] = layer.conv.weight.mean((1, 2, 3), keepdim=True)
    y, known_after = layer(x, known)
    expected = (0.6 * layer.conv.weight.sum((1, 2, 3)) + layer.bias[:, 0, 0])[None, :, None, None] * known_after
    assert torch.allclose(y, expected.expand_as(y), atol=1e-4)
    assert torch.equal(known_after, F.max_pool2d(known, 3, 1, 1))


def test_a_partial_convolution_of_what_is_all_known_is_a_convolution() -> None:
    layer = PartialConv(1, 3, 3, 1, norm="none", activation=nn.Identity())
    x = images(1)
    y, _ = layer(x, torch.ones_like(x))
    assert torch.allclose(y[..., 1:-1, 1:-1], layer.conv(x)[..., 1:-1, 1:-1], atol=1e-5)


def test_an_image_without_any_known_pixel_is_finite() -> None:
    network = PartialUNet(1, (8, 8)).eval()
    y = network(torch.zeros(1, 1, 16, 16), torch.zeros(1, 16, 16, dtype=torch.bool))
    assert y.isfinite().all()


def test_autopaint_in_paints_anew_only_where_it_marked() -> None:
    detector = trained(AutoPaint, rounds=1)
    assert isinstance(detector, AutoPaint)
    x = images(1)
    x[..., 20:30, 20:30] = 3.0
    with torch.no_grad():
        first = detector.first_round(x)
        y, holes = detector.inpainted(x)
    assert holes[0, 20:30, 20:30].all()
    assert holes.float().mean() < 0.9
    assert torch.equal(y[~holes[:, None]], first[~holes[:, None]])
    assert not torch.equal(y, first)


# Masked autoencoder


def test_mae_hides_every_pixel_equally_often() -> None:
    detector = trained(MaskedAutoencoder, parts=4, repeats=2)
    assert isinstance(detector, MaskedAutoencoder)
    seen: list[torch.Tensor] = []
    detector.transformer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1]))
    detector.anomaly_map(images(1))
    assert seen[0].shape == (4 * 2, 64 // 4)
    assert (seen[0].flatten().bincount(minlength=64) == 2).all()


def test_mae_learns_from_hidden_patches_alone() -> None:
    detector = trained(MaskedAutoencoder)
    assert isinstance(detector, MaskedAutoencoder)
    captured: list[torch.Tensor] = []

    def spoil(network: nn.Module, arguments: tuple[torch.Tensor, torch.Tensor], y: torch.Tensor) -> torch.Tensor:
        seen = arguments[1]
        captured.append(seen)
        patches = detector.transformer.cut(y)
        nonsense = patches.scatter(
            1, seen[:, :, None].expand(-1, -1, patches.shape[2]), 100.0
        )  # where patches are seen
        return F.fold(nonsense.transpose(1, 2), (64, 64), 8, stride=8)

    batch = StepBatch(images(4), torch.ones(4, 64, 64, dtype=torch.bool))
    torch.manual_seed(0)
    plain = detector.training_step(batch)["hidden"]
    detector.transformer.register_forward_hook(spoil)
    torch.manual_seed(0)
    spoilt = detector.training_step(batch)["hidden"]
    assert captured[0].shape == (4, 16)
    assert torch.allclose(plain, spoilt)


def test_mae_has_memory_and_levels_or_neither() -> None:
    plain, whole = (trained(MaskedAutoencoder, **s) for s in ({"memory": 0, "multilevel": False}, {}))
    names = [set(d.state()[0]) for d in (plain, whole)]
    assert not any("memory" in name or "cross.query" in name for name in names[0])
    assert any("encoder.0.attention.memory" in name for name in names[1])
    assert any("decoder.0.gates.1" in name for name in names[1])  # as many as levels of the encoder
    with pytest.raises(ConfigError, match="multiples of heads"):
        MaskedAutoencoder(width=20, heads=3)


def test_mae_scores_inputs_that_are_no_squares() -> None:
    detector = MaskedAutoencoder(**TINY[MaskedAutoencoder], steps=1, batch_size=4)
    model = fit(detector, NORMALS, calibration=0, preprocessing=Preprocessing(size=64, aspect="stretch"), device="cpu")
    assert model.score(NORMALS[:1]).maps[0].shape == NORMALS.shape[1:]


# SQUID


def test_patches_are_cut_and_joined_row_by_row() -> None:
    x = images(3)
    assert torch.equal(join(cut(x, 2), 2), x)
    assert torch.equal(cut(x, 2)[5], x[1, :, :32, 32:])


def test_a_queue_forgets_the_oldest() -> None:
    memory = Memory(2, 3, 5, 2, learnt=False)
    for number in (1.0, 2.0, 3.0):
        memory.remember(torch.full((2, 2, 3), number))
    assert sorted(memory.slots[0, :, 0].tolist()) == [1.0, 2.0, 2.0, 3.0, 3.0]
    memory.remember(torch.arange(7.0)[:, None, None].expand(7, 2, 3))
    assert sorted(memory.slots[1, :, 0].tolist()) == [2.0, 3.0, 4.0, 5.0, 6.0]
    assert not list(memory.parameters())
    assert {"slots", "next"} <= set(memory.state_dict())  # an interrupted training goes on with the same queue


def test_a_memory_reads_its_best_slots_and_no_other_place() -> None:
    memory = Memory(2, 4, 6, 2, learnt=True)
    query = images(1, 4)[0, 0, :2][None].requires_grad_()
    read = memory(query)
    for place in range(2):
        weights = (memory.slots[place] @ query[0, place]).softmax(0)
        best = weights.topk(2)
        mixed = (best.values / best.values.sum()) @ memory.slots[place][best.indices]
        assert torch.allclose(read[0, place], mixed, atol=1e-5)
    read.sum().backward()
    assert query.grad is not None and query.grad.abs().sum() > 0
    assert (memory.slots.grad.abs().sum(2) > 0).all()  # the gradient of the whole softmax


def test_squid_remembers_normals_and_nothing_while_scoring() -> None:
    model = fitted(Squid, steps=4)
    detector = model.detector
    assert isinstance(detector, Squid)
    assert detector.network.inpainting.memory.next.item() == 2 * 4  # every second step is the generator's
    slots = detector.network.inpainting.memory.slots.clone()
    model.score(NORMALS)
    assert torch.equal(slots, detector.network.inpainting.memory.slots)


def test_squid_s_matrix_is_learnt() -> None:
    detector = trained(Squid, memory="matrix", shortcut=0)
    assert isinstance(detector, Squid)
    assert isinstance(detector.network.inpainting.memory.slots, nn.Parameter)


def test_squid_s_score_falls_with_the_discriminator_s_belief() -> None:
    detector = trained(Squid)
    assert isinstance(detector, Squid)
    x, valid = images(6), torch.ones(6, 64, 64, dtype=torch.bool)
    with torch.no_grad():
        scores = detector.image_score(x, detector.anomaly_map(x), valid)
        judged = torch.cat([detector.discriminator.judge(y[None]) for y in detector.inpainted(x)])
    assert torch.equal(scores.argsort(), judged.argsort(descending=True))
    assert scores.dtype == torch.float64
    residual = trained(Squid, score="residual", pooling="mean", relative=False)
    with torch.no_grad():
        maps = residual.anomaly_map(x)
        assert torch.allclose(residual.image_score(x, maps, valid), maps.mean((1, 2)))


def test_squid_judges_as_a_discriminator_in_training_mode_that_sees_one_image() -> None:
    discriminator = Discriminator((1, 64, 64))
    x = images(5)
    with torch.no_grad():
        together = discriminator.eval().judge(x)
        alone = torch.cat([discriminator.train()(image[None])[0] for image in x])
    assert torch.allclose(together, alone, atol=1e-5)


def test_squid_scores_by_normals_of_training_alone() -> None:
    model = fitted(Squid)
    detector = model.detector
    assert isinstance(detector, Squid)
    normals = [torch.from_numpy(frame.pixels) for frame in Frames(discover(NORMALS), model.preprocessing)]
    with torch.no_grad():
        values = detector.discriminator.judge(detector.inpainted(torch.stack(normals)))
    assert torch.allclose(detector.judged.mean, values.mean(), rtol=1e-3)
    assert torch.allclose(detector.judged.deviation, values.std(correction=0), atol=2e-6)


def test_squid_s_teacher_leaves_the_encoder_alone() -> None:
    detector = trained(Squid)
    assert isinstance(detector, Squid)
    detector.network.train()
    detector.network(images(2), teach=True).taught.sum().backward()
    assert all(p.grad is None for p in detector.network.down.parameters())
    assert any(p.grad is not None for p in detector.network.teacher.parameters())


def test_squid_makes_images_once_in_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bool] = []
    forward = SquidNetwork.forward

    def counted(self: SquidNetwork, x: torch.Tensor, *, teach: bool = False) -> Generated:
        if self.training:
            made.append(teach)
        return forward(self, x, teach=teach)

    monkeypatch.setattr(SquidNetwork, "forward", counted)  # a hook is not told of `teach`
    fitted(Squid, steps=4)
    assert made == [True, False, True, False]  # the discriminator sees what the generator learnt from
