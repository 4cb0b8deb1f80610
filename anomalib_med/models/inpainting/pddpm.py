"""pDDPM: one part of an image after the other is noised, and denoised in the light of the rest.

Behrendt et al., MIDL 2023, https://arxiv.org/abs/2303.03758; details as in the official code,
FinnBehrendt/patched-Diffusion-Models-UAD.
"""

from typing import cast

import torch
from pydantic import Field
from torch import nn

from anomalib_med.models.filters import median_filter
from anomalib_med.models.inpainting import diffusion
from anomalib_med.models.inpainting.holes import block_holes, seeded
from anomalib_med.models.losses import absolute_error

WINDOW = 5  # of the median, in pixels, as in the official code


class PatchedDiffusion(diffusion.Diffusion):
    """Noises one patch at a time and gives it anew from what is left of it and from all around it.

    At scoring the noise is the same for every image, and each patch is denoised in one step.
    """

    name = "pddpm"
    title = "pDDPM, patched diffusion (Behrendt et al., MIDL 2023)"
    input_size = 96

    class Config(diffusion.DiffusionConfig):
        """Settings of patched diffusion; defaults are those of the official code unless something else is said."""

        epochs: int = Field(1600, ge=1)
        start: int = Field(500, ge=1, le=diffusion.TIMES)
        patches: int = Field(2, ge=1)
        """Rows and columns of patches that an image is cut into. One at a time is noised."""
        period: float = Field(0.67, gt=0)
        widths: tuple[int, ...] = Field((128, 256, 256), min_length=2)
        average: float = Field(0.999, ge=0, lt=1)

        @property
        def multiple(self) -> int:
            """The sides are cut into patches, and halved between the resolutions of the U-Net."""
            return self.patches * super().multiple

    config: Config

    def loss(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Absolute error of one patch of each image, noised to a random time."""
        patches = block_holes((x.shape[2], x.shape[3]), self.config.patches)
        hole = patches[torch.randint(len(patches), (len(x),))].to(x.device)
        times = torch.randint(diffusion.TIMES, (len(x),))
        y = self._denoised(self.unet, x, hole, times, self.noise(x, len(x)))
        return {"patch": absolute_error(x, y)[hole[:, None].expand_as(x)].mean()}

    def inpainted(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``(B, C, H, W)`` put together of their patches, each noised and denoised."""
        c = self.config
        patches = block_holes((x.shape[2], x.shape[3]), c.patches).to(self.device)
        times = torch.full((len(patches),), c.start - 1)

        def one(image: torch.Tensor) -> torch.Tensor:
            noise = self.noise(image, 1, seeded(c.seed)).expand(len(patches), -1, -1, -1)
            repeated = (2 * image - 1).expand(len(patches), -1, -1, -1)
            y = self._denoised(self.ema, repeated, patches, times, noise).clamp(-1, 1)
            return ((y * patches[:, None]).sum(0, keepdim=True) + 1) / 2

        return torch.cat([one(image[None]) for image in x.to(self.device)])

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        """Absolute difference ``(B, H, W)``, mean over channels, median of 5 x 5 pixels."""
        return median_filter(absolute_error(x, self.inpainted(x)).mean(1), WINDOW)

    def _denoised(
        self, network: nn.Module, x: torch.Tensor, hole: torch.Tensor, times: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """Images in [-1, 1] as the network gives them where their holes ``(B, H, W)`` were noised."""
        seen = torch.where(hole[:, None], diffusion.noised(x, noise, diffusion.cosine_alpha_bar()[times]), x)
        # The network adds to what it sees, from which it starts.
        return seen + cast(torch.Tensor, network(seen, times.to(x.device)))
