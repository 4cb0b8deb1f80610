"""What the package computes on real images, where these are at hand."""

import hashlib
import os
from pathlib import Path

from anomalib_med import PatchCore, Sample, Scores, TwoView, fit
from tests.golden.generated import numbers, of_model

NORMALS, TESTED = 150, 20
# The folder to fit on, the folder of normal images to score and that of abnormal ones; where the first two are the
# same, the images to score are those that come after the ones to fit on.
SETS = {
    "zhanglab_cxr": ("train/normal", "test/normal", "test/bacteria"),
    "nih_rsna_cxr": ("images/train_normal", "images/test_normal", "images/test_abnormal_box"),
    "rsna_lungs_dev": ("images/train_normal", "images/test_normal", "images/test_lung_opacity"),
    "sars_cov2_ct224": ("A/noncovid", "A/noncovid", "A/covid"),
}
RESNET = "resnet18.tv_in1k.stages1-3.fp16.safetensors"


def of_set(name: str, detector: str) -> dict[str, object]:
    """A detector with its default settings on one of the sets."""
    return _scored(Path(os.environ["ANOMED_TEST_DATA"]) / name, SETS[name], detector, {}, NORMALS)


def of_resnet18() -> dict[str, object]:
    """The default detector on features of an ImageNet network, from a file of weights."""
    root, name = Path(os.environ["ANOMED_TEST_DATA"]), "zhanglab_cxr"
    weights = Path(os.environ["ANOMED_TEST_WEIGHTS"]) / RESNET
    settings = {"backbone": "resnet18", "layers": ("layer2", "layer3"), "weights": str(weights)}
    return _scored(root / name, SETS[name], "twoview", settings, 60)


def _scored(
    root: Path, folders: tuple[str, str, str], detector: str, settings: dict[str, object], count: int
) -> dict[str, object]:
    kind = {"twoview": TwoView, "patchcore": PatchCore}[detector]
    train, normal, abnormal = (_samples(root / folder) for folder in folders)
    start = count if folders[0] == folders[1] else 0
    model = fit(kind(**settings), train[:count], device="cpu")
    scores = model.score(normal[start : start + TESTED] + abnormal[:TESTED])
    assert len(scores) == 2 * TESTED
    assert not scores.failures
    return {**_summary(scores), **of_model(model)}


def _summary(scores: Scores) -> dict[str, object]:
    digest = hashlib.sha256()
    for map in scores.maps:
        digest.update(repr(map.shape).encode() + map.tobytes())
    return {
        "scores": numbers(scores.scores),
        "p_values": numbers(scores.p_values),
        "flagged": "".join(str(int(flagged)) for flagged in scores.flagged),
        "maps_sha256": digest.hexdigest()[:16],
    }


def _samples(folder: Path) -> list[Sample]:
    """The images of a folder by name; their ids do not depend on where the folder lies."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
    return [Sample(path.name, path) for path in files]
