"""What a measurement ran on, and how much memory it took."""

import contextlib
import os
import platform
import resource
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("torch", "timm", "numpy", "opencv-python-headless", "scikit-learn", "faiss-gpu", "faiss-cpu")


def machine() -> dict[str, str | int | float]:
    """Processor, cores, memory, GPU and threads; no host name."""
    info: dict[str, str | int | float] = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _line("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
    }
    with contextlib.suppress(ValueError, OSError, AttributeError):
        info["memory_gb"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    return info


def package_versions() -> dict[str, str]:
    """Versions of what a score depends on."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def reset_peak_memory() -> None:
    """Start measuring the peak memory anew, where the system can; elsewhere the peak is that of the process."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory_mb() -> tuple[float, float]:
    """Peak of the process since `reset_peak_memory` in MiB, and of the GPU's tensors (0 without one)."""
    gpu = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0
    if known := _line("/proc/self/status", "VmHWM"):
        return int(known.split()[0]) / 1024, gpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 1024), gpu


def _line(path: str, key: str) -> str:
    """What a file of Linux says of a key; "" elsewhere."""
    with contextlib.suppress(OSError):
        for line in Path(path).read_text().splitlines():
            if line.startswith(key):
                return line.partition(":")[2].strip()
    return ""
