"""SQUID: parts of an image are in-painted from memories of healthy anatomy at their place, and a critic judges.

Xiang et al., CVPR 2023, https://arxiv.org/abs/2111.13495; details as in the official code, tiangexiang/SQUID. With
memory="matrix" and shortcut=0 the memory is that of SimSID, https://arxiv.org/abs/2403.08689.
"""

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch.optim import Adam, Optimizer

from anomalib_med.models.inpainting.residuals import ResidualConfig, ResidualDetector, mean_error
from anomalib_med.models.inpainting.squid_parts import Discriminator, SquidNetwork
from anomalib_med.models.losses import squared_error
from anomalib_med.models.standard import Standard
from anomalib_med.models.training import Schedule, StepBatch

RECONSTRUCTION, TEACHER, ADVERSARIAL = 10.0, 0.01, 0.005  # weights of losses, official code


class Squid(ResidualDetector):
    """In-paints the features of an image from a memory of normals; a discriminator tells how normal that looks.

    The anomaly map is our own: the absolute difference between the image and what was in-painted.
    """

    name = "squid"
    title = "SQUID, in-painting of features from space-aware memory queues (Xiang et al., CVPR 2023)"
    at_once = 0  # what was in-painted of a batch is kept between its map and its scores

    class Config(ResidualConfig):
        """Settings of SQUID; defaults are those of the official code."""

        epochs: int = Field(200, ge=1)
        batch_size: int = Field(16, ge=1)
        weight_decay: float = Field(1e-5, ge=0)
        schedule: Schedule = "cosine"
        augment: bool = True
        score: Literal["discriminator", "residual"] = "discriminator"
        """What gives the score of an image: the discriminator, as published, or the map, pooled ("residual")."""
        memory: Literal["queue", "matrix"] = "queue"
        """Memory of the encoder: a "queue" of features of recent normals, or a learnt "matrix", as in SimSID."""
        patches: int = Field(2, ge=1)
        """Rows and columns of patches that an image is cut into."""
        slots: int = Field(200, ge=1)
        """How many slots each memory has."""
        topk: int = Field(5, ge=1)
        """How many slots are read at once."""
        shortcut: float = Field(0.05, ge=0, le=1)
        """Share of places at which, in training, what was not in-painted passes; 0 in SimSID."""
        distillation: float = Field(0.001, ge=0)
        """Weight of the difference between the decoders of student and teacher."""
        critic: int = Field(2, ge=1)
        """Steps of the discriminator for each step of the generator."""
        width: int = Field(32, ge=8, multiple_of=8)
        """Channels at the first resolution, a multiple of 8; they double four times. 8 costs a sixteenth of 32."""

        @property
        def multiple(self) -> int:
            """A patch is halved four times, the image five times by the discriminator, to more than one pixel."""
            return 32 * max(2, self.patches)

    config: Config
    _made: torch.Tensor | None = None  # by the generator in this step

    def build(self, shape: tuple[int, ...]) -> None:
        """Build generator and discriminator."""
        c = self.config
        learnt = c.memory == "matrix"
        self.network = SquidNetwork(shape, c.width, c.patches, c.shortcut, c.slots, c.topk, learnt=learnt)
        self.discriminator = Discriminator(shape)
        self.judged = Standard(())

    def optimizers(self) -> dict[str, Optimizer]:
        """Adam for the generator and for the discriminator."""
        c, betas = self.config, (0.5, 0.999)
        generator = Adam(self.network.parameters(), c.learning_rate, betas, eps=1e-7, weight_decay=c.weight_decay)
        return {"generator": generator, "discriminator": Adam(self.discriminator.parameters(), c.learning_rate, betas)}

    def training_step(self, batch: StepBatch) -> dict[str, torch.Tensor]:
        """Losses of the generator, at every `critic`-th step, or of the discriminator."""
        c, x = self.config, batch.x
        if batch.optimizer == "discriminator":
            real, fake = self.discriminator(x), self.discriminator(self._fakes(x))
            return {"discriminator": ADVERSARIAL * (_bce(real, 1.0) + _bce(fake, 0.0))}
        if batch.step % c.critic and self.network.training:
            return {}
        out = self.network(x, teach=True)
        if self.network.training:
            self.network.inpainting.remember()
            self._made = out.image.detach()
        distances = [F.mse_loss(student.float(), teacher.float()) for student, teacher in out.levels]
        return {
            "reconstruction": RECONSTRUCTION * squared_error(x, out.image).mean(),
            "teacher": TEACHER * squared_error(x, out.taught).mean(),
            "distillation": c.distillation * torch.stack(distances).sum(),
            "adversarial": ADVERSARIAL * _bce(self.discriminator(out.image), 1.0),
        }

    def after_training(self, batches: Iterator[StepBatch]) -> None:
        """Learn from the normals what the discriminator says of them, and what residuals are like."""
        values: list[torch.Tensor] = []

        def residuals() -> Iterator[torch.Tensor]:
            for batch in batches:
                values.append(self.each(self.discriminator.judge, self.inpainted(batch.x)))
                yield self.residual(batch.x)

        self.normal.learn(residuals())
        judged = torch.cat(values)
        self.judged.mean.copy_(judged.mean())
        self.judged.deviation.copy_(judged.std(correction=0).clamp_min(1e-6))

    def inpainted(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``(B, C, H, W)`` made of in-painted features; those of the last inputs are kept."""
        if self._last is None or self._last[0] is not x:
            self._last = (x, self.each(lambda one: self.network(one).image, x))
        return self._last[1]

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        """Absolute difference ``(B, H, W)`` to what was in-painted, averaged over channels and 5 x 5 pixels."""
        return mean_error("l1", x, self.inpainted(x))

    def image_score(self, x: torch.Tensor, maps: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """``1 - sigmoid((judge(y) - mean) / deviation)`` of the in-painted image y, in double; or the map pooled."""
        if self.config.score == "residual":
            return super().image_score(x, maps, valid)
        judged = self.each(self.discriminator.judge, self.inpainted(x)).double()
        return torch.sigmoid(-self.judged(judged))

    def _fakes(self, x: torch.Tensor) -> torch.Tensor:
        """What the generator made of `x` for its own optimizer in this step; anew where it made nothing."""
        made, self._made = self._made, None
        with torch.no_grad():
            return self.network(x).image if made is None else made


def _bce(values: torch.Tensor, target: float) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(values.float(), torch.full_like(values, target, dtype=torch.float32))
