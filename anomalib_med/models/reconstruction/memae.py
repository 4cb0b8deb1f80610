"""MemAE: an autoencoder whose code is put together from a few remembered ones (Gong et al., ICCV 2019)."""

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import nn

from anomalib_med.models.blocks import DenseAutoencoder
from anomalib_med.models.losses import PixelError, pixel_error, pixel_loss
from anomalib_med.models.reconstruction.base import CodeConfig, Reconstruction
from anomalib_med.models.training import StepBatch

EPS = 1e-12


class MemoryAutoencoder(Reconstruction):
    """Reconstructs an image from a mixture of codes that were learnt on normals.

    An ordinary autoencoder may reconstruct what it has never seen; a mixture of normal codes gives a normal image.
    """

    name = "memae"
    title = "MemAE, memory-augmented autoencoder (Gong et al., ICCV 2019)"

    class Config(CodeConfig):
        """Settings of the memory-augmented autoencoder; defaults are those of MedIAnomaly."""

        loss: PixelError = "l2"
        """Error of the reconstruction that is minimised and shown: "l2", "l1" or "ssim"."""
        slots: int = Field(25, ge=2)
        """How many codes are remembered."""
        shrink: float = Field(0.0025, ge=0, lt=1)
        """Shares of a mixture below this are taken as 0."""
        entropy: float = Field(0.0002, ge=0)
        """Weight of the mixtures' entropy in the loss: the higher it is, the fewer codes are in a mixture."""

        @model_validator(mode="after")
        def _something_remains(self) -> "MemoryAutoencoder.Config":
            if self.shrink * self.slots >= 1:
                raise ValueError("shrink must be below 1 / slots: equal shares would all be taken as 0")
            return self

    config: Config

    def build(self, shape: tuple[int, ...]) -> None:
        """Build the autoencoder and its memory."""
        c = self.config
        self.autoencoder = DenseAutoencoder(shape, c.widths, c.latent, c.hidden)
        self.memory = Memory(c.slots, c.latent, c.shrink)

    def training_step(self, batch: StepBatch) -> dict[str, torch.Tensor]:
        """Error of the reconstruction, and the weighted entropy of the mixtures."""
        c = self.config
        shares = self.memory.shares(self.autoencoder.encode(batch.x))
        reconstructed = self.autoencoder.decode(shares @ self.memory.codes)
        entropy = -(shares * (shares + EPS).log()).sum(1).mean()
        return {"error": pixel_loss(c.loss, batch.x, reconstructed), "entropy": c.entropy * entropy}

    def reconstructed(self, x: torch.Tensor) -> torch.Tensor:
        """Reconstructions ``(B, C, H, W)``."""
        return self.autoencoder.decode(self.memory(self.autoencoder.encode(x)))

    def compute_map(self, x: torch.Tensor) -> torch.Tensor:
        """The error that was minimised, ``(B, H, W)``, mean over channels."""
        return pixel_error(self.config.loss, x, self.reconstructed(x)).mean(1)


class Memory(nn.Module):
    """So many remembered codes of one length, and mixtures of them that look like a given one.

    Shares of a mixture up to `shrink` become 0; the others then sum to one again.
    """

    def __init__(self, slots: int, length: int, shrink: float) -> None:
        super().__init__()
        self.shrink = shrink
        self.codes = nn.Parameter(torch.empty(slots, length).uniform_(-1, 1) / length**0.5)

    def shares(self, z: torch.Tensor) -> torch.Tensor:
        """Shares ``(B, slots)`` of each code for codes ``(B, length)``, from their products; each row sums to one."""
        shares = F.softmax((z @ self.codes.T).float(), dim=1)
        if self.shrink:
            # Hard shrinkage that passes gradients, equation 7 of the paper.
            shares = F.relu(shares - self.shrink) * shares / ((shares - self.shrink).abs() + EPS)
            shares = F.normalize(shares, p=1, dim=1)
        return shares

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """The mixture for codes ``(B, length)``, the same shape."""
        return self.shares(z) @ self.codes
