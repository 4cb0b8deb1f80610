"""What several benchmarks share: their command line, detectors from text, random images, a table in a document."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from anomalib_med import Detector
from anomalib_med.models.pooling import pool
from anomalib_med.models.registry import detector_class

TOP = Path(__file__).parent.parent
POOLINGS = ("max", "top1%", "top10%", "power8", "mean")
MARKERS = ("<!-- bench -->", "<!-- /bench -->")


def command_line(doc: str) -> argparse.ArgumentParser:
    """A command line whose help is the head of the script."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def show(line: dict, output: Path | None = None) -> None:
    """Print one JSON line, and append it to a file where one is named."""
    print(json.dumps(line), flush=True)
    if output is not None:
        with output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def detector_from(text: str, **settings: object) -> Detector:
    """A detector from text such as ``patchcore pooling=max``."""
    name, *words = text.split()
    return detector_class(name)(**settings, **dict(word.split("=", 1) for word in words))


def backbone_from(text: str) -> dict[str, str]:
    """Settings of a backbone from NAME or NAME=WEIGHTS."""
    name, _, weights = text.partition("=")
    return {"backbone": name, "weights": weights or "pretrained"}


def pooled(grids: list[np.ndarray], pooling: str) -> np.ndarray:
    """A score for each map."""
    everything = torch.ones(1, 8, 8, dtype=torch.bool)
    return np.array([float(pool(torch.from_numpy(grid)[None], everything, pooling)) for grid in grids])


class Images:
    """Random images in place of frames."""

    def __init__(self, count: int, side: int) -> None:
        self.x = torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(0))
        self.valid = torch.ones(count, side, side, dtype=torch.bool)
        self.patients = [str(i) for i in range(count)]

    def __len__(self) -> int:
        return len(self.x)

    def batches(self, size: int) -> Iterator["Images"]:
        for start in range(0, len(self), size):
            part = Images(0, 1)
            part.x, part.valid = self.x[start : start + size], self.valid[start : start + size]
            part.patients = self.patients[start : start + size]
            yield part


def write_between_markers(path: Path, table: str) -> None:
    """Put a table between the markers ``<!-- bench -->`` and ``<!-- /bench -->`` of a document."""
    before, start, rest = path.read_text(encoding="utf-8").partition(MARKERS[0])
    _, end, after = rest.partition(MARKERS[1])
    if not (start and end):
        raise SystemExit(f"{path} has no markers {MARKERS[0]} and {MARKERS[1]} to write the table between")
    path.write_text(f"{before}{start}\n{table}\n{end}{after}", encoding="utf-8")
