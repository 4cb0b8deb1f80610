"""Settings that the reconstructions from a few numbers share."""

from pydantic import Field

from anomalib_med.models.training.schedule import TrainingConfig


class CodeConfig(TrainingConfig):
    """Settings of a detector that reconstructs an image from a few numbers; defaults are MedIAnomaly's.

    Parameters
    ----------
    latent
        Numbers that an image is reconstructed from.
    widths
        Channels of the encoder at each halving of the image.
    hidden
        Width of the layer between the feature map and the latent numbers.
    """

    pooling: str = "mean"
    epochs: int = Field(250, ge=1)
    batch_size: int = Field(64, ge=1)
    latent: int = Field(16, ge=1)
    widths: tuple[int, ...] = Field((16, 32, 64, 64), min_length=1)
    hidden: int = Field(1024, ge=1)

    @property
    def multiple(self) -> int:
        """Sides of the input are halved once for each width."""
        return 1 << len(self.widths)
