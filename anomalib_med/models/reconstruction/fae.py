"""FAE: a small autoencoder of frozen features, with structural similarity as loss and as score.

Meissen et al., "Unsupervised Anomaly Localization with Structural Feature-Autoencoders", BrainLes 2022,
https://arxiv.org/abs/2208.10992.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from anomalib_med.models.blocks import Decoder, Encoder
from anomalib_med.models.losses import squared_error, ssim_error
from anomalib_med.models.training.normals import StepBatch
from anomalib_med.models.training.schedule import FeatureTrainingConfig
from anomalib_med.models.training.trainer import TrainedDetector

Error = Literal["ssim", "mse"]
WINDOW, SIGMA = 5, 1.5


class FeatureAutoencoder(TrainedDetector):
    """Reconstructs the frozen features of an image from a narrow code; what is not normal is reconstructed badly.

    The anomaly map is the error between features and reconstruction, averaged over channels.
    """

    name = "fae"
    title = "FAE, structural feature autoencoder (Meissen et al., BrainLes 2022)"
    input_size = 128
    at_once = 0

    class Config(FeatureTrainingConfig):
        """Settings of the feature autoencoder.

        Parameters
        ----------
        loss
            "ssim", the paper's, or "mse".
        score
            The same choice for the map; "loss": as trained.
        grid
            Side of the square of feature vectors that is reconstructed, a multiple of 16.
        widths
            Channels of the encoder at each halving of the grid.
        dropout
            Share of the channels that are left out while training.
        """

        neighbourhood: int = Field(1, ge=1)
        pooling: str = "mean"
        steps: int = Field(2000, ge=0)
        batch_size: int = Field(32, ge=1)
        learning_rate: float = Field(5e-4, gt=0)
        loss: Error = "ssim"
        score: Error | Literal["loss"] = "loss"
        grid: int = Field(32, ge=16, multiple_of=16)
        widths: tuple[int, int, int, int] = (100, 150, 200, 300)
        dropout: float = Field(0.1, ge=0, lt=1)

    config: Config

    def build(self, shape: tuple[int, ...]) -> None:
        """The autoencoder, for features ``(D, grid, grid)``."""
        c = self.config
        self.autoencoder = nn.Sequential(
            Encoder(shape[0], c.widths, 5, dropout=c.dropout),
            nn.Conv2d(c.widths[-1], c.widths[-1], 5, padding=2),
            Decoder(shape[0], c.widths, 6, dropout=c.dropout),
        )

    def prepare(self, x: torch.Tensor) -> torch.Tensor:
        """Frozen features ``(B, D, grid, grid)`` of images."""
        side = self.config.grid

        def resized(features: torch.Tensor) -> torch.Tensor:
            if features.shape[-2:] == (side, side):
                return features
            return F.interpolate(features.float(), (side, side), mode="bilinear", align_corners=False).half()

        # Image by image: in a batch the interpolation rounds differently.
        return torch.cat([resized(features[None]) for features in self.features(x)])

    def training_step(self, batch: StepBatch) -> dict[str, torch.Tensor]:
        """The error of the reconstruction."""
        return {self.config.loss: _error(self.config.loss, batch.x, self.autoencoder(batch.x)).mean()}

    def compute_map(self, x: torch.Tensor) -> torch.Tensor:
        """Error ``(B, grid, grid)``, averaged over the channels of the features."""
        c = self.config
        kind: Error = c.loss if c.score == "loss" else c.score

        def errors(features: torch.Tensor) -> torch.Tensor:
            return _error(kind, features, self.autoencoder(features)).mean(1)

        return self.each(errors, self.prepare(x).float())


def _error(kind: Error, features: torch.Tensor, reconstructed: torch.Tensor) -> torch.Tensor:
    if kind == "mse":
        return squared_error(features, reconstructed)
    return ssim_error(features, reconstructed, window=WINDOW, sigma=SIGMA)
