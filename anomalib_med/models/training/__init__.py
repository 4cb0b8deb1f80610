"""What every trained detector shares: the trainer, its normals, checkpoints and settings."""

from anomalib_med.models.training.normals import Normals, StepBatch
from anomalib_med.models.training.run import Checkpoint, EpochChoice, Selection, Training, TrainingRun
from anomalib_med.models.training.schedule import FeatureTrainingConfig, Schedule, TrainingConfig, rate
from anomalib_med.models.training.trainer import NO_RUN, Content, TrainedDetector

__all__ = [
    "NO_RUN", "Checkpoint", "Content", "EpochChoice", "FeatureTrainingConfig", "Normals", "Schedule", "Selection",
    "StepBatch", "TrainedDetector", "Training", "TrainingConfig", "TrainingRun", "rate",
]  # fmt: skip
