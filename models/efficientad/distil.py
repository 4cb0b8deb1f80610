"""Distils a teacher for EfficientAD from the frozen features of any backbone; no foreign weights are needed.

    python models/efficientad/distil.py IMAGES -o teacher.safetensors [--network S] [--backbone NAME --weights FILE]

IMAGES is a folder of images without labels: the more kinds, the better the teacher. The patch description network
learns to give the standardised features of the backbone (Batzner et al., WACV 2024, appendix A.2). The training shows
its progress and is continued where it was stopped. Then:

    anomed fit NORMALS -o MODEL -m efficientad -s teacher=teacher.safetensors
"""

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import save_file

from anomalib_med.checkpoints import CheckpointFile
from anomalib_med.cli.progress import ProgressDisplay
from anomalib_med.datasets.folder import discover
from anomalib_med.datasets.readers import read
from anomalib_med.device import choose_device
from anomalib_med.models.standard import Standard
from anomalib_med.models.student_teacher.pdn import PDN, Network, normalised, on_pdn_grid
from anomalib_med.models.training import FeatureTrainingConfig, StepBatch, TrainedDetector, TrainingRun
from anomalib_med.preprocessing import Frames, Preprocessing

LOOKED_AT = 16  # images that the window is chosen from


class Distillation(TrainedDetector):
    """A patch description network learns the features of the backbone; it scores nothing."""

    name = "efficientad-distillation"
    title = "Distillation of EfficientAD's teacher (Batzner et al., WACV 2024)"

    class Config(FeatureTrainingConfig):
        """Settings of the distillation."""

        network: Network = "S"
        """Patch description network of the teacher, which should be that of the student."""

    config: Config

    def build(self, shape: tuple[int, ...]) -> None:
        """The network, for grey images."""
        self.standard = Standard((self.extractor.channels, 1, 1))
        self.pdn = PDN(self.config.network, 1, self.extractor.channels)

    def before_training(self, batches: Iterator[StepBatch]) -> None:
        """Mean and standard deviation of each channel of the backbone."""
        self.standard.learn(self._features(batch.x) for batch in batches)

    def training_step(self, batch: StepBatch) -> dict[str, torch.Tensor]:
        """Squared difference to the standardised features."""
        given = self.pdn(normalised(batch.x.mean(1, keepdim=True)))
        return {"distillation": ((self.standard(self._features(batch.x)) - given) ** 2).mean()}

    def compute_map(self, x: torch.Tensor) -> torch.Tensor:
        """There is none."""
        raise NotImplementedError("a teacher alone finds nothing: give it to efficientad")

    def _features(self, x: torch.Tensor) -> torch.Tensor:
        return on_pdn_grid(self.features(x), x.shape[2], x.shape[3]).clone()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", help="folder, file, glob or CSV of images")
    parser.add_argument("-o", "--output", type=Path, required=True, help="safetensors file of the teacher")
    parser.add_argument("--network", choices=["T", "S", "M"], default="S")
    parser.add_argument("--backbone", default="radlite")
    parser.add_argument("--weights", default="pretrained")
    parser.add_argument("--size", type=int, default=256, help="side of the images in pixels")
    parser.add_argument("--steps", type=int, default=60000, help="optimizer steps of 16 images (paper: 60000)")
    parser.add_argument("--max-minutes", type=float, default=0.0)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    detector = Distillation(
        network=options.network,
        backbone=options.backbone,
        weights=options.weights,
        steps=options.steps,
        max_minutes=options.max_minutes,
        learning_rate=options.learning_rate,
        weight_decay=1e-5,
        batch_size=16,
        augment=True,
        seed=options.seed,
    )
    detector.to(choose_device(options.device))
    samples = discover(options.images)
    settings = Preprocessing(size=options.size, aspect="stretch", multiple=32)
    settings = settings.resolved([read(sample) for sample in islice(samples, LOOKED_AT)])
    checkpoint = CheckpointFile(options.output.with_suffix(".training"))
    with ProgressDisplay() as progress:
        detector.fit(Frames(samples, settings), TrainingRun(checkpoint, progress=progress))
    save_file({key: value.contiguous() for key, value in detector.pdn.state_dict().items()}, options.output)
    checkpoint.path.unlink(missing_ok=True)
    print(f"written: {options.output}")


if __name__ == "__main__":
    main()
