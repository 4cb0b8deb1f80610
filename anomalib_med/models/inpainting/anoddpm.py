"""AnoDDPM: coarse noise is laid over an image and taken away again by a diffusion model of the healthy.

Wyatt et al., CVPR Workshops 2022; details as in the official code, Julian-Wyatt/AnoDDPM.
"""

import torch
from pydantic import Field, model_validator
from torch.optim import AdamW, Optimizer

from anomalib_med.models.inpainting import diffusion
from anomalib_med.models.inpainting.holes import seeded
from anomalib_med.models.inpainting.residuals import Window, mean_error
from anomalib_med.models.losses import squared_error


class AnoDDPM(diffusion.Diffusion):
    """Learns to take simplex noise from normal images; what an abnormal one loses with the noise is abnormal.

    At scoring the noise is the same for every image and no more is drawn on the way back.
    """

    name = "anoddpm"
    title = "AnoDDPM, diffusion with simplex noise (Wyatt et al., CVPR Workshops 2022)"
    input_size = 64

    class Config(diffusion.DiffusionConfig):
        """Settings of AnoDDPM; defaults are those of the official code unless something else is said."""

        steps: int = Field(50_000, ge=0)
        batch_size: int = Field(16, ge=1)
        clip_norm: float = Field(1.0, ge=0)
        longest: int = Field(800, ge=1, le=diffusion.TIMES)
        """Training noises to times below this, from 1 to 1000."""
        denoising_steps: int = Field(10, ge=1)
        """Steps from `start` back to the image. The official code takes every time; ours are fewer for speed."""
        draws: int = Field(5, ge=1)
        """How many noises the denoised image is averaged over."""
        window: Window = 5
        """Side of the square over which the map is averaged, in pixels, odd; ours."""

        @model_validator(mode="after")
        def _fitting(self) -> "AnoDDPM.Config":
            if not self.denoising_steps <= self.start <= self.longest:
                raise ValueError("denoising_steps must not exceed start, nor start longest: that was never trained")
            return self

    config: Config

    def optimizers(self) -> dict[str, Optimizer]:
        """AdamW as in the paper."""
        c = self.config
        return {"all": AdamW(self.unet.parameters(), c.learning_rate, weight_decay=c.weight_decay)}

    def loss(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Squared error of the noise, at random times."""
        times = torch.randint(self.config.longest, (len(x),))
        noise = self.noise(x, len(x))
        predicted = self.unet(diffusion.noised(x, noise, diffusion.linear_alpha_bar()[times]), times.to(x.device))
        return {"noise": squared_error(noise, predicted).mean()}

    def noised(self, x: torch.Tensor) -> torch.Tensor:
        """An image ``(1, C, H, W)`` as it is noised for its score: ``(draws, C, H, W)``, about [-1, 1]."""
        c = self.config
        alpha_bar = diffusion.linear_alpha_bar()[[c.start - 1]]
        return diffusion.noised(2 * x - 1, self.noise(x, c.draws, seeded(c.seed)), alpha_bar)

    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``(B, C, H, W)`` noised and denoised, the mean over the noises."""
        c, alpha_bar = self.config, diffusion.linear_alpha_bar()
        times = torch.linspace(c.start - 1, 0, c.denoising_steps + 1).round().int().tolist()[:-1]
        noised = (self.noised(image[None]) for image in x.to(self.device))
        return (torch.stack([diffusion.denoised(self.ema, y, alpha_bar, times).mean(0) for y in noised]) + 1) / 2

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        """Squared difference ``(B, H, W)``, averaged over channels and over `window`."""
        return mean_error("l2", x, self.reconstruct(x), self.config.window)
