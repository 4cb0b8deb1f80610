"""Tiny trees in the published layouts of CT sets with marks in space: names, elements and columns are theirs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.datasets.layout_files import table
from tests.made_up_files import write_dicom, write_nifti

SHAPE = (48, 64)
STEP = 5.0  # mm between slices
SERIES = "01-01-2000-NA-NA-30178/3000566.000000-NA-03192"

Points = Sequence[tuple[int, int]]


def lidc_idri(root: Path) -> None:
    """Six patients of 20 slices, marked on slices 9 to 11; a radiograph in a study of its own."""
    for number in (1, 2, 3, 4, 5, 6):
        patient = root / f"LIDC-IDRI/LIDC-IDRI-{number:04d}"
        lidc_series(patient / SERIES, f"1.3.6.{number}")
        readings = [lidc_reading(number, square) for square in ((20, 30), (19, 31), (20, 36))]
        lidc_xml(patient / SERIES / "069.xml", [*readings, "<readingSession/>"])
        radiograph = patient / "01-01-2000-NA-NA-35511/3000923.000000-NA-62357"
        radiograph.mkdir(parents=True)
        write_dicom(radiograph / "1-1.dcm", np.zeros(SHAPE, np.uint16), Modality="DX")
        (radiograph / "068.xml").write_text('<IdriReadMessage xmlns="http://www.nih.gov"/>')


def lidc_series(folder: Path, prefix: str) -> None:
    """Air at the ends of the scan, lung between, in Hounsfield units from -1000."""
    folder.mkdir(parents=True)
    for index in range(20):
        pixels = np.full(SHAPE, 0 if index in (0, 19) else 200, np.uint16)
        place = {"ImagePositionPatient": [-20.0, -15.0, -300.0 + STEP * index], "PixelSpacing": [0.7, 0.7]}
        write_dicom(
            folder / f"1-{20 - index:03d}.dcm",  # files run from the head
            pixels,
            Modality="CT",
            SOPInstanceUID=f"{prefix}.{index}",
            SeriesInstanceUID=prefix,
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            RescaleIntercept=-1000,
            RescaleSlope=1,
            **place,
        )


def lidc_reading(number: int, square: tuple[int, int]) -> str:
    """One reader's session: a nodule with a hole, a small one and a finding that is none."""
    low, high = square
    outline = [(low, low), (high, low), (high, high), (low, high)]
    hole = [(24, 24), (28, 24), (28, 28), (24, 28)]
    ratings = "".join(f"<{name}>3</{name}>" for name in ("subtlety", "internalStructure", "malignancy"))
    return (
        "<readingSession><servicingRadiologistID>anon</servicingRadiologistID>"
        f"<unblindedReadNodule><noduleID>N1</noduleID><characteristics>{ratings}</characteristics>"
        f"{lidc_roi(number, 10, outline)}{lidc_roi(number, 10, hole, inclusion='FALSE')}"
        f"{lidc_roi(number, 11, [(25, 25)])}</unblindedReadNodule>"
        f"<unblindedReadNodule><noduleID>N2</noduleID>{lidc_roi(number, 9, [(5, 5)])}</unblindedReadNodule>"
        f"<nonNodule><nonNoduleID>X</nonNoduleID><imageZposition>-250.0</imageZposition>"
        f"<imageSOP_UID>1.3.6.{number}.10</imageSOP_UID>"
        "<locus><xCoord>50</xCoord><yCoord>40</yCoord></locus></nonNodule></readingSession>"
    )


def lidc_roi(number: int, index: int, points: Points, inclusion: str = "TRUE") -> str:
    edges = "".join(f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in points)
    return (
        f"<roi><imageZposition>{-300 + STEP * index}</imageZposition>"
        f"<imageSOP_UID>1.3.6.{number}.{index}</imageSOP_UID><inclusion>{inclusion}</inclusion>{edges}</roi>"
    )


def lidc_xml(path: Path, sessions: Sequence[str]) -> None:
    path.write_text(
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<LidcReadMessage uid="1.3.6" xmlns="http://www.nih.gov" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">'
        "<ResponseHeader><SeriesInstanceUid>1.2.3.4</SeriesInstanceUid></ResponseHeader>"
        f"{''.join(sessions)}</LidcReadMessage>"
    )


DLCS_COLUMNS = "patient-id,nodule_id,ct_nifti_file,coordX,coordY,coordZ,w,h,d,Malignant_lbl,benchmark_split"
DLCS_AFFINE = np.array([[-0.8, 0, 0, 60.0], [0, -0.7, 0, 90.0], [0, 0, 2.5, -200.0], [0, 0, 0, 1]])
DLCS_VOXEL = (22, 12, 14)  # the middle of the nodule


def dlcs(root: Path) -> None:
    """Three volumes of 64 x 48 x 30 voxels as ITK writes them, each with a nodule of 6 x 4 x 2 voxels."""
    rows = []
    x, y, z = (DLCS_AFFINE @ np.array([*DLCS_VOXEL, 1.0]))[:3]
    for number, split in ((1, "train"), (2, "val"), (3, "test")):
        name = f"DLCS_{number:04d}"
        voxels = np.full((64, 48, 30), -800, np.int16)
        voxels[:, :, :3] = -1000
        voxels[20:26, 10:14, 13:15] = 40
        (root / "DLCS24").mkdir(exist_ok=True)
        write_nifti(root / f"DLCS24/{name}.nii.gz", voxels, DLCS_AFFINE)
        middle = f"{-(x - 0.4):.3f},{-(y + 0.35):.3f},{z - 1.25:.3f}"  # half a voxel from a voxel's middle, in LPS
        rows.append(f"{name},{name}_01,{name}.nii.gz,{middle},4.8,2.8,5.0,{number % 2},{split}")
    table(root / "DLCS24/DLCSD24_Annotations.csv", DLCS_COLUMNS, rows)
