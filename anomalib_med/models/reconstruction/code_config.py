"""Settings that the reconstructions from a few numbers share."""

from pydantic import Field

from anomalib_med.models.training.schedule import TrainingConfig


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
