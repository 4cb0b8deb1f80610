"""Latent distributions of variational autoencoders, and the gradient of a loss at the image."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

LEAST = 1e-4  # of a concentration: the gamma function has no value at 0


def gaussian(code: torch.Tensor, *, draw: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Latent numbers of a Gaussian, and its divergence from the standard normal in each dimension, at least 0.

    Kingma and Welling, "Auto-Encoding Variational Bayes", 2014, appendix B.

    Parameters
    ----------
    code
        Output of an encoder, ``(B, 2 D)``: mean and logarithm of the variance.
    draw
        Draw the numbers, in a way that passes gradients, instead of taking the mean.

    Returns
    -------
    Both float32 ``(B, D)``.
    """
    mean, log_variance = code.float().chunk(2, dim=1)
    z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp() if draw else mean
    return z, 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)


def dirichlet(code: torch.Tensor, prior: float, *, draw: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Latent numbers of a Dirichlet distribution, and its divergence from a symmetric one, at least 0.

    Parameters
    ----------
    code
        Output of an encoder, ``(B, D)``; its softplus are the concentrations.
    prior
        Concentration of the prior in each dimension; 1 is uniform.
    draw
        Draw the numbers, in a way that passes gradients, instead of taking the mean.

    Returns
    -------
    Float32 ``(B, D)``, each row of which sums to 1, and ``(B,)``.
    """
    concentration = F.softplus(code.float()) + LEAST
    if draw:
        z: torch.Tensor = torch.distributions.Dirichlet(concentration).rsample()
    else:
        z = concentration / concentration.sum(1, keepdim=True)
    other = torch.full_like(concentration, prior)
    total, total_other = concentration.sum(1), other.sum(1)
    norms = total.lgamma() - concentration.lgamma().sum(1) - total_other.lgamma() + other.lgamma().sum(1)
    expected = concentration.digamma() - total.digamma()[:, None]
    return z, norms + ((concentration - other) * expected).sum(1)


def input_gradient(loss: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Size of the gradient of a loss at images ``(B, C, H, W)``, the same shape; also in inference mode.

    The loss takes images to ``(B,)``: one number for each, of that image alone.
    """
    with torch.inference_mode(False), torch.enable_grad():
        x = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(x).sum(), x)
    return gradient.abs()
