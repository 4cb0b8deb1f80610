"""Nodules planted into real CT volumes: slices, pixels and candidates, with and without lung mask and height.

    python benchmarks/ct_volumes.py FOLDER -b radlite -b resnet18=FILE --valid auto --valid lung --height lung

FOLDER holds 8-bit slices in a lung window (1500 / -600), named ``<patient>_z<number>.jpg``. Each patient in turn is
left out: a detector is fitted on the others, and judged on the patient's own slices against the same volume with balls
of 8 to 20 mm planted into the lungs. Pixels are taken to be 0.7 mm, slice numbers 1 mm apart. One row for each setting:
the mean over the patients left out, with a 95 % interval that resamples their slices; for candidates the scans of all
patients together, resampled by patient.
"""

import re
import tempfile
from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import cv2
import nibabel
import numpy as np
from shared import command_line

from anomalib_med import FittedModel, Preprocessing, Sample, detectors, fit, score_to_folder
from anomalib_med.datasets.folder import discover
from anomalib_med.evaluation.candidate_froc import Lesion, candidate_froc, found_candidates
from anomalib_med.evaluation.evaluate import evaluate_model
from anomalib_med.evaluation.froc import Found
from anomalib_med.evaluation.intervals import Measured
from anomalib_med.outputs.volume_tables import read_volumes
from anomalib_med.phantoms.ct_lungs import lungs_of_ct

PIXEL, NODULES, REPLICATES = 0.7, 8, 200
METRICS = ("auroc", "pixel_auroc", "pixel_ap", "aupro@0.3", "froc_cpm")
SENSITIVITY = "sensitivity@4fp/scan"
COLUMNS = ("slice AUROC", "pixel AUROC", "pixel AP", "AUPRO@.3", "CPM, slices", "CPM, candidates", SENSITIVITY)


@dataclass(frozen=True)
class Setting:
    """One row of the table."""

    detector: str
    backbone: str
    valid: str
    height: str
    slices: int


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-m", "--model", action="append", choices=["patchcore", "twoview"])
    parser.add_argument("-b", "--backbone", action="append", required=True, metavar="NAME[=WEIGHTS]")
    parser.add_argument("--valid", action="append", required=True)
    parser.add_argument("--height", action="append", choices=["none", "volume", "lung"])
    parser.add_argument("--slices", action="append", type=int)
    parser.add_argument("--bank-size", type=int, default=2000)
    parser.add_argument("--every", type=int, default=1, help="Take every n-th slice.")
    parser.add_argument("--cache", type=Path, help="Folder that keeps features.")
    options = parser.parse_args()
    print(f"| detector | features | `--valid` | `--height` | `--slices` | {' | '.join(COLUMNS)} |")
    print("|---" * (5 + len(COLUMNS)) + "|", flush=True)
    each = product(
        options.model or ["patchcore"],
        options.backbone,
        options.valid,
        options.height or ["none"],
        options.slices or [1],
    )
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        cache = options.cache or root / "cache"
        lesions = {name: write(root, name, slices) for name, slices in volumes(options.folder, options.every).items()}
        for setting in (Setting(*parts) for parts in each):
            measured, found, patients = [], [], []
            for name, nodules in lesions.items():
                model = fitted(root, name, setting, options.bank_size, cache)
                measured.append(slices_of(model, root, name))
                scans, _ = candidates_of(model, root, name, nodules)
                found += scans
                patients += [name] * len(scans)
            froc = candidate_froc(found, patients, replicates=REPLICATES)
            cells = [over_patients(measured, metric) for metric in METRICS]
            cells += [str(froc["froc_cpm"]), str(froc[SENSITIVITY])]
            named = setting.backbone.partition("=")[0]
            row = (setting.detector, named, setting.valid, setting.height, str(setting.slices), *cells)
            print(f"| {' | '.join(row)} |", flush=True)


def volumes(folder: Path, every: int) -> dict[str, tuple[np.ndarray, float]]:
    """Hounsfield units ``(slices, H, W)`` and mm between slices, by patient."""
    files: dict[str, list[tuple[int, Path]]] = defaultdict(list)
    for path in folder.rglob("*_z*.jpg"):
        patient, number = re.fullmatch(r"(.+)_z(\d+)", path.stem).groups()
        files[patient].append((int(number), path))
    found = {}
    for patient, numbered in sorted(files.items()):
        numbers = sorted(numbered)[::every]
        step = float(np.median(np.diff([n for n, _ in numbers])))
        hu = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) * (1500 / 255) - 1350 for _, path in numbers]
        found[patient] = np.stack(hu).astype(np.float32), step
    return found


def write(root: Path, name: str, volume: tuple[np.ndarray, float]) -> list[Lesion]:
    """The normal volume, the one with nodules and their mask as NIfTI; returns the nodules."""
    hu, step = volume
    rng = np.random.default_rng([7, sum(name.encode())])
    planted, mask, lesions = hu.copy(), np.zeros(hu.shape, np.uint8), []
    affine = np.diag([-PIXEL, -PIXEL, step, 1.0])
    z, y, x = (np.arange(n) for n in hu.shape)
    inside = {k: np.argwhere(lungs_of_ct(hu[k])) for k in np.linspace(4, len(hu) - 5, NODULES).astype(int)}
    for k, places in inside.items():
        row, column = places[rng.integers(len(places))]
        radius = rng.uniform(4, 10)
        apart = np.sqrt(
            ((z[:, None, None] - k) * step) ** 2 + ((y[:, None] - row) * PIXEL) ** 2 + ((x - column) * PIXEL) ** 2
        )
        weight = 1 / (1 + np.exp((apart - radius) / PIXEL))
        planted += (weight * (30 - planted)).astype(np.float32)
        mask |= (weight > 0.5).astype(np.uint8)
        lesions.append(Lesion(f"{name}_planted", (-PIXEL * column, -PIXEL * row, float(k * step)), 2 * radius))
    for kind, voxels in (("normal", hu), ("planted", planted), ("mask", mask)):
        (root / kind).mkdir(exist_ok=True)
        stored = np.round(voxels).astype(np.int16).T
        nibabel.Nifti1Image(stored, affine).to_filename(root / kind / f"{name}_{kind}.nii.gz")
    return lesions


def fitted(root: Path, name: str, setting: Setting, bank_size: int, cache: Path) -> FittedModel:
    """A detector fitted on the normal volumes of the other patients."""
    named, _, weights = setting.backbone.partition("=")
    settings: dict[str, object] = {"backbone": named, "bank_size": bank_size}
    detector = detectors()[setting.detector](**settings, **({"weights": weights} if weights else {}))
    train = [s for s in discover(root / "normal") if not s.id.startswith(f"{name}_")]
    preprocessing = Preprocessing(valid=setting.valid, height=setting.height, slices=setting.slices, windows=("lung",))
    return fit(detector, train, calibration=0, preprocessing=preprocessing, device="cpu", cache=cache)


def slices_of(model: FittedModel, root: Path, name: str) -> dict[str, Measured]:
    """Metrics of the normal slices of a patient against those with a nodule; slices are the unit of resampling."""
    normal = [replace(s, label=0, patient=s.id) for s in discover(root / "normal" / f"{name}_normal.nii.gz")]
    scan, mask = root / "planted" / f"{name}_planted.nii.gz", root / "mask" / f"{name}_mask.nii.gz"
    cut = np.asarray(nibabel.load(mask).dataobj).sum(axis=(0, 1))
    abnormal: list[Sample] = [
        replace(s, label=1, mask=mask, patient=s.id) for s in discover(scan) if cut[s.frame or 0] >= 20
    ]
    return evaluate_model(model, [*normal, *abnormal], replicates=REPLICATES).measured


def candidates_of(model: FittedModel, root: Path, name: str, lesions: list[Lesion]) -> tuple[list[Found], list[str]]:
    """What the candidates in the patient's two volumes hit."""
    scans = [root / "planted" / f"{name}_planted.nii.gz", root / "normal" / f"{name}_normal.nii.gz"]
    score_to_folder(model, scans, root / "out", maps="none", overlays=False, overwrite=True)
    return found_candidates(read_volumes(root / "out"), lesions)


def over_patients(measured: list[dict[str, Measured]], metric: str) -> str:
    """Mean over the patients, and the interval of the mean of their replicates."""
    value = np.mean([m[metric].interval.value for m in measured])
    low, high = np.nanpercentile(np.mean([m[metric].replicates for m in measured], axis=0), (2.5, 97.5))
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    main()
