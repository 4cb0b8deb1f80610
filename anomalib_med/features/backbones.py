"""Backbones: the built-in radlite or timm networks cut after the last layer used, and where their weights are from."""

import hashlib
import logging
import urllib.request
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import constants as hub
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from anomalib_med.errors import ConfigError
from anomalib_med.features import radlite

State = Mapping[str, torch.Tensor]

PRETRAINED, RANDOM = "pretrained", "random"
HUB_TIMEOUT = 4.0  # seconds to find out whether the hub answers at all

RANDOM_WARNING = """the backbone has random weights: scores are those of untrained features. \
Leave out --backbone to use the built-in one, give pretrained ones with --weights FILE (safetensors), or run once \
where the model hub can be reached"""


@dataclass(frozen=True)
class Backbone:
    """A frozen network and how to feed it."""

    name: str  # "radlite" or timm's name
    network: nn.Module  # in evaluation mode, without the parts behind the last layer
    layers: tuple[str, ...]  # names of the layers whose outputs are used, in the order of the network
    indices: tuple[int, ...]  # their numbers in timm's list of intermediate outputs
    channels: tuple[int, ...]  # of each layer
    strides: tuple[int, ...]  # of each layer
    mean: tuple[float, ...]  # that input channels are normalised by: one number for radlite, three for others
    std: tuple[float, ...]
    source: str  # "pretrained", "random", or the name of the weight file
    norm: bool = False  # whether the final norm of a transformer is applied to the layers

    def intermediates(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Outputs ``(B, C, h, w)`` of each layer for a normalised batch ``(B, C, H, W)``."""
        trunk: Any = self.network  # as in `create`
        options = {"norm": self.norm, "output_fmt": "NCHW", "intermediates_only": True}
        return list(trunk.forward_intermediates(x, list(self.indices), **options))


def create(
    name: str, *, layers: Sequence[str] = (), weights: str = PRETRAINED, state: State | None = None, seed: int = 0
) -> Backbone:
    """Build a backbone.

    Parameters
    ----------
    name
        "radlite", or any timm network with intermediate outputs.
    layers
        Names or numbers as timm lists them; by default the layers at strides 8 and 16, or the blocks at one half and
        three quarters of a transformer. Where its last block is among them, its final norm is applied to all of them,
        as DINOv2 does.
    weights
        "pretrained" takes those of the package for radlite, and those of the hub or its local cache for timm's networks
        (random ones with a warning where neither has them); "random" draws them with `seed`; anything else names a
        safetensors file, which may lack what lies behind the last layer.
    state
        Weights of a saved model; `weights` then only says where they once came from.

    Raises
    ------
    ConfigError
        The network or a layer is unknown, or a weight file is absent, unreadable or does not fit.
    ModelError
        The weights of radlite were altered.
    """
    network: Any = _construct(name, seed)  # torch's types do not know the names that timm gives its networks
    if not hasattr(network, "forward_intermediates"):
        remedy = 'choose another timm network, for example "resnet18"'
        raise ConfigError(f'backbone "{name}" gives no intermediate outputs: {remedy}')
    config, info = network.pretrained_cfg, list(network.feature_info)
    strides = [int(entry["reduction"]) for entry in info]
    chosen = _choose_layers(name, layers, [str(entry["module"]) for entry in info], strides)
    # The final norm of a transformer, all of whose layers have one stride, belongs to its last block.
    transformer = len(set(strides)) == 1 and isinstance(getattr(network, "norm", None), nn.Module)
    norm = transformer and chosen[-1] == len(info) - 1
    network.prune_intermediate_layers(chosen, prune_norm=not norm, prune_head=True)
    source = weights
    if state is not None:
        _load(network, state, "the saved model")
    elif weights == PRETRAINED and name == radlite.NAME:
        _load(network, radlite.read_weights(), "the package")
    elif weights == PRETRAINED:
        source = _load_pretrained(network, name, chosen, prune_norm=not norm)
    elif weights != RANDOM:
        _load(network, read_weights(Path(weights)), weights)
        source = Path(weights).name
    names, channels = zip(*((str(info[i]["module"]), int(info[i]["num_chs"])) for i in chosen), strict=True)
    frozen, used = network.eval().requires_grad_(False), tuple(strides[i] for i in chosen)
    return Backbone(name, frozen, names, tuple(chosen), channels, used, config["mean"], config["std"], source, norm)


def create_untrained(name: str, layers: tuple[str, ...], seed: int) -> Backbone:
    """The network that :func:`create` builds, to be trained: random weights that ask for gradients, and batch norms."""
    backbone = create(name, layers=layers, weights=RANDOM, seed=seed)
    # The inference form of radlite has no batch norms.
    network = _construct(name, seed, trained=True) if name == radlite.NAME else backbone.network
    return replace(backbone, network=network.requires_grad_(True).train())


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file as float32; ConfigError where there is no such file or it is not safetensors."""
    try:
        return {key: value.float() if value.is_floating_point() else value for key, value in load_file(path).items()}
    except (FileNotFoundError, IsADirectoryError):
        options = f'a safetensors file, "{PRETRAINED}" or "{RANDOM}"'
        raise ConfigError(f'weights "{path}": no such file; give {options}') from None
    except (SafetensorError, OSError) as error:
        reason = f"not a readable safetensors file ({error})"
        raise ConfigError(f'weights "{path}": {reason}; convert it with safetensors.torch.save_file') from error


def weight_hash(network: nn.Module) -> str:
    """SHA-256 over names, shapes and values of all weights."""
    digest = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _construct(name: str, seed: int, *, trained: bool = False) -> nn.Module:
    if name != radlite.NAME and not timm.is_model(name):
        close = timm.list_models(f"*{name.split('.')[0][:6]}*")[:5]
        hint = f": did you mean {', '.join(close)}?" if close else ""
        raise ConfigError(f'backbone "{name}" is neither {radlite.NAME} nor a timm network{hint}')
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return radlite.RadLite(trained=trained) if name == radlite.NAME else _any_size(name, pretrained=False)


def _any_size(name: str, *, pretrained: bool) -> nn.Module:
    """A timm network that takes inputs of any shape, transformers with positional embeddings included."""
    try:
        network: nn.Module = timm.create_model(name, pretrained=pretrained, dynamic_img_size=True)
    except TypeError:  # an option of transformers only
        network = timm.create_model(name, pretrained=pretrained)
    return network


def _choose_layers(name: str, asked: Sequence[str], modules: list[str], strides: list[int]) -> list[int]:
    if not asked and len(set(strides)) == 1:
        return sorted({len(modules) // 2, 3 * len(modules) // 4})
    if not asked:
        return [i for i, stride in enumerate(strides) if stride in (8, 16)]
    known = {str(i): i for i in range(len(modules))} | {module: i for i, module in enumerate(modules)}
    for layer in asked:
        if layer not in known:
            raise ConfigError(f'backbone "{name}" has no layer "{layer}": it has {", ".join(modules)}')
    return sorted({known[layer] for layer in asked})


def _load(network: nn.Module, state: State, source: str) -> None:
    """Load what the pruned network needs; the file may hold more."""
    needed = {key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    misfit = f"weights of {source} do not fit the backbone"
    missing = [key for key in needed if key not in state]
    if missing:
        absent = f"{len(missing)} of {len(needed)} tensors are absent, first {', '.join(missing[:3])}"
        unused = ", ".join([key for key in state if key not in needed][:3]) or "nothing"
        raise ConfigError(f"{misfit}: {absent}; the file has {unused} instead. Name the backbone it was made for")
    for key, value in needed.items():
        if state[key].shape != value.shape:
            raise ConfigError(f"{misfit}: {key} is {tuple(state[key].shape)}, needed {tuple(value.shape)}")
    network.load_state_dict({key: state[key] for key in needed}, strict=False)


def _load_pretrained(network: nn.Module, name: str, chosen: list[int], *, prune_norm: bool) -> str:
    logging.getLogger("anomalib_med").info("looking for the weights of %s (local cache, then the model hub)", name)
    offline = hub.HF_HUB_OFFLINE
    hub.HF_HUB_OFFLINE = offline or not _hub_answers()
    try:
        # timm raises a different error for each way of failing: no such weights (RuntimeError), not in the cache or
        # no network (OSError).
        full: Any = _any_size(name, pretrained=True)
    except (OSError, RuntimeError):
        warnings.warn(f"no pretrained weights of {name} could be had; {RANDOM_WARNING}", stacklevel=4)
        return RANDOM
    finally:
        hub.HF_HUB_OFFLINE = offline
    full.prune_intermediate_layers(chosen, prune_norm=prune_norm, prune_head=True)
    network.load_state_dict(full.state_dict())
    return PRETRAINED


def _hub_answers() -> bool:
    """Whether the model hub can be reached; without this question its client tries again for most of a minute."""
    try:
        urllib.request.urlopen(urllib.request.Request(hub.ENDPOINT, method="HEAD"), timeout=HUB_TIMEOUT).close()
    except OSError as error:
        return isinstance(error, urllib.request.HTTPError)
    return True
