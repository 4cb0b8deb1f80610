"""On-disk cache of features: one half-precision array an image, found by what went into it."""

import hashlib
from pathlib import Path

import numpy as np
import torch

from anomalib_med.errors import OutputError
from anomalib_med.files import replacing


class FeatureCache:
    """Features by extractor and input, in a folder that is created where absent and may be deleted at any time.

    The key is a hash of the extractor (backbone, weights, layers) and of the prepared pixels, so it changes with the
    preprocessing and with the content of the image, and never with its name.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, extractor: str, x: torch.Tensor) -> Path:
        """File of the features of one input ``(C, H, W)``."""
        digest = hashlib.blake2b(f"{extractor} {tuple(x.shape)}".encode(), digest_size=20)
        digest.update(x.contiguous().numpy().tobytes())
        key = digest.hexdigest()
        return self.folder / extractor[:16] / key[:2] / f"{key[2:]}.npy"

    def get(self, path: Path) -> torch.Tensor | None:
        """Features ``(D, h, w)``, float16; None where they are not stored or the file is damaged."""
        try:
            return torch.from_numpy(np.load(path, allow_pickle=False))
        except (ValueError, EOFError, OSError):
            path.unlink(missing_ok=True)
            return None

    def put(self, path: Path, features: torch.Tensor) -> None:
        """Store features ``(D, h, w)``; OutputError where the folder cannot be written."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.save(file, features.numpy())
        except OSError as error:
            reason = f"feature cache {self.folder}: {error.strerror or error}"
            raise OutputError(f"{reason}; free space or choose another --cache") from error


class FirstFeatures(FeatureCache):
    """Features of the first images only, in memory, until `megabytes` MiB are full: for those that come again soon."""

    def __init__(self, megabytes: float) -> None:
        super().__init__("")
        self._room = megabytes * 2**20
        self._kept: dict[Path, torch.Tensor] = {}

    def get(self, path: Path) -> torch.Tensor | None:
        """Features ``(D, h, w)``, float16; None where they are not kept."""
        return self._kept.get(path)

    def put(self, path: Path, features: torch.Tensor) -> None:
        """Keep features ``(D, h, w)`` while there is room."""
        self._room -= features.nbytes
        if self._room >= 0:
            self._kept[path] = features.clone()
