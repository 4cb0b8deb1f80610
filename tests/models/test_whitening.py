"""What whitening of patches promises: variances of one, sums over any order of images, little from few patients."""

import pytest
import torch
import torch.nn.functional as F

from anomalib_med.models.memory_bank.whitening import Moments, RunningMoments, joined

GENERATOR = torch.Generator().manual_seed(0)
MIX = torch.randn(6, 6, generator=GENERATOR)
PATCHES = (torch.randn(700, 6, generator=GENERATOR) @ MIX + 3).half()


def moments(patches: torch.Tensor, patients: int) -> Moments:
    """Of images of 70 patches that belong to so many patients."""
    running = RunningMoments(patches.shape[1])
    for i, image in enumerate(torch.split(patches, 70)):
        running.add(image, f"patient {i % patients}")
    return running.moments()


def test_moments_are_those_of_every_seventh_patch_of_an_image() -> None:
    found, used = moments(PATCHES, 5), PATCHES[::7].double()
    torch.testing.assert_close(found.mean, used.mean(0).float())
    torch.testing.assert_close(found.covariance, torch.cov(used.T, correction=0).float(), rtol=1e-5, atol=1e-5)
    assert found.patients == 5


def test_whitened_patches_are_uncorrelated_with_variances_of_nearly_one() -> None:
    centre, matrix = moments(PATCHES, 10)._replace(patients=100_000).whitening()
    white = (PATCHES[::7].float() - centre) @ matrix
    covariance = torch.cov(white.T, correction=0)
    torch.testing.assert_close(white.mean(0), torch.zeros(6), rtol=0, atol=1e-2)
    assert (covariance - covariance.diagonal().diag()).abs().max() < 1e-4
    variances = torch.linalg.eigvalsh(moments(PATCHES, 10).covariance).flip(0)
    expected = variances / (0.9 * variances + 0.1 * variances.mean())
    torch.testing.assert_close(covariance.diagonal(), expected, rtol=1e-4, atol=1e-4)


def test_of_two_patients_the_angles_between_patches_stay_what_they_are() -> None:
    centre, matrix = moments(PATCHES, 2).whitening()
    before, after = (F.normalize(p, dim=1) for p in (PATCHES.float(), (PATCHES.float() - centre) @ matrix))
    torch.testing.assert_close(after @ after.T, before @ before.T, rtol=0, atol=1e-5)


def test_the_moments_of_two_parts_are_joined_to_those_of_all() -> None:
    parts = moments(PATCHES[:210] + 1, 3), moments(PATCHES[210:], 7)
    union = moments(torch.cat([PATCHES[:210] + 1, PATCHES[210:]]), 10)
    found = joined(parts, (210, 490))
    torch.testing.assert_close(found.mean, union.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.covariance, union.covariance, rtol=1e-5, atol=1e-5)
    assert found.patients == 10


@pytest.mark.parametrize(("channels", "kept"), [(100, 100), (300, 256)])
def test_the_directions_that_vary_most_are_kept(channels: int, kept: int) -> None:
    strength = torch.linspace(2, 0.01, channels)
    patches = torch.randn(21_000, channels, generator=GENERATOR) * strength
    matrix = moments(patches, 100).whitening()[1]
    assert matrix.shape == (channels, kept)
    lengths = matrix.norm(dim=1)  # of the last coordinates nothing is kept
    assert (lengths[-20:].mean() < 0.1) == (kept < channels)


def test_features_that_do_not_vary_are_no_error() -> None:
    centre, matrix = moments(torch.ones(140, 4), 2).whitening()
    assert centre.isfinite().all() and matrix.isfinite().all()
