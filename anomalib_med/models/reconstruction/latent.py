"""Latent distributions of variational autoencoders, and the gradient of a loss at the image."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

LEAST = 1e-4  # of a concentration: the gamma function has no value at 0


def gaussian(code: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and log-variance ``(B, D)`` from an encoder's ``(B, 2 D)``, float32."""
    mean, log_variance = code.float().chunk(2, dim=1)
    return mean, log_variance


def sample_gaussian(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """A draw that passes gradients, ``(B, D)``."""
    return mean + torch.randn_like(mean) * (0.5 * log_variance).exp()


def gaussian_kl(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """Divergence from the standard normal of each dimension, ``(B, D)``, at least 0.

    Kingma and Welling, "Auto-Encoding Variational Bayes", 2014, appendix B.
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)


def concentrations(code: torch.Tensor) -> torch.Tensor:
    """Concentrations of a Dirichlet distribution ``(B, D)`` from an encoder's output, float32, above 0."""
    return F.softplus(code.float()) + LEAST


def sample_dirichlet(concentration: torch.Tensor) -> torch.Tensor:
    """A draw that passes gradients, ``(B, D)``; each row sums to 1."""
    draw: torch.Tensor = torch.distributions.Dirichlet(concentration).rsample()
    return draw


def dirichlet_mean(concentration: torch.Tensor) -> torch.Tensor:
    """``(B, D)``; each row sums to 1."""
    return concentration / concentration.sum(1, keepdim=True)


def dirichlet_kl(concentration: torch.Tensor, prior: float) -> torch.Tensor:
    """Divergence of each row of ``(B, D)`` from the symmetric Dirichlet distribution, ``(B,)``, at least 0.

    Parameters
    ----------
    concentration
        Of the posterior.
    prior
        Concentration of the prior in each dimension; 1 is uniform.
    """
    other = torch.full_like(concentration, prior)
    total, total_other = concentration.sum(1), other.sum(1)
    norms = total.lgamma() - concentration.lgamma().sum(1) - total_other.lgamma() + other.lgamma().sum(1)
    expected = concentration.digamma() - total.digamma()[:, None]
    return norms + ((concentration - other) * expected).sum(1)


def input_gradient(loss: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Size of the gradient of a loss at the images, ``(B, C, H, W)``; also in inference mode.

    Parameters
    ----------
    loss
        Of images ``(B, C, H, W)``, ``(B,)``: one number for each, of that image alone.
    x
        Images.
    """
    with torch.inference_mode(False), torch.enable_grad():
        x = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(x).sum(), x)
    return gradient.abs()
