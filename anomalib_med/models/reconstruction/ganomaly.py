"""GANomaly: an image is encoded, decoded and encoded again; the two codes of a normal image agree.

Akcay et al., "GANomaly: Semi-Supervised Anomaly Detection via Adversarial Training", ACCV 2018,
https://arxiv.org/abs/1805.06725.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch.optim import Adam, Optimizer

from anomalib_med.models.blocks import DenseAutoencoder, dense_encoder
from anomalib_med.models.losses import absolute_error, squared_error
from anomalib_med.models.reconstruction.code_config import CodeConfig
from anomalib_med.models.training.normals import StepBatch
from anomalib_med.models.training.trainer import TrainedDetector


class Ganomaly(TrainedDetector):
    """An autoencoder trained against a discriminator, with a second encoder for its reconstructions.

    The score is the distance between the code of an image and that of its reconstruction; the anomaly map is the
    squared error of the reconstruction.
    """

    name = "ganomaly"
    title = "GANomaly (Akcay et al., ACCV 2018)"
    input_size = 64

    class Config(CodeConfig):
        """Settings of GANomaly; the weights of the losses are those of the paper."""

        learning_rate: float = Field(2e-4, gt=0)
        adversarial: float = Field(1.0, ge=0)
        """Weight of the loss by which the discriminator's features of image and reconstruction agree."""
        context: float = Field(50.0, ge=0)
        """Weight of the loss by which the pixels of image and reconstruction agree."""
        encoder: float = Field(1.0, ge=0)
        """Weight of the loss by which the codes of image and reconstruction agree."""
        image: Literal["latent", "map"] = "latent"
        """What gives the score of an image: the codes, as in the paper ("latent"), or the map, pooled ("map")."""

    config: Config

    def build(self, shape: tuple[int, ...]) -> None:
        """Build generator, second encoder and discriminator."""
        c = self.config
        self.generator = DenseAutoencoder(shape, c.widths, c.latent, c.hidden)
        self.encoder = dense_encoder(shape, c.widths, c.hidden, c.latent)
        self.discriminator = dense_encoder(shape, c.widths, c.hidden, 1)

    def optimizers(self) -> dict[str, Optimizer]:
        """One for generator and second encoder, one for the discriminator."""
        c = self.config

        def adam(*weights: torch.nn.Parameter) -> Optimizer:
            return Adam(weights, c.learning_rate, betas=(0.5, 0.999), weight_decay=c.weight_decay)

        return {
            "generator": adam(*self.generator.parameters(), *self.encoder.parameters()),
            "discriminator": adam(*self.discriminator.parameters()),
        }

    def training_step(self, batch: StepBatch) -> dict[str, torch.Tensor]:
        """The three losses of the generator, or that of the discriminator, as `batch.optimizer` says."""
        c, x = self.config, batch.x
        if batch.optimizer == "discriminator":
            with torch.no_grad():
                reconstructed = self.generator(x)
            real, false = self.discriminator(x).float(), self.discriminator(reconstructed).float()
            # Softplus of the negative logit is the cross entropy with label 1.
            return {"discriminator": 0.5 * (F.softplus(-real) + F.softplus(false)).mean()}
        z = self.generator.encode(x)
        reconstructed = self.generator.decode(z)
        features = [self.discriminator.features(image) for image in (x, reconstructed)]
        # The paper's images lie in [-1, 1], where an absolute error is twice as large.
        return {
            "adversarial": c.adversarial * squared_error(*features).mean(),
            "context": c.context * 2 * absolute_error(x, reconstructed).mean(),
            "encoder": c.encoder * squared_error(z, self.encoder(reconstructed)).mean(),
        }

    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        """Reconstructions ``(B, C, H, W)``."""
        return self.each(lambda one: self.generator(one).float(), x)

    def compute_map(self, x: torch.Tensor) -> torch.Tensor:
        """Squared error ``(B, H, W)``, mean over channels."""
        return squared_error(x, self.generator(x)).mean(1)

    def image_score(self, x: torch.Tensor, maps: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Mean squared difference of the two codes, or the pooled map."""
        if self.config.image == "map":
            return super().image_score(x, maps, valid)

        def distance(one: torch.Tensor) -> torch.Tensor:
            z = self.generator.encode(one)
            return squared_error(z, self.encoder(self.generator.decode(z))).mean(1)

        return self.each(distance, x)
