"""GANomaly: an image is encoded, decoded and encoded again; the two codes of a normal image agree."""

from typing import Literal

import torch
from pydantic import Field
from torch.optim import Optimizer

from anomalib_med.models.blocks import DenseAutoencoder, dense_encoder
from anomalib_med.models.losses import absolute_error, squared_error
from anomalib_med.models.reconstruction.base import CodeConfig, Reconstruction
from anomalib_med.models.training import StepBatch


class Ganomaly(Reconstruction):
    """An autoencoder trained against a discriminator, with a second encoder for its reconstructions.

    The score is the distance between the code of an image and that of its reconstruction.
    """

    name = "ganomaly"
    title = "GANomaly (Akcay et al., ACCV 2018)"

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
        pairs = {"generator": (self.generator, self.encoder), "discriminator": (self.discriminator,)}
        return {name: self.adam(*networks, betas=(0.5, 0.999)) for name, networks in pairs.items()}

    def training_step(self, batch: StepBatch) -> dict[str, torch.Tensor]:
        """The three losses of the generator, or that of the discriminator, as `batch.optimizer` says."""
        c, x = self.config, batch.x
        if batch.optimizer == "discriminator":
            return {"discriminator": 0.5 * self.cross_entropy(self.discriminator, x, label=1)}
        z = self.generator.encode(x)
        reconstructed = self.generator.decode(z)
        features = [self.discriminator.features(image) for image in (x, reconstructed)]
        # The paper's images lie in [-1, 1], where an absolute error is twice as large.
        return {
            "adversarial": c.adversarial * squared_error(*features).mean(),
            "context": c.context * 2 * absolute_error(x, reconstructed).mean(),
            "encoder": c.encoder * squared_error(z, self.encoder(reconstructed)).mean(),
        }

    def reconstructed(self, x: torch.Tensor) -> torch.Tensor:
        """Reconstructions ``(B, C, H, W)``."""
        return self.generator.decode(self.generator.encode(x))

    def own_score(self, x: torch.Tensor) -> torch.Tensor:
        """Mean squared difference ``(B,)`` of the two codes."""
        z = self.generator.encode(x)
        return squared_error(z, self.encoder(self.generator.decode(z))).mean(1)
