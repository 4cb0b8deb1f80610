"""Whitening of patches: every direction of the features varies alike among normals, so that the rare ones count.

PCA whitening (Kessy, Lewin and Strimmer, "Optimal Whitening and Decorrelation", The American Statistician 2018) of a
covariance that is shrunk the more, the fewer patients it comes from.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

ROWS = 65536  # patches that are whitened at once
LEAST = 0.1  # share of the mean variance in each variance, however many patients there are
WIDEST = 256  # directions that are kept, those that vary most
EVERY = 7  # of the patches of an image: neighbours in a row say much the same


class Whitening(NamedTuple):
    """Centre ``(D,)`` and matrix ``(D, K)``, float32: patches less the centre, times the matrix, vary alike."""

    centre: torch.Tensor
    matrix: torch.Tensor

    def unit(self, patches: torch.Tensor, height: float) -> torch.Tensor:
        """Patches ``(P, D)`` centred, whitened and of unit length, float16 ``(P, K)``.

        A further column, the height of the slice, is only multiplied by `height`: unit vectors have a deviation of 1.
        """
        centre, matrix = (part.to(patches.device) for part in self)
        (channels, size), columns = matrix.shape, patches.shape[1]
        unit = torch.empty(len(patches), size + columns - channels, dtype=torch.float16, device=patches.device)
        for part, given in zip(torch.split(unit, ROWS), torch.split(patches, ROWS), strict=True):
            part[:, :size] = F.normalize((given[:, :channels].float() - centre) @ matrix, dim=1)
        unit[:, size:] = height * patches[:, channels:]
        return unit


class Moments(NamedTuple):
    """Mean ``(D,)`` and covariance ``(D, D)`` of patches, float32, and the number of patients that they are from."""

    mean: torch.Tensor
    covariance: torch.Tensor
    patients: int

    def whitening(self) -> Whitening:
        """What whitens such patches; K is at most 256.

        The centre is shrunk towards zero and the covariance towards a multiple of the identity, by a tenth at least
        because what varies less is noise, as for so many samples as there are patients, whose own patches are alike.
        The features of one or two patients are only rotated.
        """
        covariance = self.covariance.double()
        share = shrinkage(covariance[None], torch.tensor([self.patients]))[0]
        variances, directions = torch.linalg.eigh(covariance)
        level, least = variances.mean().clamp_min(1e-12), share.clamp_min(LEAST)
        shrunk = (1 - least) * variances.clamp_min(0) + least * level
        matrix = (directions / shrunk.sqrt()).flip(1)[:, :WIDEST]
        return Whitening(((1 - share) * self.mean).float(), matrix.float().contiguous())


class RunningMoments:
    """Moments of as many patches as come, from every seventh of each image."""

    def __init__(self, channels: int) -> None:
        self._count = 0
        self._first = torch.zeros(channels, dtype=torch.float64)
        self._second = torch.zeros(channels, channels, dtype=torch.float64)
        self._patients: set[str] = set()

    def add(self, patches: torch.Tensor, patient: str) -> None:
        """Take in patches ``(P, D)`` of one image."""
        some = patches[::EVERY].double()
        self._count += len(some)
        self._first += some.sum(0)
        self._second += some.T @ some
        self._patients.add(patient)

    def moments(self) -> Moments:
        """What came until now."""
        mean = self._first / self._count
        covariance = self._second / self._count - torch.outer(mean, mean)
        return Moments(mean.float(), covariance.float(), len(self._patients))


def joined(parts: Sequence[Moments], weights: Sequence[float]) -> Moments:
    """Moments of the union of sets of patches of different patients, which count by these weights."""
    shares = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    means = torch.stack([part.mean.double() for part in parts])
    apart = means - shares @ means
    within = torch.stack([part.covariance.double() for part in parts])
    covariance = torch.einsum("p,pij->ij", shares, within) + (shares[:, None] * apart).T @ apart
    return Moments((shares @ means).float(), covariance.float(), sum(part.patients for part in parts))


def shrinkage(covariances: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Share ``(P,)`` of the identity that covariances ``(P, d, d)`` of `counts` ``(P,)`` samples each should have.

    Oracle approximating shrinkage: Chen et al., "Shrinkage algorithms for MMSE covariance estimation", IEEE Trans.
    Signal Processing 2010, equation 23, as scikit-learn has it.
    """
    size = covariances.shape[1]
    level = covariances.diagonal(dim1=1, dim2=2).mean(1)
    power = covariances.square().mean((1, 2))
    apart = (counts + 1) * (power - level.square() / size)
    return torch.where(apart > 0, (power + level.square()) / apart, torch.ones_like(apart)).clamp(max=1)
