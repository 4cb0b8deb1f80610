"""Autoencoder with l2, l1, SSIM or perceptual loss, and any of them as the score.

The variants and sizes of Cai et al., "MedIAnomaly: A comparative study of anomaly detection in medical images", Medical
Image Analysis 2025, https://arxiv.org/abs/2404.04518. SSIM after Bergmann et al., VISAPP 2019,
https://arxiv.org/abs/1807.02011; perceptual after Shvetsova et al., IEEE Access 2021, https://arxiv.org/abs/2006.13265.
Constrained after Chen and Konukoglu, MIDL 2018, https://arxiv.org/abs/1806.04972.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field

from anomalib_med.models.blocks import DenseAutoencoder
from anomalib_med.models.losses import absolute_error, perceptual_error, squared_error, ssim_error
from anomalib_med.models.standard import Standard
from anomalib_med.models.training.normals import StepBatch
from anomalib_med.models.training.schedule import FeatureTrainingConfig
from anomalib_med.models.training.trainer import TrainedDetector

Error = Literal["l2", "l1", "ssim", "perceptual"]


class Autoencoder(TrainedDetector):
    """Reconstructs an image from a few numbers; what is not normal is reconstructed badly.

    The anomaly map is the error between image and reconstruction, of each pixel (l2, l1), around each pixel (SSIM), or
    of the features of a frozen network (perceptual). Loss and score are chosen apart.
    """

    name = "autoencoder"
    title = "Autoencoder with l2, l1, SSIM or perceptual loss (Cai et al., MedIAnomaly, MedIA 2025)"
    input_size = 64

    class Config(FeatureTrainingConfig):
        """Settings of the autoencoder. Those of the backbone matter to "perceptual" only.

        Parameters
        ----------
        loss
            What is minimised: "l2", "l1", "ssim" or "perceptual".
        score
            The same choice for the map; "loss": as trained.
        latent
            Numbers that an image is reconstructed from.
        widths
            Channels of the encoder at each halving of the image.
        hidden
            Width of the layer between the feature map and the latent numbers.
        bottleneck
            "dense": `latent` numbers for the whole image; "spatial": so many for each cell of the coarsest feature map.
        constraint
            Weight of the squared difference between the latent numbers of an image and of its reconstruction.
        """

        neighbourhood: int = Field(1, ge=1)
        pooling: str = "mean"
        epochs: int = Field(250, ge=1)
        batch_size: int = Field(64, ge=1)
        loss: Error = "perceptual"
        score: Error | Literal["loss"] = "loss"
        latent: int = Field(16, ge=1)
        widths: tuple[int, ...] = Field((16, 32, 64, 64), min_length=1)
        hidden: int = Field(1024, ge=1)
        bottleneck: Literal["dense", "spatial"] = "dense"
        constraint: float = Field(0.0, ge=0)

        @property
        def multiple(self) -> int:
            """The sides are halved once for each width."""
            return 1 << len(self.widths)

    config: Config

    @property
    def uses_features(self) -> bool:
        """Whether the error of the loss or of the map is the "perceptual" one."""
        return "perceptual" in (self.config.loss, self.config.score)

    def build(self, shape: tuple[int, ...]) -> None:
        """The autoencoder, for images ``(C, H, W)``."""
        c = self.config
        spatial = c.bottleneck == "spatial"
        self.autoencoder = DenseAutoencoder(shape, c.widths, c.latent, c.hidden, spatial=spatial)
        if self.uses_features:
            self.standard = Standard(self.extractor.backbone.channels[0])

    def before_training(self, batches: Iterator[StepBatch]) -> None:
        """Mean and standard deviation of each channel of the frozen features over the normals."""
        if not self.uses_features:
            return
        layers = self.extractor.layers
        self.standard.learn(layers(batch.x)[0] for batch in batches)

    def training_step(self, batch: StepBatch) -> dict[str, torch.Tensor]:
        """The error of the reconstruction, and of its latent numbers where that is asked for."""
        c = self.config
        z = self.autoencoder.encode(batch.x)
        reconstructed = self.autoencoder.decode(z)
        losses: dict[str, torch.Tensor] = {c.loss: self._error(c.loss, batch.x, reconstructed).mean()}
        if c.constraint:
            again = self.autoencoder.encode(reconstructed)
            losses["constraint"] = c.constraint * squared_error(z, again).mean()
        return losses

    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        """Reconstructions ``(B, C, H, W)``."""
        return self.each(lambda one: self.autoencoder(one).float(), x)

    def compute_map(self, x: torch.Tensor) -> torch.Tensor:
        """Error ``(B, h, w)``, averaged over channels; h and w are those of the input, or of the frozen features."""
        c = self.config
        kind: Error = c.loss if c.score == "loss" else c.score
        return self._error(kind, x, self.autoencoder(x)).mean(1)

    def _error(self, kind: Error, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if kind == "l2":
            return squared_error(x, y)
        if kind == "l1":
            return absolute_error(x, y)
        if kind == "ssim":
            return ssim_error(x, y)
        return perceptual_error(self._standardised(x), self._standardised(y))

    def _standardised(self, x: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.standard(self.extractor.layers(x)[0])
        return features
