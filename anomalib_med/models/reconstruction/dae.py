"""DAE: a U-Net that takes coarse noise away, and with it what no normal image has (Kascenas et al., MIDL 2022)."""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn
from torch.optim import Optimizer

from anomalib_med.models.blocks import UNet
from anomalib_med.models.filters import mean_filter, median_filter
from anomalib_med.models.losses import squared_error
from anomalib_med.models.pooling import pool
from anomalib_med.models.reconstruction.base import Reconstruction
from anomalib_med.models.training import Schedule, StepBatch, TrainingConfig

WINDOW = 5  # of the median and of the erosion, in pixels, as in the official code
ERODED = 0.95  # of a window must be valid


class DenoisingAutoencoder(Reconstruction):
    """Learns to remove coarse noise from normals; at scoring no noise is added, and what is removed is abnormal."""

    name = "dae"
    title = "DAE, denoising autoencoder with coarse noise (Kascenas et al., MIDL 2022)"
    input_size = 128
    error = "l1"

    class Config(TrainingConfig):
        """Settings of the denoising autoencoder; defaults are those of the paper, but for its 67,200 steps."""

        pooling: str = "mean"
        steps: int = Field(10_000, ge=0)
        batch_size: int = Field(16, ge=1)
        learning_rate: float = Field(1e-4, gt=0)
        weight_decay: float = Field(1e-5, ge=0)
        schedule: Schedule = "cosine"
        clip_norm: float = Field(0.5, ge=0)
        noise: float = Field(0.2, gt=0)
        """Standard deviation of the noise, where the image lies in [0, 1]."""
        noise_grid: int = Field(16, ge=2)
        """Side of the square of random numbers that is enlarged to the image: the smaller, the coarser the noise."""
        noise_offset: float = 0.0
        """Mean of the noise. It is -0.5 in MedIAnomaly's code."""
        widths: tuple[int, ...] = Field((64, 128, 256, 512), min_length=2)
        """Channels of the U-Net at each resolution, finest first."""

        @property
        def multiple(self) -> int:
            """The sides are halved between the resolutions of the U-Net."""
            return 1 << (len(self.widths) - 1)

    config: Config

    def build(self, shape: tuple[int, ...]) -> None:
        """Build the U-Net."""
        self.unet = UNet(shape[0], self.config.widths, activation=nn.SiLU, standardised=True)

    def optimizers(self) -> dict[str, Optimizer]:
        """The paper's Adam, with AMSGrad."""
        return {"all": self.adam(self.unet, amsgrad=True)}

    def training_step(self, batch: StepBatch) -> dict[str, torch.Tensor]:
        """Squared error of the denoised image, over the valid area."""
        area = batch.valid[:, None].float()
        denoised = self.unet(batch.x + self.noise(batch.x) * area)
        return {"error": (squared_error(batch.x, denoised) * area).mean()}

    def reconstructed(self, x: torch.Tensor) -> torch.Tensor:
        """Denoised images ``(B, C, H, W)``."""
        y: torch.Tensor = self.unet(x)
        return y

    def compute_map(self, x: torch.Tensor) -> torch.Tensor:
        """Absolute difference ``(B, H, W)``, mean over channels, median of 5 x 5 pixels."""
        return median_filter(super().compute_map(x), WINDOW)

    def image_score(self, x: torch.Tensor, maps: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """The map pooled where a window around a pixel is valid: the rim of the body is no finding."""
        return pool(maps, mean_filter(valid.float(), WINDOW) > ERODED, self.config.pooling)

    def noise(self, x: torch.Tensor) -> torch.Tensor:
        """Coarse noise in the shape of images, rolled by random numbers of pixels."""
        c = self.config
        grid = torch.randn(*x.shape[:2], c.noise_grid, c.noise_grid, device=x.device) * c.noise + c.noise_offset
        noise = F.interpolate(grid, x.shape[2:], mode="bilinear", align_corners=True)
        rows, columns = (int(torch.randint(side, ())) for side in x.shape[2:])
        return noise.roll((rows, columns), (2, 3))
