"""The differences between images, against slow references."""

import numpy as np
import pytest
import torch

from anomalib_med.models.losses import absolute_error, perceptual_error, squared_error, ssim, ssim_error

X, Y = torch.rand(2, 3, 20, 26, generator=torch.Generator().manual_seed(0)).split(1)


def slow_ssim(x: np.ndarray, y: np.ndarray, window: int, sigma: float) -> np.ndarray:
    """Equation 13 of Wang et al. 2004, pixel by pixel."""
    out, margin = np.zeros_like(x), window // 2
    for row in range(x.shape[0]):
        for column in range(x.shape[1]):
            r = np.arange(max(0, row - margin), min(x.shape[0], row + margin + 1))
            c = np.arange(max(0, column - margin), min(x.shape[1], column + margin + 1))
            w = np.exp(-((r[:, None] - row) ** 2 + (c - column) ** 2) / (2 * sigma**2))
            w /= w.sum()
            a, b = x[np.ix_(r, c)], y[np.ix_(r, c)]
            ma, mb = (w * a).sum(), (w * b).sum()
            va, vb, cov = (w * (a - ma) ** 2).sum(), (w * (b - mb) ** 2).sum(), (w * (a - ma) * (b - mb)).sum()
            out[row, column] = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
    return out


@pytest.mark.parametrize("window", [11, 5])
def test_ssim_is_that_of_the_paper(window: int) -> None:
    for a, b, c in zip(X[0], Y[0], ssim(X, Y, window=window)[0], strict=True):
        assert np.abs(slow_ssim(a.double().numpy(), b.double().numpy(), window, 1.5) - c.numpy()).max() < 1e-4


def test_every_error_is_zero_for_equal_images_and_grows() -> None:
    for error in (squared_error, absolute_error, ssim_error, perceptual_error):
        assert error(X, X).abs().max() < 1e-4
        near, far = (float(error(X, X + scale * (Y - X)).mean()) for scale in (0.1, 0.5))
        assert 0 < near < far


def test_the_perceptual_error_is_relative_and_of_each_image_alone() -> None:
    both = perceptual_error(torch.cat([X, 5 * Y]), torch.cat([Y, 5 * X]))
    assert torch.equal(both[:1], perceptual_error(X, Y))
    assert torch.allclose(both[1:], perceptual_error(Y, X), rtol=1e-5)
    assert float(perceptual_error(X, torch.zeros_like(X)).mean()) == pytest.approx(1, rel=1e-3)


def test_ssim_has_gradients() -> None:
    y = Y.clone().requires_grad_()
    ssim_error(X, y).mean().backward()
    assert y.grad is not None and y.grad.isfinite().all() and y.grad.abs().sum() > 0
