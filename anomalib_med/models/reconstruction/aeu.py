"""AE-U: an autoencoder that also says how sure it is of each pixel (Mao et al., MICCAI 2020)."""

from typing import Literal

import torch

from anomalib_med.models.blocks import DenseAutoencoder
from anomalib_med.models.losses import squared_error
from anomalib_med.models.reconstruction.base import CodeConfig, Reconstruction
from anomalib_med.models.training import StepBatch

BOUND = 10.0  # of a log-variance: where all normals are alike, such as black air, it would fall for ever


class UncertaintyAutoencoder(Reconstruction):
    """Reconstructs an image and predicts the variance of each pixel; an error counts where the variance is low."""

    name = "aeu"
    title = "AE-U, uncertainty prediction autoencoder (Mao et al., MICCAI 2020)"

    class Config(CodeConfig):
        """Settings of the uncertainty autoencoder."""

        score: Literal["uncertainty", "l2"] = "uncertainty"
        """What the map shows: the squared error divided by the predicted variance, as in the paper ("uncertainty"), or
        the error alone ("l2")."""

    config: Config

    def build(self, shape: tuple[int, ...]) -> None:
        """Build the autoencoder."""
        c = self.config
        self.autoencoder = DenseAutoencoder(shape, c.widths, c.latent, c.hidden, outputs=2 * shape[0])

    def training_step(self, batch: StepBatch) -> dict[str, torch.Tensor]:
        """Gaussian negative log-likelihood, up to a factor and a constant."""
        reconstructed, log_variance = self.predict(batch.x)
        return {"likelihood": (_weighted(batch.x, reconstructed, log_variance) + log_variance).mean()}

    def reconstructed(self, x: torch.Tensor) -> torch.Tensor:
        """Reconstructions ``(B, C, H, W)``."""
        return self.predict(x)[0]

    def compute_map(self, x: torch.Tensor) -> torch.Tensor:
        """Error over predicted variance ``(B, H, W)``, mean over channels; about 1 where an image is normal."""
        if self.config.score == "l2":
            return super().compute_map(x)
        return _weighted(x, *self.predict(x)).mean(1)

    def predict(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Reconstruction and logarithm of the variance, ``(B, C, H, W)`` each, the latter for values in [-1, 1]."""
        reconstructed, raised = self.autoencoder(x).float().chunk(2, dim=1)
        return reconstructed, (2 * raised - 1).clamp(-BOUND, BOUND)


def _weighted(x: torch.Tensor, reconstructed: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    # The paper's images lie in [-1, 1], where a squared error is four times as large.
    return 4 * squared_error(x, reconstructed) * (-log_variance).exp()
