"""Folds batch norms into the convolutions before them: the same function with fewer passes over memory."""

import copy
from collections import Counter
from contextlib import ExitStack

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Conv = nn.Conv2d | nn.ConvTranspose2d


def inference_copy(network: nn.Module, example: torch.Tensor | list[torch.Tensor]) -> nn.Module:
    """A copy in evaluation mode with batch norms folded, see :func:`fuse_batch_norms`, and channels laid out last."""
    copied = copy.deepcopy(network).eval()
    fuse_batch_norms(copied, example)
    return copied.to(memory_format=torch.channels_last)


def fuse_batch_norms(network: nn.Module, example: torch.Tensor | list[torch.Tensor]) -> int:
    """Fold every batch norm whose input is the output of a convolution, in place; returns how many were folded.

    Running the network, which is in evaluation mode, on the example shows which these are, so it works for any network.
    The example goes to ``network.forward_features`` where there is such. An activation that timm keeps inside its norm
    layer stays.
    """
    made_by: dict[int, tuple[Conv, torch.Tensor]] = {}  # an id names one tensor only while that is alive
    pairs: dict[nn.BatchNorm2d, Conv] = {}
    uses: Counter[nn.Module] = Counter()

    def after_conv(conv: Conv, _: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        made_by[id(output)] = conv, output
        uses[conv] += 1

    def before_norm(norm: nn.BatchNorm2d, inputs: tuple[torch.Tensor, ...]) -> None:
        if id(inputs[0]) in made_by:
            pairs[norm], _ = made_by[id(inputs[0])]
        uses[norm] += 1

    with ExitStack() as hooks, torch.inference_mode():
        for module in network.modules():
            if isinstance(module, Conv):
                hooks.enter_context(module.register_forward_hook(after_conv))
            elif isinstance(module, nn.BatchNorm2d):
                hooks.enter_context(module.register_forward_pre_hook(before_norm))
        getattr(network, "forward_features", network)(example)
    names = {module: name for name, module in network.named_modules()}
    once = {norm: conv for norm, conv in pairs.items() if uses[norm] == uses[conv] == 1}
    for norm, conv in once.items():
        fused = fuse_conv_bn_eval(conv, norm, transpose=isinstance(conv, nn.ConvTranspose2d))
        network.set_submodule(names[conv], fused)
        network.set_submodule(names[norm], _activation_of(norm))
    return len(once)


def _activation_of(norm: nn.Module) -> nn.Module:
    parts = [part for name in ("drop", "act") if isinstance(part := getattr(norm, name, None), nn.Module)]
    return nn.Sequential(*parts) if parts else nn.Identity()
