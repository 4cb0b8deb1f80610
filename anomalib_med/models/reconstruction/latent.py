"""Latent distributions of variational autoencoders, and the gradient of a loss at the image."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

LEAST = 1e-4  # of a concentration: the gamma function has no value at 0


def gaussian(code: torch.Tensor, *, draw: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Latent numbers of a Gaussian, and its divergence from the standard normal, at least 0, float32 ``(B, D)`` each.

    `code` ``(B, 2 D)`` is mean and logarithm of the variance. The numbers are their mean, or drawn in a way that passes
    gradients. Kingma and Welling 2014, appendix B.
    """
    mean, log_variance = code.float().chunk(2, dim=1)
    z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp() if draw else mean
    return z, 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)


def dirichlet(code: torch.Tensor, prior: float, *, draw: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Latent numbers ``(B, D)`` of a Dirichlet distribution, which sum to 1, and its divergence ``(B,)`` from a prior.

    The softplus of `code` ``(B, D)`` are the concentrations; that of the prior is the same in each dimension, and 1 is
    uniform. The numbers are their mean, or drawn in a way that passes gradients.
    """
    concentration = F.softplus(code.float()) + LEAST
    mean = concentration / concentration.sum(1, keepdim=True)
    z = torch.distributions.Dirichlet(concentration).rsample() if draw else mean
    other = torch.full_like(concentration, prior)
    total, total_other = concentration.sum(1), other.sum(1)
    norms = total.lgamma() - concentration.lgamma().sum(1) - total_other.lgamma() + other.lgamma().sum(1)
    expected = concentration.digamma() - total.digamma()[:, None]
    return z, norms + ((concentration - other) * expected).sum(1)


def input_gradient(loss: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Size ``(B, C, H, W)`` of the gradient of a loss ``(B,)``, each of one image alone; also in inference mode."""
    with torch.inference_mode(False), torch.enable_grad():
        x = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(x).sum(), x)
    return gradient.abs()
