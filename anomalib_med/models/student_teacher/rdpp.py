"""RD++: reverse distillation through projections that take out what noise did to the features.

Tien et al., "Revisiting Reverse Distillation for Anomaly Detection", CVPR 2023,
https://openaccess.thecvf.com/content/CVPR2023/html/Tien_Revisiting_Reverse_Distillation_for_Anomaly_Detection_CVPR_2023_paper.html.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn
from torch.optim import Optimizer

from anomalib_med.models.student_teacher.rd4ad import BETAS, ReverseConfig, ReverseDistillation
from anomalib_med.models.student_teacher.teaching import flat_cosine_distance, summed, teacher_layers
from anomalib_med.models.training import StepBatch

RECONSTRUCTION, CONTRAST, TOTAL = 0.01, 0.1, 1.11  # weights of the projection losses, official code
MARGIN = 0.5
OCTAVES, PERSISTENCE = 6, 0.6  # of the noise
SMALLEST_PATCH = 10  # pixels


class RDPlusPlus(ReverseDistillation):
    """Reverse distillation behind projections of the teacher's layers, trained on normals with patches of noise.

    The projection of a noisy image must give what that of the clean image gives, and must differ from what the teacher
    gives of the noisy image. Map and score are those of reverse distillation behind the projections.
    """

    name = "rdpp"
    title = "RD++, revisiting reverse distillation (Tien et al., CVPR 2023)"

    class Config(ReverseConfig):
        """Settings of RD++. `learning_rate` is that of bottleneck and decoder."""

        projection_rate: float = Field(1e-3, gt=0)
        """Learning rate of the projections, that of the official code."""
        projection_weight: float = Field(0.2, ge=0)
        """Weight of the losses of the projections beside the distance of the features, that of the official code."""
        noise: float = Field(0.2, gt=0)
        """Amplitude of the noise on the images, whose values lie in [0, 1]. The default is ours."""

    config: Config

    def build(self, shape: tuple[int, ...]) -> None:
        """Projections, bottleneck and decoder."""
        self.projections = nn.ModuleList(Projection(channels) for channels in self.extractor.backbone.channels)
        super().build(shape)

    def optimizers(self) -> dict[str, Optimizer]:
        """One Adam with the paper's two rates."""
        adam = self.adam(self.bottleneck, self.decoder, betas=BETAS)
        adam.add_param_group({"params": self.projections.parameters(), "lr": self.config.projection_rate})
        return {"all": adam}

    def training_step(self, batch: StepBatch) -> dict[str, torch.Tensor]:
        """Distillation of the clean images, and the projections' losses on clean and noisy ones."""
        count = len(batch.x)
        both = teacher_layers(self.extractor, torch.cat([batch.x, with_noise(batch.x, self.config.noise)]))
        projected = [projection(layer) for projection, layer in zip(self.projections, both, strict=True)]
        clean, noisy = [p[:count] for p in projected], [p[count:] for p in projected]
        returned = self.decoder(self.bottleneck(clean))
        alike = summed(flat_cosine_distance, clean, noisy)
        apart = summed(lambda t, c: (1 - flat_cosine_distance(t[count:], c) - MARGIN).clamp_min(0), both, clean)
        weight = self.config.projection_weight / TOTAL
        return {
            "distance": summed(lambda t, s: flat_cosine_distance(t[:count], s), both, returned).mean(),
            "reconstruction": weight * RECONSTRUCTION * alike.mean(),
            "contrast": weight * CONTRAST * apart.mean(),
        }

    def seen(self, given: list[torch.Tensor]) -> list[torch.Tensor]:
        """Projected layers, image by image: instance norms round differently in batches and in other memory layouts."""
        pairs = zip(self.projections, given, strict=True)
        return [torch.cat([projection(one[None]) for one in layer]) for projection, layer in pairs]


class Projection(nn.Sequential):
    """Four convolutions, each with an instance norm and a leaky ReLU, through a quarter of the channels."""

    def __init__(self, channels: int) -> None:
        half, quarter = max(1, channels // 2), max(1, channels // 4)
        parts: list[nn.Module] = []
        for i, o in pairwise((channels, half, quarter, half, channels)):
            parts += [nn.Conv2d(i, o, 3, padding=1), nn.InstanceNorm2d(o), nn.LeakyReLU(inplace=True)]
        super().__init__(*parts)


def with_noise(x: torch.Tensor, amplitude: float) -> torch.Tensor:
    """Images ``(B, C, H, W)`` with smooth noise in one square patch each, from 10 pixels to an eighth of the image."""
    noisy = x.clone()
    height, width = x.shape[2:]
    largest = max(SMALLEST_PATCH, min(height, width) // 8)
    for image in noisy:
        side = min(int(torch.randint(SMALLEST_PATCH, largest + 1, ())), height, width)
        top, left = int(torch.randint(height - side + 1, ())), int(torch.randint(width - side + 1, ()))
        patch = image[:, top : top + side, left : left + side]
        patch += amplitude * _fractal(height, width)[top : top + side, left : left + side].to(x.device)
    return noisy


def _fractal(height: int, width: int) -> torch.Tensor:
    """Noise of several octaves ``(H, W)`` with values of about -1 to 1."""
    total, weight, sizes = torch.zeros(1, 1, height, width), 1.0, 0.0
    for octave in range(OCTAVES):
        cells = [max(2, n * 2**octave // 64) for n in (height, width)]
        noise = torch.randn(1, 1, *cells).clamp(-2, 2) / 2
        total += weight * F.interpolate(noise, (height, width), mode="bicubic", align_corners=True)
        sizes += weight
        weight *= PERSISTENCE
    return total[0, 0] / sizes
