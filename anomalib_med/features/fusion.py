"""Folds batch norms into the convolutions before them: the same function with fewer passes over memory."""

import copy

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Conv = nn.Conv2d | nn.ConvTranspose2d


def inference_copy(network: nn.Module, example: torch.Tensor | list[torch.Tensor]) -> nn.Module:
    """A copy in evaluation mode with its batch norms folded and its weights laid out with the channels last.

    Parameters
    ----------
    network
        Trained; it is left as it is.
    example
        See :func:`fuse_batch_norms`.
    """
    copied = copy.deepcopy(network).eval()
    fuse_batch_norms(copied, example)
    return copied.to(memory_format=torch.channels_last)


def fuse_batch_norms(network: nn.Module, example: torch.Tensor | list[torch.Tensor]) -> int:
    """Fold every batch norm whose input is the output of a convolution, in place.

    Which these are is found by running the network once, so it works for any network. An activation that timm keeps
    inside its norm layer stays.

    Parameters
    ----------
    network
        In evaluation mode.
    example
        An input to run it on, passed to ``network.forward_features`` or, where there is none, to ``network``.

    Returns
    -------
    How many were folded.
    """
    made_by: dict[int, Conv] = {}
    kept: list[torch.Tensor] = []  # keeps the outputs alive, so that an id names one tensor only
    pairs: dict[nn.BatchNorm2d, Conv] = {}
    uses: dict[nn.Module, int] = {}

    def after_conv(module: nn.Module, _: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        assert isinstance(module, Conv)
        made_by[id(output)] = module
        kept.append(output)
        uses[module] = uses.get(module, 0) + 1

    def before_norm(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(module, nn.BatchNorm2d)
        conv = made_by.get(id(inputs[0]))
        if conv is not None:
            pairs[module] = conv
        uses[module] = uses.get(module, 0) + 1

    handles = [m.register_forward_hook(after_conv) for m in network.modules() if isinstance(m, Conv)]
    handles += [m.register_forward_pre_hook(before_norm) for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    try:
        with torch.inference_mode():
            getattr(network, "forward_features", network)(example)
    finally:
        for handle in handles:
            handle.remove()
    names = {module: name for name, module in network.named_modules()}
    folded = 0
    for norm, conv in pairs.items():
        if uses[norm] != 1 or uses[conv] != 1:
            continue
        _replace(network, names[conv], fuse_conv_bn_eval(conv, norm, transpose=isinstance(conv, nn.ConvTranspose2d)))
        _replace(network, names[norm], _activation_of(norm))
        folded += 1
    return folded


def _activation_of(norm: nn.Module) -> nn.Module:
    parts = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if isinstance(part, nn.Module)]
    return nn.Sequential(*parts) if parts else nn.Identity()


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)
