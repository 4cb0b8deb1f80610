"""Peak memory and seconds a slice of ``anomed score`` on one long CT series.

    python benchmarks/ct_memory.py --slices 600 --maps nifti

Writes phantoms of 512 x 512 as a DICOM series whose files are in random order (``--kind nifti``: as ``.nii.gz``), fits
PatchCore on twenty of them and scores the series in a process of its own. Options after ``--`` go to ``anomed fit``,
for example ``-- --height lung --slices 3``.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from shared import command_line

from anomalib_med.phantoms.ct import ct_slice_phantom

SIDE, DIFFERENT = 512, 20


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--slices", type=int, default=600)
    parser.add_argument("--kind", choices=["dicom", "nifti"], default="dicom")
    parser.add_argument("--maps", default="nifti")
    parser.add_argument("fit", nargs="*", help="Options of anomed fit.")
    options = parser.parse_args()
    phantoms = [np.round(ct_slice_phantom(seed, SIDE).pixels).astype(np.int16) for seed in range(DIFFERENT)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_nifti(folder / "normals.nii.gz", phantoms, DIFFERENT)
        if options.kind == "dicom":
            write_dicom(folder / "scan", phantoms, options.slices)
        else:
            write_nifti(folder / "scan" / "scan.nii.gz", phantoms, options.slices)
        fitting = ("-m", "patchcore", "--valid", "lung", "--calibration", "0", "--window", "lung", *options.fit)
        anomed("fit", folder / "normals.nii.gz", "-o", folder / "model", *fitting)
        start = time.perf_counter()
        anomed(
            "score", folder / "model", folder / "scan", "-o", folder / "out", "--maps", options.maps, "--no-overlays"
        )
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"{options.slices} slices, {options.kind}, maps {options.maps}, {' '.join(options.fit) or 'defaults'}:")
    print(f"peak of fit and score {peak:.2f} GiB, {seconds / options.slices:.3f} s a slice, start included")


def anomed(*words: object) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "anomalib_med", *map(str, words), "--device", "cpu"]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


def write_nifti(path: Path, phantoms: list[np.ndarray], count: int) -> None:
    path.parent.mkdir(exist_ok=True)
    voxels = np.stack([phantoms[k % len(phantoms)][::-1, ::-1].T for k in range(count)], axis=2)
    nibabel.Nifti1Image(voxels, np.diag([0.7, 0.7, 1.0, 1.0])).to_filename(path)


def write_dicom(folder: Path, phantoms: list[np.ndarray], count: int) -> None:
    folder.mkdir()
    for k, number in enumerate(np.random.default_rng(0).permutation(count)):
        d = Dataset()
        d.file_meta = FileMetaDataset()
        d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        d.SOPClassUID, d.SOPInstanceUID = CTImageStorage, f"1.2.3.{k + 1}"
        d.StudyInstanceUID, d.SeriesInstanceUID, d.PatientID, d.Modality = "1.2.1", "1.2.2", "P", "CT"
        d.ImageOrientationPatient, d.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-179, -179, float(k)]
        d.PixelSpacing, d.Rows, d.Columns, d.InstanceNumber = [0.7, 0.7], SIDE, SIDE, k + 1
        d.SamplesPerPixel, d.PhotometricInterpretation, d.PixelRepresentation = 1, "MONOCHROME2", 1
        d.BitsAllocated, d.BitsStored, d.HighBit, d.RescaleSlope, d.RescaleIntercept = 16, 16, 15, 1, 0
        d.PixelData = phantoms[k % len(phantoms)].tobytes()
        pydicom.dcmwrite(folder / f"{number:05d}.dcm", d, enforce_file_format=True)


if __name__ == "__main__":
    main()
