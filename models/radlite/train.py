"""Trains radlite: makes views, asks the teachers, distils, writes the weights.

    python models/radlite/train.py IMAGES TEACHERS -o OUT [--recipe FILE] [--without radiograph] [-s views=6000]

IMAGES and TEACHERS are the folders that the recipe's paths and weight files lie in. Everything is kept in OUT, and the
same call continues one that was stopped: at most 200 of the teachers' answers, or one epoch of the training, are
repeated. On one machine the same seed gives the same weights, interrupted or not.
It ends with OUT/radlite.safetensors (float16, batch norms folded in), its SHA-256, and log.jsonl.
"""

import argparse
import hashlib
import json
import math
import shutil
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import teachers as _teachers  # noqa: F401 - makes the ResNet-50 v2 trunk known to timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from targets import STRIDES, Teachers, write_targets
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from views import load_source, view

from anomalib_med.features.radlite import DIMENSIONS, ConvNorm, RadLite
from anomalib_med.files import replacing
from anomalib_med.records import Progress

HELD_OUT = 500  # views that are not trained on, to see how well unseen ones are predicted
WARM_UP = 0.05  # of all steps
CHECKPOINT = "checkpoint.safetensors"
MEAN, STD = RadLite.pretrained_cfg["mean"][0], RadLite.pretrained_cfg["std"][0]


def main(arguments: Sequence[str] | None = None, progress: Progress | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("teachers", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, default=Path(__file__).with_name("recipe.toml"))
    parser.add_argument("--start", type=Path, metavar="FOLDER", help="begin with the network of an earlier run")
    parser.add_argument("--without", action="append", default=[], metavar="GROUP", help="leave out a group of sources")
    parser.add_argument("-s", "--set", action="append", default=[], metavar="KEY=NUMBER", help="a number of the recipe")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    recipe = tomllib.loads(options.recipe.read_text())
    for setting in options.set:
        key, _, value = setting.partition("=")
        if key not in recipe:
            parser.error(f"the recipe has no {key}")
        recipe[key] = type(recipe[key])(float(value))
    if recipe["dimensions"] != DIMENSIONS:
        parser.error(f"the network gives {DIMENSIONS} dimensions")
    device, out, progress = torch.device(options.device), options.output, progress or Lines()
    _claim(out, recipe, options.without, options.start)

    loaded: list = []

    def make_view(index: int) -> np.ndarray:
        if not loaded:
            kept = [source for source in recipe["source"] if source["group"] not in options.without]
            loaded.extend(load_source(options.images, **source) for source in kept)
        return view(loaded, recipe["seed"], recipe["first"] + index, recipe["size"], recipe["surround"])

    write_targets(
        out,
        make_view,
        recipe["views"],
        recipe["size"],
        recipe["dimensions"],
        lambda: Teachers(recipe["teacher"], options.teachers, device),
        progress,
    )
    network = train(out, recipe, options.start, device, progress)
    path = export(network, out / "radlite.safetensors")
    print(f"{path}: {path.stat().st_size / 2**20:.2f} MiB, SHA-256 {path.with_suffix('.sha256').read_text().strip()}")


def train(out: Path, recipe: dict, start: Path | None, device: torch.device, progress: Progress) -> RadLite:
    """Regress the targets; a checkpoint after every epoch, the log beside it."""
    torch.manual_seed(recipe["seed"])
    network = RadLite(trained=True)
    if start is not None:
        network.load_state_dict(_network_tensors(load_file(start / CHECKPOINT)))
    network.to(device=device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), recipe["learning_rate"], weight_decay=recipe["weight_decay"])
    views = np.load(out / "views.npy", mmap_mode="r")
    targets = [np.load(out / f"targets{stride}.npy", mmap_mode="r") for stride in STRIDES]
    held_out = min(HELD_OUT, len(views) // 10)
    count, batch = len(views) - held_out, recipe["batch"]
    steps = count // batch
    total = steps * recipe["epochs"]
    for epoch in range(_restore(out, network, optimizer), recipe["epochs"]):
        network.train()
        order = np.random.default_rng([recipe["seed"], 1, epoch]).permutation(count)
        started, running = time.monotonic(), 0.0
        for i in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = recipe["learning_rate"] * _one_cycle((epoch * steps + i) / total)
            rows = np.sort(order[i * batch : (i + 1) * batch])
            loss = sum(_errors(network, views, targets, rows, device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
            value = float(loss.detach())
            if not math.isfinite(value):
                sys.exit(f"the loss is {value} in step {epoch * steps + i}: lower the learning rate")
            running += value
            progress("training", epoch * steps + i + 1, total, f"loss {running / (i + 1):.4f}")
        line = {
            "epoch": epoch + 1,
            "loss": round(running / steps, 5),
            "explained": _explained(network, views, targets, np.arange(count, len(views)), device),
            "seconds": round(time.monotonic() - started, 1),
        }
        _save(out, network, optimizer, epoch + 1)
        with (out / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
    return network


def _errors(
    network: RadLite, views: np.ndarray, targets: list[np.ndarray], rows: np.ndarray, device: torch.device
) -> list[torch.Tensor]:
    """Mean squared error at each stride; a component's variance is 1 on average."""
    x = torch.from_numpy(views[rows]).to(device)[:, None].float() / 255
    outputs = network(((x - MEAN) / STD).contiguous(memory_format=torch.channels_last))
    return [
        nn.functional.mse_loss(output, torch.from_numpy(target[rows]).to(device).permute(0, 3, 1, 2).float())
        for output, target in zip(outputs, targets, strict=True)
    ]


@torch.no_grad()
def _explained(
    network: RadLite, views: np.ndarray, targets: list[np.ndarray], rows: np.ndarray, device: torch.device
) -> list[float]:
    """Share of the targets' variance that is predicted on these views, at each stride."""
    network.eval()
    parts = np.array_split(rows, max(1, len(rows) // 50))
    errors = np.mean([[float(e) for e in _errors(network, views, targets, part, device)] for part in parts], axis=0)
    variances = [target[rows].astype(np.float32).var(axis=(0, 1, 2)).mean() for target in targets]
    return [round(1 - float(e / v), 4) for e, v in zip(errors, variances, strict=True)]


def _one_cycle(share: float) -> float:
    """Factor of the learning rate after this share of all steps: a linear rise, then half a cosine down to 0."""
    if share < WARM_UP:
        return share / WARM_UP
    return 0.5 + 0.5 * math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP))


def export(network: RadLite, path: Path) -> Path:
    """Fold the batch norms into the convolutions and write float16 weights, and their SHA-256 beside them."""
    network = network.cpu().eval()
    for module in network.modules():
        if isinstance(module, ConvNorm):
            module.conv = fuse_conv_bn_eval(module.conv, module.norm)
            module.norm = nn.Identity()
    save_file({key: value.half().contiguous() for key, value in network.state_dict().items()}, path)
    path.with_suffix(".sha256").write_text(hashlib.sha256(path.read_bytes()).hexdigest() + "\n")
    return path


def _save(out: Path, network: RadLite, optimizer: torch.optim.Optimizer, epochs: int) -> None:
    """Write the state of the training as one file, as a whole or not at all."""
    tensors = {f"network.{key}": value for key, value in network.state_dict().items()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimiser.{i}.{key}": value for key, value in state.items()}
    with replacing(out / CHECKPOINT) as temporary:
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, metadata={"epochs": str(epochs)})


def _restore(out: Path, network: RadLite, optimizer: torch.optim.Optimizer) -> int:
    """Load the checkpoint; how many epochs are done."""
    path = out / CHECKPOINT
    if not path.exists():
        return 0
    tensors = load_file(path)
    network.load_state_dict(_network_tensors(tensors))
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimiser."):
            _, i, name = key.split(".")
            state.setdefault(int(i), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    with safe_open(path, "pt") as file:
        return int(file.metadata()["epochs"])


def _network_tensors(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")}


def _claim(out: Path, recipe: dict, without: list[str], start: Path | None) -> None:
    """Refuse a folder that was begun with another recipe; take the components of the run that this one begins with."""
    out.mkdir(parents=True, exist_ok=True)
    earlier = hashlib.sha256((start / CHECKPOINT).read_bytes()).hexdigest() if start else None
    settings = json.dumps({"recipe": recipe, "without": without, "start": earlier}, indent=1)
    path = out / "recipe.json"
    if path.exists() and path.read_text() != settings:
        sys.exit(f"{out} was begun with another recipe: choose another folder, or delete it")
    path.write_text(settings)
    if start:
        shutil.copyfile(start / "basis.safetensors", out / "basis.safetensors")


class Lines:
    """A line every ten seconds: what is done, how fast, how long it will take."""

    def __init__(self) -> None:
        self.stage, self.began, self.first, self.shown = "", 0.0, 0, 0.0

    def __call__(self, stage: str, done: int, total: int, note: str = "", /) -> None:
        now = time.monotonic()
        if stage != self.stage:
            self.stage, self.began, self.first, self.shown = stage, now, done, now
        if now - self.shown < 10 and done < total:
            return
        self.shown = now
        rate = (done - self.first) / max(now - self.began, 1e-9)
        left = f"{(total - done) / rate / 60:.0f} min left" if rate > 0 else ""
        print(f"{stage}: {done}/{total}, {rate:.1f}/s, {left} {note}", flush=True)


if __name__ == "__main__":
    main()
