"""A detector of one's own: how far each pixel lies from the mean normal image, in standard deviations of the normals.

    python examples/own_detector.py [FOLDER]

Useful where the anatomy is aligned, and a baseline that any other detector should beat. Put into
anomalib_med/models/<family>/ with a card beside it, the same file is part of the package.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import Field

from anomalib_med.models.base import Detector, DetectorConfig
from anomalib_med.preprocessing import Frames


class PixelStatistics(Detector):
    """Standardised difference to the mean normal image."""

    name = "pixel_statistics"
    title = "Difference to the mean image in standard deviations"

    class Config(DetectorConfig):
        """Settings of the pixel statistics."""

        side: int = Field(64, ge=8)
        """Side of the square that images are stretched to, in pixels."""

        floor: float = Field(0.02, gt=0)
        """Smallest standard deviation of a pixel, where grey values go from 0 to 1."""

        pooling: str = "mean"
        """How the map becomes the image score. The peaks of this map lie where the anatomy is not aligned, so its mean
        tells more."""

    config: Config

    def fit(self, frames: Frames) -> None:
        """Mean and standard deviation of each pixel."""
        total, squares, count = torch.zeros(()), torch.zeros(()), 0
        for batch in self.normals(frames):
            x = self.stretched(batch.x)
            total, squares, count = total + x.sum(0), squares + (x * x).sum(0), count + len(x)
        mean = total / count
        deviation = (squares / count - mean**2).clamp_min(0).sqrt().clamp_min(self.config.floor)
        self.load_state({"mean": mean, "deviation": deviation}, {})

    def anomaly_map(self, x: torch.Tensor) -> torch.Tensor:
        """Distances ``(B, side, side)``, averaged over the channels."""
        return ((self.stretched(x) - self.learnt("mean")) / self.learnt("deviation")).abs().mean(1).float()

    def stretched(self, x: torch.Tensor) -> torch.Tensor:
        """Images on the square, float64."""
        size = (self.config.side, self.config.side)
        return F.interpolate(x.to(self.device).double(), size, mode="bilinear", antialias=True)


def main(folder: Path) -> None:
    from anomalib_med import fit, load
    from anomalib_med.phantoms import write_chest_dataset

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
