"""Where to compute: the choice of a device, in one place."""

import torch

from anomalib_med import processes
from anomalib_med.errors import ConfigError


def choose_device(name: str = "auto") -> torch.device:
    """Device of a name: "auto" is the GPU where there is one; else "cpu", "cuda" or "cuda:<n>".

    Each of several processes that train together has a GPU of its own. Raises ConfigError where the name is not
    understood or that device is not there.
    """
    if name == "auto" or (name == "cuda" and torch.cuda.is_available()):
        return processes.own_gpu() if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f'device "{name}" is not known: use auto, cpu, cuda or cuda:0') from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        seen = f"{torch.cuda.device_count()} CUDA devices are seen"
        raise ConfigError(f'device "{name}" is not there: {seen}; use --device cpu')
    return device
