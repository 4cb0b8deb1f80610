"""pDDPM: one part of an image after the other is noised, and denoised in the light of the rest.

Behrendt et al., "Patched Diffusion Models for Unsupervised Anomaly Detection in Brain MRI", MIDL 2023,
https://arxiv.org/abs/2303.03758; details as in the official code, FinnBehrendt/patched-Diffusion-Models-UAD.
"""

import copy
from collections.abc import Iterator

import torch
from pydantic import Field
from torch import nn

from anomalib_med.models.inpainting.diffusion import TIMES, DenoisingUNet, cosine_signal, follow, noised
from anomalib_med.models.inpainting.holes import block_holes, seeded
from anomalib_med.models.inpainting.noise import noise_like
from anomalib_med.models.inpainting.residuals import NormalResiduals
from anomalib_med.models.losses import absolute_error, median_filter
from anomalib_med.models.training.normals import StepBatch
from anomalib_med.models.training.schedule import TrainingConfig
from anomalib_med.models.training.trainer import TrainedDetector

WINDOW = 5  # of the median, in pixels, as in the official code


class PatchedDiffusion(TrainedDetector):
    """Noises one patch at a time and gives it anew from what is left of it and from all around it.

    At scoring the noise is the same for every image, and each patch is denoised in one step. The anomaly map is the
    absolute difference, its median over 5 x 5 pixels.
    """

    name = "pddpm"
    title = "pDDPM, patched diffusion (Behrendt et al., MIDL 2023)"
    input_size = 96
    at_once = 0

    class Config(TrainingConfig):
        """Settings of patched diffusion.

        Parameters
        ----------
        start
            Time from 1 to 1000 to which a patch is noised at scoring.
        patches
            Rows and columns of patches that an image is cut into.
        period
            Of the coarsest simplex noise, as a part of the shorter side.
        octaves, persistence
            See :func:`anomalib_med.models.inpainting.noise.octaves_of_noise`.
        relative
            Whether the map counts in deviations above what normals have at that place; False: as in the paper.
        widths
            Channels of the U-Net at each resolution, finest first.
        average
            Decay of the running mean of the weights, which is what scores; 0: the last weights, as in the paper.
        """

        pooling: str = "mean"
        epochs: int = Field(1600, ge=1)
        batch_size: int = Field(32, ge=1)
        learning_rate: float = Field(1e-4, gt=0)
        start: int = Field(500, ge=1, le=TIMES)
        patches: int = Field(2, ge=1)
        period: float = Field(0.67, gt=0)
        octaves: int = Field(6, ge=1)
        persistence: float = Field(0.8, gt=0)
        relative: bool = True
        widths: tuple[int, ...] = Field((128, 256, 256), min_length=2)
        average: float = Field(0.999, ge=0, lt=1)

        @property
        def multiple(self) -> int:
            """The sides are cut into patches, and halved between the resolutions of the U-Net."""
            return self.patches << (len(self.widths) - 1)

    config: Config

    def build(self, shape: tuple[int, ...]) -> None:
        """The U-Net and the running mean of its weights, for images ``(C, H, W)``."""
        self.unet = DenoisingUNet(shape[0], self.config.widths)
        self.mean = copy.deepcopy(self.unet).requires_grad_(False)
        self.normal = NormalResiduals((shape[1], shape[2]))

    def training_step(self, batch: StepBatch) -> dict[str, torch.Tensor]:
        """Absolute error of one patch of each image, noised to a random time."""
        if self.unet.training:
            follow(self.mean, self.unet, batch.step, self.config.average)
        x = 2 * batch.x - 1
        patches = block_holes((x.shape[2], x.shape[3]), self.config.patches)
        hole = patches[torch.randint(len(patches), (len(x),))].to(x.device)
        y = self._denoised(self.unet, x, hole, torch.randint(TIMES, (len(x),)), noise_like(x, len(x), self.config))
        return {"patch": absolute_error(x, y)[hole[:, None].expand_as(x)].mean()}

    def after_training(self, batches: Iterator[StepBatch]) -> None:
        """What residuals of normals are like."""
        self.normal.learn(self.residual(batch.x) for batch in batches)

    def inpainted(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``(B, C, H, W)`` put together of their patches, each noised and denoised."""
        c = self.config
        patches = block_holes((x.shape[2], x.shape[3]), c.patches).to(self.device)
        times = torch.full((len(patches),), c.start - 1)

        def one(image: torch.Tensor) -> torch.Tensor:
            noise = noise_like(image, 1, c, seeded(c.seed)).expand(len(patches), -1, -1, -1)
            turns = (2 * image - 1).expand(len(patches), -1, -1, -1)
            y = self._denoised(self.mean, turns, patches, times, noise).clamp(-1, 1)
            return ((y * patches[:, None]).sum(0, keepdim=True) + 1) / 2

        return torch.cat([one(image[None]) for image in x.to(self.device)])

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        """Absolute difference ``(B, H, W)``, mean over channels, median of 5 x 5 pixels."""
        return median_filter(absolute_error(x.to(self.device), self.inpainted(x)).mean(1), WINDOW)

    def compute_map(self, x: torch.Tensor) -> torch.Tensor:
        """The residual ``(B, H, W)``, relative to those of normals or as it is."""
        residual = self.residual(x)
        return self.normal(residual) if self.config.relative else residual

    def _denoised(
        self, network: nn.Module, x: torch.Tensor, hole: torch.Tensor, times: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """Images in [-1, 1] as the network gives them where their holes ``(B, H, W)`` were noised."""
        seen = torch.where(hole[:, None], noised(x, noise, cosine_signal()[times]), x)
        # The network adds to what it sees, from which it starts.
        y: torch.Tensor = seen + network(seen, times.to(x.device))
        return y
