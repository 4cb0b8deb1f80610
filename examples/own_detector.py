"""A detector of one's own: how far each pixel lies from the mean normal image, in standard deviations of the normals.

    python examples/own_detector.py [FOLDER]

Useful where the anatomy is aligned, and a baseline that any other detector should beat.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import Field, JsonValue

from anomalib_med import Detector, DetectorConfig, fit, load
from anomalib_med.errors import FitError
from anomalib_med.phantoms import write_chest_dataset
from anomalib_med.preprocessing import Frames


class PixelStatistics(Detector):
    """Standardised difference to the mean normal image."""

    name = "pixel_statistics"
    title = "Difference to the mean image in standard deviations"

    class Config(DetectorConfig):
        """`side`: of the square that images are stretched to. `floor`: smallest standard deviation, grey is 0 to 1."""

        side: int = Field(64, ge=8)
        floor: float = Field(0.02, gt=0)

    config: Config

    def fit(self, frames: Frames) -> None:
        total, squares, count = torch.zeros(()), torch.zeros(()), 0
        for batch in frames.batches(16):
            x = self.stretched(batch.x)
            total, squares, count = total + x.sum(0), squares + (x * x).sum(0), count + len(x)
        if count == 0:
            raise FitError("no normal image could be read: see the failures listed")
        self.mean = total / count
        self.deviation = (squares / count - self.mean**2).clamp_min(0).sqrt().clamp_min(self.config.floor)

    def anomaly_map(self, x: torch.Tensor) -> torch.Tensor:
        return ((self.stretched(x) - self.mean) / self.deviation).abs().mean(1).float()

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, JsonValue]]:
        return {"mean": self.mean, "deviation": self.deviation}, {}

    def load_state(self, tensors: Mapping[str, torch.Tensor], extra: Mapping[str, JsonValue]) -> None:
        self.mean, self.deviation = tensors["mean"], tensors["deviation"]

    def stretched(self, x: torch.Tensor) -> torch.Tensor:
        size = (self.config.side, self.config.side)
        return F.interpolate(x.double().cpu(), size, mode="bilinear", antialias=True)


def main(folder: Path) -> None:
    write_chest_dataset(folder / "data", train=100, normal=5, abnormal=8)
    model = fit("pixel_statistics", folder / "data" / "train" / "normal")
    before = model.score(folder / "data" / "test" / "abnormal")
    model.save(folder / "model", overwrite=True)
    after = load(folder / "model").score(folder / "data" / "test" / "abnormal")
    for result in after:
        print(f"{result.id}  score {result.score:.3f}  p {result.p_value:.3f}")
    print("equal after loading:", before.scores.tolist() == after.scores.tolist())


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("demo/own_detector"))
