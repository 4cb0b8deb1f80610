"""What reconstructions share: settings, the error as a map, the choice between a score of their own and the map's."""

from abc import abstractmethod
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from anomalib_med.models.losses import PixelError, pixel_error
from anomalib_med.models.training import TrainedDetector, TrainingConfig


class LatentConfig(TrainingConfig):
    """Settings of a detector that reconstructs an image from a few numbers."""

    pooling: str = "mean"
    latent: int = Field(16, ge=1)
    """How many numbers an image is reconstructed from."""
    widths: tuple[int, ...] = Field((16, 32, 64, 64), min_length=1)
    """Channels of the encoder at each halving of the image."""

    @property
    def multiple(self) -> int:
        """The sides of the input are halved once for each width."""
        return 1 << len(self.widths)


class CodeConfig(LatentConfig):
    """The same with fully connected layers around the numbers; defaults are those of MedIAnomaly."""

    epochs: int = Field(250, ge=1)
    batch_size: int = Field(64, ge=1)
    hidden: int = Field(1024, ge=1)
    """Width of the layer between the feature map and the latent numbers."""


class Reconstruction(TrainedDetector):
    """A detector that reconstructs the image; its map is the `error` of that, unless it has a map of its own.

    One whose setting `image` has a choice beside "map" gives :meth:`own_score`.
    """

    input_size = 64
    error: ClassVar[PixelError] = "l2"

    @abstractmethod
    def reconstructed(self, x: torch.Tensor) -> torch.Tensor:
        """Reconstructions of images ``(B, C, H, W)`` on the detector's device."""

    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        """Reconstructions of images ``(B, C, H, W)``, each of which depends on its image alone."""
        return self.each(lambda one: self.reconstructed(one).float(), x)

    def compute_map(self, x: torch.Tensor) -> torch.Tensor:
        """Error of the reconstruction ``(B, H, W)``, mean over channels."""
        return pixel_error(self.error, x, self.reconstructed(x)).mean(1)

    def own_score(self, x: torch.Tensor) -> torch.Tensor:
        """Scores ``(B,)`` of images ``(B, C, H, W)`` on the detector's device, from more than their maps."""
        raise NotImplementedError

    def image_score(self, x: torch.Tensor, maps: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """:meth:`own_score` of each image, or its pooled map: as the setting `image` says, without it the latter."""
        if getattr(self.config, "image", "map") == "map":
            return super().image_score(x, maps, valid)
        return self.each(self.own_score, x)

    def cross_entropy(self, discriminator: nn.Module, x: torch.Tensor, label: Literal[0, 1]) -> torch.Tensor:
        """Cross entropy of a discriminator, summed over images, which have this label, and reconstructions."""
        with torch.no_grad():
            copies = self.reconstructed(x)
        real, false = discriminator(x).float(), discriminator(copies).float()
        sign = 1 - 2 * label
        return (F.softplus(sign * real) + F.softplus(-sign * false)).mean()
