"""VAE: a variational autoencoder with a Gaussian or a Dirichlet prior, and maps of error, of gradient and of both."""

from typing import Literal

import torch
from pydantic import Field

from anomalib_med.models.blocks import DenseAutoencoder
from anomalib_med.models.losses import PixelError, pixel_error, pixel_loss
from anomalib_med.models.reconstruction import latent
from anomalib_med.models.reconstruction.base import CodeConfig, Reconstruction
from anomalib_med.models.training import StepBatch

Score = Literal["reconstruction", "reconstruction_gradient", "kl_gradient", "elbo_gradient", "combined"]


class VariationalAutoencoder(Reconstruction):
    """Reconstructs an image from a distribution of a few numbers that is held close to a prior.

    At scoring nothing is drawn: the reconstruction is that of the mean.
    """

    name = "vae"
    title = "VAE with Gaussian or Dirichlet prior (Kingma and Welling 2014; Zimmerer et al., MICCAI 2019)"

    class Config(CodeConfig):
        """Settings of the variational autoencoder; defaults are those of MedIAnomaly."""

        loss: PixelError = "l2"
        """Error of the reconstruction that is minimised and shown: "l2", "l1" or "ssim"."""
        prior: Literal["gaussian", "dirichlet"] = "gaussian"
        """Distribution that the latent numbers are held close to: a "gaussian", or a "dirichlet", where they are shares
        that sum to one."""
        concentration: float = Field(1.0, gt=0)
        """Concentration of the Dirichlet prior in each dimension; 1 is uniform, and below 1 few shares are large."""
        beta: float = Field(0.005, ge=0)
        """Weight of the divergence from the prior, a mean over the latent numbers."""
        capacity: float = Field(0.0, ge=0)
        """Divergence that costs nothing: what is minimised is the distance from it."""
        score: Score = "reconstruction"
        """What the map shows: the error ("reconstruction"), the gradient at each pixel of the mean error, of the
        divergence or of the whole loss, or the error times the gradient of the divergence ("combined")."""

    config: Config

    def build(self, shape: tuple[int, ...]) -> None:
        """Build the autoencoder."""
        c, heads = self.config, 2 if self.config.prior == "gaussian" else 1
        self.autoencoder = DenseAutoencoder(shape, c.widths, c.latent, c.hidden, heads=heads)

    def training_step(self, batch: StepBatch) -> dict[str, torch.Tensor]:
        """Error of a drawn reconstruction, and the weighted divergence."""
        reconstructed, divergence = self._passed(batch.x, draw=True)
        error = pixel_loss(self.config.loss, batch.x, reconstructed)
        return {"error": error, "divergence": self._weighted(divergence).mean()}

    def reconstructed(self, x: torch.Tensor) -> torch.Tensor:
        """Reconstructions ``(B, C, H, W)``."""
        return self._passed(x)[0]

    def compute_map(self, x: torch.Tensor) -> torch.Tensor:
        """The map that `score` names, ``(B, H, W)``, mean over channels."""
        c = self.config
        if c.score.endswith("gradient"):
            return latent.input_gradient(self._loss, x).mean(1)
        maps = pixel_error(c.loss, x, self.reconstructed(x))
        if c.score == "combined":
            maps = maps * latent.input_gradient(lambda image: self._passed(image)[1], x)
        return maps.mean(1)

    def _loss(self, x: torch.Tensor) -> torch.Tensor:
        """What `score` takes the gradient of, ``(B,)``."""
        reconstructed, divergence = self._passed(x)
        error = torch.stack([pixel_loss(self.config.loss, *pair) for pair in zip(x, reconstructed, strict=True)])
        if self.config.score == "reconstruction_gradient":
            return error
        return divergence if self.config.score == "kl_gradient" else error + self._weighted(divergence)

    def _weighted(self, divergence: torch.Tensor) -> torch.Tensor:
        return self.config.beta * (divergence - self.config.capacity).abs()

    def _passed(self, x: torch.Tensor, *, draw: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Reconstruction, and the divergence of each image per latent number, ``(B,)``."""
        c, code = self.config, self.autoencoder.encode(x)
        if c.prior == "gaussian":
            z, divergence = latent.gaussian(code, draw=draw)
            return self.autoencoder.decode(z), divergence.mean(1)
        z, divergence = latent.dirichlet(code, c.concentration, draw=draw)
        return self.autoencoder.decode(z), divergence / c.latent
