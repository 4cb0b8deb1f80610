"""Results made up for the tests of the outputs."""

import nibabel
import numpy as np

from anomalib_med.datasets.scans import volumes_of
from anomalib_med.records import Geometry, Result, Sample

RANGE = (0.0, 2.0)
FINGERPRINT = {"model": "abc", "images": "def"}


def grey(shape=(40, 32)):
    return np.linspace(0, 255, shape[0] * shape[1]).astype(np.uint8).reshape(shape)


def scored(id, value=1.0, *, shape=(40, 32), path=None, frame=None, **fields):
    geometry = Geometry(shape, shape, (0, 0, *shape))
    grid = np.full((5, 4), value, np.float32)
    fields = {"p_value": 0.1 + 0.2, "flagged": value > 1, **fields}
    return Result(id, path or f"/data/{id}", frame, "patient", value, grid=grid, geometry=geometry, **fields)


def failed(id, reason="cut short", *, path=None, frame=None):
    return Result(id, path or f"/data/{id}", frame, "patient", float("nan"), status=reason)


def volume(folder, name, frames=4, shape=(6, 5)):
    """A NIfTI volume on disk and the results of its slices; the map of slice k holds k + 1."""
    path = folder / name
    voxels = np.zeros((shape[1], shape[0], frames), np.float32)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1.0, 1.0, 2.0, 1.0])), path)
    return path, [scored(f"{name}#{k}", k + 1.0, shape=shape, path=str(path), frame=k) for k in range(frames)]


def volumes_in(folder):
    """The volumes that `volume` made in a folder."""
    samples = [
        Sample(f"{path.name}#{k}", path, k, "patient", volume=path.name)
        for path in sorted(folder.glob("*.nii*"))
        if path.name[0] in "vw"
        for k in range(nibabel.load(path).shape[2])
    ]
    return volumes_of(samples)
