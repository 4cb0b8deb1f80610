"""The teachers' answers to every view: their features, standardised, joined, and reduced to principal components.

Each channel is divided by its standard deviation over the views; a teacher's channels together have the variance that
the recipe gives it. The principal components are divided by the fourth root of their variance, half of a whitening:
what varies little between patches of medical images still counts, and what is mere noise does not take over.
"""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from anomalib_med.features.backbones import Backbone, create
from anomalib_med.features.fusion import fuse_batch_norms
from anomalib_med.records import Progress

BLOCK = 200  # views between two marks on the disk
BATCH = 8
STATISTICS = 1000  # views that the components are found on
STRIDES = (8, 16)


class Teachers:
    """Frozen networks side by side.

    Parameters
    ----------
    settings
        ``[[teacher]]`` tables of the recipe.
    folder
        Folder of their weights.
    """

    def __init__(self, settings: Sequence[dict], folder: Path, device: torch.device) -> None:
        self.device = device
        self.backbones: list[Backbone] = []
        for teacher in settings:
            backbone = create(
                teacher["backbone"], layers=tuple(teacher["layers"]), weights=str(folder / teacher["weights"])
            )
            fuse_batch_norms(backbone.network, torch.zeros(1, 3, 64, 64))
            network: nn.Module = backbone.network
            network.to(device=device, memory_format=torch.channels_last)
            self.backbones.append(backbone)
        self.shares = [
            torch.cat(
                [
                    torch.full((b.channels[level],), (t["weight"] / b.channels[level]) ** 0.5)
                    for b, t in zip(self.backbones, settings, strict=True)
                ]
            ).to(device)
            for level in range(len(STRIDES))
        ]

    @torch.inference_mode()
    def __call__(self, views: np.ndarray) -> list[torch.Tensor]:
        """Joint features ``(B, h, w, C)`` at each stride of views uint8 ``(B, H, W)``."""
        grey = torch.from_numpy(views).to(self.device)[:, None].float() / 255
        outputs = []
        for backbone in self.backbones:
            mean, std = (torch.tensor(v, device=self.device)[:, None, None] for v in (backbone.mean, backbone.std))
            outputs.append(backbone.intermediates(((grey - mean) / std).contiguous(memory_format=torch.channels_last)))
        return [torch.cat([output[level].permute(0, 2, 3, 1) for output in outputs], 3) for level in range(2)]


@dataclass(frozen=True)
class Basis:
    """The way from joint features to targets at one stride: ``(features - mean) @ matrix``."""

    mean: torch.Tensor
    matrix: torch.Tensor


def find_bases(teachers: Teachers, views: np.ndarray, dimensions: int, progress: Progress) -> list[Basis]:
    """Principal components of the teachers' features on these views."""
    sums: list[torch.Tensor] = []
    products: list[torch.Tensor] = []
    count = [0, 0]
    for start in range(0, len(views), BATCH):
        for level, features in enumerate(teachers(views[start : start + BATCH])):
            rows = features.flatten(0, 2)
            if len(sums) <= level:
                size = rows.shape[1]
                sums.append(torch.zeros(size, dtype=torch.float64, device=rows.device))
                products.append(torch.zeros(size, size, dtype=torch.float64, device=rows.device))
            sums[level] += rows.sum(0, dtype=torch.float64)
            products[level] += (rows.T @ rows).double()
            count[level] += len(rows)
        progress("finding components", min(start + BATCH, len(views)), len(views))
    return [
        _basis(total / n, product / n, share, dimensions)
        for total, product, n, share in zip(sums, products, count, teachers.shares, strict=True)
    ]


def _basis(mean: torch.Tensor, second: torch.Tensor, share: torch.Tensor, dimensions: int) -> Basis:
    covariance = second - mean[:, None] * mean[None]
    scale = share.double() / covariance.diagonal().clamp_min(1e-12).sqrt()
    values, vectors = torch.linalg.eigh(covariance * scale[:, None] * scale[None])
    values, vectors = values[-dimensions:].flip(0), vectors[:, -dimensions:].flip(1)
    # A component's variance becomes the root of what it was; on average over the components it is 1.
    factors = values**-0.25 * (len(values) / values.sqrt().sum()).sqrt()
    return Basis(mean.float(), (scale[:, None] * vectors * factors).float())


def write_targets(
    out: Path,
    make_view: Callable[[int], np.ndarray],
    count: int,
    size: int,
    dimensions: int,
    make_teachers: Callable[[], Teachers],
    progress: Progress,
) -> None:
    """Write ``views.npy``, ``targets8.npy`` and ``targets16.npy``; an earlier call that was stopped is continued."""
    out.mkdir(parents=True, exist_ok=True)
    mark = out / "targets.json"
    done = json.loads(mark.read_text())["done"] if mark.exists() else 0
    if done >= count:
        return
    teachers = make_teachers()
    shapes = {f"targets{s}": (count, size // s, size // s, dimensions) for s in STRIDES} | {
        "views": (count, size, size)
    }
    arrays = {
        name: np.lib.format.open_memmap(
            out / f"{name}.npy",
            mode="r+" if done else "w+",
            dtype=np.uint8 if name == "views" else np.float16,
            shape=None if done else shape,
        )
        for name, shape in shapes.items()
    }
    bases = _bases(out / "basis.safetensors", teachers, make_view, min(STATISTICS, count), dimensions, progress)
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(_block, make_view, done, count)
        while done < count:
            views = coming.result()
            coming = pool.submit(_block, make_view, done + len(views), count)
            for start in range(0, len(views), BATCH):
                rows = slice(done + start, done + min(start + BATCH, len(views)))
                for stride, features, basis in zip(STRIDES, teachers(views[start : start + BATCH]), bases, strict=True):
                    targets = (features - basis.mean) @ basis.matrix
                    arrays[f"targets{stride}"][rows] = targets.half().cpu().numpy()
            arrays["views"][done : done + len(views)] = views
            done += len(views)
            for array in arrays.values():
                array.flush()
            mark.write_text(json.dumps({"done": done}))
            progress("asking the teachers", done, count)


def _block(make_view: Callable[[int], np.ndarray], first: int, count: int) -> np.ndarray:
    indices = range(first, min(first + BLOCK, count))
    return np.stack([make_view(i) for i in indices]) if indices else np.empty(0)


def _bases(
    path: Path,
    teachers: Teachers,
    make_view: Callable[[int], np.ndarray],
    count: int,
    dimensions: int,
    progress: Progress,
) -> list[Basis]:
    if not path.exists():
        found = find_bases(teachers, np.stack([make_view(i) for i in range(count)]), dimensions, progress)
        tensors = {}
        for stride, basis in zip(STRIDES, found, strict=True):
            tensors[f"mean{stride}"] = basis.mean.cpu().contiguous()
            tensors[f"matrix{stride}"] = basis.matrix.cpu().contiguous()
        save_file(tensors, path)
    stored = load_file(path)
    return [Basis(*(stored[f"{name}{s}"].to(teachers.device) for name in ("mean", "matrix"))) for s in STRIDES]
