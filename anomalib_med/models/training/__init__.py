"""What every trained detector shares: the trainer, its normals, checkpoints and settings."""
