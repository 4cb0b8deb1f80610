"""Folds batch norms into the convolutions before them: the same function with fewer passes over memory."""

import copy
from collections import Counter

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Conv = nn.Conv2d | nn.ConvTranspose2d


def inference_copy(network: nn.Module, example: torch.Tensor | list[torch.Tensor]) -> nn.Module:
    """A copy in evaluation mode with its batch norms folded and its weights laid out with the channels last.

    Parameters
    ----------
    network
        A trained network; it is left as it is.
    example
        See :func:`fuse_batch_norms`.
    """
    copied = copy.deepcopy(network).eval()
    fuse_batch_norms(copied, example)
    return copied.to(memory_format=torch.channels_last)


def fuse_batch_norms(network: nn.Module, example: torch.Tensor | list[torch.Tensor]) -> int:
    """Fold every batch norm whose input is the output of a convolution, in place.

    Running the network once shows which these are, so it works for any network. An activation that timm keeps inside
    its norm layer stays.

    Parameters
    ----------
    network
        Any network in evaluation mode.
    example
        An input to run it on, passed to ``network.forward_features`` or, where there is none, to ``network``.

    Returns
    -------
    How many were folded.
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

    handles = [m.register_forward_hook(after_conv) for m in network.modules() if isinstance(m, Conv)]
    handles += [m.register_forward_pre_hook(before_norm) for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    try:
        with torch.inference_mode():
            getattr(network, "forward_features", network)(example)
    finally:
        for handle in handles:
            handle.remove()
    names = {module: name for name, module in network.named_modules()}
    once = {norm: conv for norm, conv in pairs.items() if uses[norm] == uses[conv] == 1}
    for norm, conv in once.items():
        fused = fuse_conv_bn_eval(conv, norm, transpose=isinstance(conv, nn.ConvTranspose2d))
        network.set_submodule(names[conv], fused)
        network.set_submodule(names[norm], _activation_of(norm))
    return len(once)


def _activation_of(norm: nn.Module) -> nn.Module:
    parts = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if isinstance(part, nn.Module)]
    return nn.Sequential(*parts) if parts else nn.Identity()
