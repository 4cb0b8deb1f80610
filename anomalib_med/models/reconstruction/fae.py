"""FAE: a small autoencoder of frozen features, with structural similarity as loss and as score."""

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from anomalib_med.models.blocks import Encoder, UpBlock
from anomalib_med.models.losses import squared_error, ssim_error
from anomalib_med.models.training import FeatureTrainingConfig, StepBatch, TrainedDetector

WINDOW = 5  # pixels of the grid, of SSIM


class FeatureAutoencoder(TrainedDetector):
    """Reconstructs the frozen features of an image from a narrow code; the anomaly map is the error of that."""

    name = "fae"
    title = "FAE, structural feature autoencoder (Meissen et al., BrainLes 2022)"
    input_size = 128
    at_once = 0  # the frozen network is given the whole batch: alone, an image costs it twice as much

    class Config(FeatureTrainingConfig):
        """Settings of the feature autoencoder."""

        neighbourhood: int = Field(1, ge=1)
        pooling: str = "mean"
        steps: int = Field(2000, ge=0)
        learning_rate: float = Field(5e-4, gt=0)
        loss: Literal["ssim", "mse"] = "ssim"
        """Error that is minimised: structural similarity ("ssim"), as in the paper, or the squared error ("mse")."""
        score: Literal["ssim", "mse", "loss"] = "loss"
        """Error that the map shows, one of the same two; "loss" is the one that was minimised."""
        grid: int = Field(32, ge=16, multiple_of=16)
        """Side of the square of feature vectors that is reconstructed, a multiple of 16, which costs a quarter of 32.
        The official code has a quarter of the input's side."""
        widths: tuple[int, int, int, int] = (100, 150, 200, 300)
        """Channels of the encoder at each halving of the grid, as in the official code."""
        dropout: float = Field(0.1, ge=0, lt=1)
        """Share of the channels that are left out while training, as in the official code."""

    config: Config

    def build(self, shape: tuple[int, ...]) -> None:
        """Build the autoencoder, for features ``(D, grid, grid)``."""
        c, channels = self.config, shape[0]
        ups = (UpBlock(i, o, 6, dropout=c.dropout) for i, o in pairwise((*reversed(c.widths), c.widths[0])))
        self.autoencoder = nn.Sequential(
            Encoder(channels, c.widths, 5, dropout=c.dropout),
            nn.Conv2d(c.widths[-1], c.widths[-1], 5, padding=2),
            nn.Sequential(*ups, nn.Conv2d(c.widths[0], channels, 1)),
        )

    def prepare(self, x: torch.Tensor) -> torch.Tensor:
        """Frozen features ``(B, D, grid, grid)`` of images."""
        features, size = self.features(x), (self.config.grid, self.config.grid)
        if features.shape[2:] == size:
            return features
        return self.each(lambda x: F.interpolate(x.float(), size, mode="bilinear").half(), features)

    def training_step(self, batch: StepBatch) -> dict[str, torch.Tensor]:
        """The error of the reconstruction."""
        return {self.config.loss: self._error(self.config.loss, batch.x).mean()}

    def compute_map(self, x: torch.Tensor) -> torch.Tensor:
        """Error ``(B, grid, grid)``, averaged over the channels of the features."""
        c = self.config
        kind = c.loss if c.score == "loss" else c.score
        return self.each(lambda features: self._error(kind, features).mean(1), self.prepare(x).float())

    def _error(self, kind: Literal["ssim", "mse"], features: torch.Tensor) -> torch.Tensor:
        y = self.autoencoder(features)
        return squared_error(features, y) if kind == "mse" else ssim_error(features, y, window=WINDOW)
