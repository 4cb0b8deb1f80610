"""Nodules planted into real CT volumes: slices, pixels and candidates, with and without the lung mask.

    python benchmarks/ct_volumes.py FOLDER -b radlite -b resnet18=FILE --valid auto --valid lung

FOLDER holds 8-bit slices in a lung window (1500 / -600), named ``<patient>_z<number>.jpg``. Each patient in turn is
left out: a detector is fitted on the others, and judged on the patient's own slices against the same volume with balls
of 8 to 20 mm planted into the lungs. Pixels are taken to be 0.7 mm, slice numbers 1 mm apart. One row for each setting:
the mean over the patients left out, and the lowest and highest of them.
"""

import argparse
import re
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import cv2
import nibabel
import numpy as np

from anomalib_med import PatchCore, Preprocessing, Sample, fit, score_to_folder
from anomalib_med.datasets.folder import discover
from anomalib_med.datasets.synthetic.lungs import lungs_of_ct
from anomalib_med.evaluation.candidates import Lesion, candidate_froc, found_candidates
from anomalib_med.evaluation.evaluate import evaluate_model

PIXEL, NODULES, METRICS = 0.7, 8, ("auroc", "pixel_auroc", "pixel_ap", "aupro@0.3", "froc_cpm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-b", "--backbone", action="append", required=True, metavar="NAME[=WEIGHTS]")
    parser.add_argument("--valid", action="append", required=True)
    parser.add_argument("--bank-size", type=int, default=2000)
    parser.add_argument("--every", type=int, default=1, help="Take every n-th slice.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        lesions = {name: write(root, name, slices) for name, slices in volumes(options.folder, options.every).items()}
        for backbone in options.backbone:
            for valid in options.valid:
                rows = [measure(root, name, backbone, valid, options.bank_size, lesions[name]) for name in lesions]
                print(
                    f"{backbone.partition('=')[0]} {valid}: " + "; ".join(told(key, rows) for key in rows[0]),
                    flush=True,
                )


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


def measure(
    root: Path, name: str, backbone: str, valid: str, bank_size: int, lesions: list[Lesion]
) -> dict[str, float]:
    named, _, weights = backbone.partition("=")
    detector = PatchCore(backbone=named, bank_size=bank_size, **({"weights": weights} if weights else {}))
    train = [s for s in discover(root / "normal") if not s.id.startswith(f"{name}_")]
    settings = Preprocessing(valid=valid, windows=("lung",))
    model = fit(detector, train, calibration=0, preprocessing=settings, device="cpu", cache=root / "cache" / named)
    normal = [replace(s, label=0, patient=s.id) for s in discover(root / "normal" / f"{name}_normal.nii.gz")]
    scan, mask = root / "planted" / f"{name}_planted.nii.gz", root / "mask" / f"{name}_mask.nii.gz"
    cut = np.asarray(nibabel.load(mask).dataobj).sum(axis=(0, 1))
    abnormal: list[Sample] = [
        replace(s, label=1, mask=mask, patient=s.id) for s in discover(scan) if cut[s.frame or 0] >= 20
    ]
    measured = evaluate_model(model, [*normal, *abnormal], replicates=100).metrics
    out = root / "out"
    score_to_folder(
        model, [scan, root / "normal" / f"{name}_normal.nii.gz"], out, maps="none", overlays=False, overwrite=True
    )
    found, patients = found_candidates(out, lesions)
    froc = candidate_froc(found, patients, replicates=100)
    slices = {key: value.value for key, value in measured.items() if key.startswith(METRICS)}
    slices["slice_froc_cpm"] = slices.pop("froc_cpm")
    return slices | {
        "candidate_cpm": froc["froc_cpm"].value,
        "sensitivity@1fp/scan": froc["sensitivity@1fp/scan"].value,
    }


def told(key: str, rows: list[dict[str, float]]) -> str:
    values = [row[key] for row in rows]
    return f"{key} {np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main()
