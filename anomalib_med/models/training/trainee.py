"""What the loop of a training knows of a detector: its networks, their losses and their optimizers."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from pydantic import JsonValue
from torch import nn
from torch.optim import Optimizer

from anomalib_med.models.base import Detector, DetectorConfig
from anomalib_med.models.training.normals import StepBatch
from anomalib_med.models.training.schedule import TrainingConfig


class Trainee(Detector):
    """The part of :class:`.trainer.TrainedDetector` that is trained."""

    Config: ClassVar[type[DetectorConfig]] = TrainingConfig
    holds_out: ClassVar[bool] = False
    """Whether a tenth of the normals' patients is kept from training in any case, for :meth:`after_training`."""
    config: TrainingConfig
    shape: tuple[int, ...] = ()
    """Shape of one image as training sees it; empty before :meth:`fit`."""

    @abstractmethod
    def training_step(self, batch: StepBatch) -> dict[str, torch.Tensor]:
        """Losses by name, each a scalar, whose sum is minimised.

        It is called for each optimizer, named `batch.optimizer`, in turn; one without losses takes no step.
        """

    def optimizers(self) -> dict[str, Optimizer]:
        """Optimizers by name, in the order of their steps; by default one Adam over all weights that learn."""
        return {"all": self.adam(*self.modules().values())}

    def adam(self, *networks: nn.Module, betas: tuple[float, float] = (0.9, 0.999), amsgrad: bool = False) -> Optimizer:
        """Adam for the weights of networks, with the learning rate and the weight decay of the settings."""
        c, weights = self.config, [p for network in networks for p in network.parameters() if p.requires_grad]
        return torch.optim.Adam(weights, c.learning_rate, betas, weight_decay=c.weight_decay, amsgrad=amsgrad)

    def before_training(self, batches: Iterator[StepBatch]) -> None:
        """Take what is needed of the normals before the first step, such as statistics for buffers of a module."""

    def after_training(self, batches: Iterator[StepBatch]) -> None:
        """Take what is needed of the normals after the last step, without gradients and in evaluation mode.

        `batches` are those held out, for `patience` or because the class `holds_out`, else those learnt from.
        """

    def modules(self) -> dict[str, nn.Module]:
        """The networks by the name of their attribute."""
        return {name: value for name, value in vars(self).items() if isinstance(value, nn.Module)}

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, JsonValue]]:
        """Weights and buffers of all networks, and the shape they were built for."""
        tensors = {f"{name}.{key}": v for name, m in self.modules().items() for key, v in m.state_dict().items()}
        return {key: value.detach().cpu() for key, value in tensors.items()}, {"shape": list(self.shape)}

    def load_weights(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Give the networks the weights and buffers that :meth:`state` gave."""
        for name, module in self.modules().items():
            module.load_state_dict(named(f"{name}.", tensors))


def named(start: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with `start`, without it."""
    return {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
