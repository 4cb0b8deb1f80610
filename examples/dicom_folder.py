"""A folder of normal DICOM files, a folder of new ones, and results by patient.

    python examples/dicom_folder.py NORMALS IMAGES [-o OUT]
    python examples/dicom_folder.py                 (generates small DICOM files first)

The same on the command line:

    anomed fit NORMALS -o OUT/model --calibration 0.5
    anomed score OUT/model IMAGES -o OUT/results --report
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from anomalib_med import TwoView, fit, score_to_folder
from anomalib_med.outputs.tables import read_scores
from anomalib_med.phantoms import add_lesion, chest_phantom


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("normals", nargs="?", type=Path)
    parser.add_argument("images", nargs="?", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("demo/dicom"))
    options = parser.parse_args()
    if options.normals and not options.images:
        parser.error("give both NORMALS and IMAGES, or neither")
    out: Path = options.output
    normals, images = options.normals or out / "normals", options.images or out / "images"
    if not options.normals:
        write_studies(normals, patients=range(1, 41), ill=False)
        write_studies(images, patients=range(41, 45), ill=False)
        write_studies(images, patients=range(45, 49), ill=True)

    # Patients are told apart by PatientID: half of them calibrate, and no patient is on both sides.
    model = fit(TwoView(), normals, calibration=0.5)
    print(f"fitted on {model.training['patients']} patients, calibrated on {model.training['held_out_patients']}")

    # Maps have the rows and columns of the DICOM image; results of an earlier run are replaced.
    score_to_folder(model, images, out / "results", maps="npy", report=True, overwrite=True)
    by_patient = defaultdict(list)
    for result in read_scores(out / "results" / "scores.csv"):
        by_patient[result.patient].append(result)
    for patient, results in by_patient.items():
        highest = max(results, key=lambda result: result.score)
        grid = np.load(out / "results" / highest.map, allow_pickle=False)
        print(f"{patient}: {len(results)} images, highest {highest.score:.3f} ({highest.id}), map {grid.shape}")


def write_studies(folder: Path, patients: range, *, ill: bool) -> None:
    """Two 12-bit chest phantoms a patient as DX files."""
    folder.mkdir(parents=True, exist_ok=True)
    for patient in patients:
        for shot in range(2):
            phantom = chest_phantom(2 * patient + shot, 128)
            pixels = phantom.pixels
            if ill:
                pixels, _ = add_lesion(pixels, phantom.lungs, "opacity", np.random.default_rng([patient, shot]))
            write_dicom(folder / f"p{patient:03d}_{shot}.dcm", np.round(pixels * 4095).astype(np.uint16), f"P{patient}")


def write_dicom(path: Path, pixels: np.ndarray, patient: str) -> None:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[path.name])
    file = FileDataset(path, {}, file_meta=meta, preamble=bytes(128))
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    file.PatientID, file.Modality, file.StudyInstanceUID = patient, "DX", generate_uid(entropy_srcs=[patient])
    file.Rows, file.Columns = pixels.shape
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 12, 11, 0
    file.WindowCenter, file.WindowWidth = 2048, 4096
    file.PixelData = pixels.astype("<u2").tobytes()
    file.save_as(path, enforce_file_format=True)


if __name__ == "__main__":
    main()
