"""Tiny trees in the published layouts of public data sets: names, columns and nesting are theirs, pixels not."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np


def picture(path: Path, shape: tuple[int, int] = (24, 20), value: int | None = None) -> Path:
    """A grey picture of any raster format; each name has its own content unless a value is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(map(ord, path.name))
    pixels = np.random.default_rng(seed).integers(0, 255, shape) if value is None else np.full(shape, value)
    cv2.imwrite(str(path), pixels.astype(np.uint8))
    return path


def pictures(root: Path, names: Iterable[str], shape: tuple[int, int] = (24, 20)) -> None:
    """Several pictures below a folder."""
    for name in names:
        picture(root / name, shape)


def lesion_mask(path: Path, shape: tuple[int, int] = (24, 20), value: int = 255) -> Path:
    """A mask with 12 lesion pixels, rows 4 to 6 and columns 8 to 11."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros(shape, np.uint8)
    mask[4:7, 8:12] = value
    cv2.imwrite(str(path), mask)
    return path


def table(path: Path, header: str, rows: Sequence[str]) -> Path:
    """A CSV table as it is published, header and all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def zhanglab_dev(root: Path) -> None:
    pictures(
        root / "zhanglab_cxr",
        [
            "train/normal/IM-0115-0001.jpeg",
            "train/normal/NORMAL2-IM-1113-0001.jpeg",
            "train/normal/NORMAL2-IM-1113-0001-0001.jpeg",
            "test/normal/IM-0734-0001.jpeg",
            "test/bacteria/person1003_bacteria_2934.jpeg",
            "test/virus/person1005_virus_1234.jpeg",
        ],
    )


NIH_RSNA_COLUMNS = "path,group,nih_image,patient,view,age,sex,nih_labels,rsna_class,box_source,boxes_xywh_1024"


def nih_rsna(root: Path) -> None:
    groups = {"train_normal": 2, "heldout_normal_nlp": 1, "test_normal": 1, "test_abnormal_box": 2}
    rows = []
    for number, (group, count) in enumerate(groups.items()):
        for index in range(count):
            name = f"0000{number}{index}00_000"
            picture(root / f"nih_rsna_cxr/images/{group}/{name}.jpg")
            boxes = '"[[8.0, 4.0, 6.0, 10.0], [2.0, 2.0, 4.0, 4.0]]"' if group == "test_abnormal_box" else "[]"
            source = "Lung Opacity,rsna" if group == "test_abnormal_box" else ","
            rows.append(f"images/{group}/{name}.jpg,{group},{name}.png,{name[:8]},PA,36,F,No Finding,{source},{boxes}")
            if group == "test_abnormal_box":
                lesion_mask(root / f"nih_rsna_cxr/masks/{group}/{name}.png")
    table(root / "nih_rsna_cxr/manifest.csv", NIH_RSNA_COLUMNS, rows)


def covid_cxr_lesions(root: Path) -> None:
    nih_rsna(root)
    header = "stem,w,h,lesion_frac,ggo,cons,effusion,ptx,patient,finding,view,licence,url,classes"
    rows = [
        "AB-1,1641,1668,0.115,True,False,False,False,39,COVID-19,PA,,https://x,\"['a', 'b']\"",
        "AB-2,1726,1552,0.0,False,False,False,False,40,COVID-19,PA,,https://x,\"['a', 'b']\"",
    ]
    for stem in ("AB-1", "AB-2"):
        picture(root / f"covid_cxr_lesions/images/{stem}.jpg")
        lesion_mask(root / f"covid_cxr_lesions/masks/{stem}.png", value=255 if stem == "AB-1" else 0)
    table(root / "covid_cxr_lesions/manifest.csv", header, rows)


def covid_ct(root: Path) -> None:
    pictures(
        root / "covid_ct_slices",
        [
            *(f"noncovid/{name}.jpg" for name in ("0", "10_0", "10_1", "25", "25_0", "9")),
            "covid/2020.01.24.919183-p27-132.jpg",
            "covid/2020.01.24.919183-p27-133.jpg",
            "covid/Ni2020_Article_CombinationOf-p4-13_0.jpg",
        ],
    )


def ct_lung_patches(root: Path) -> None:
    rows = []
    for group, source, names, patient in (
        ("train_normal_luna", "LUNA16 normal patient", ("p1_130_z133.png", "p2_131_z1.png"), "1"),
        ("heldout_normal_luna", "LUNA16 normal patient", ("p3_130_z133.png",), "3"),
        ("test_lesion_msd", "MSD Task06 val", ("val_000.png", "val_001.png"), "018"),
        ("test_lesionfree_msd", "MSD Task06 val", ("val_002.png",), "018"),
    ):
        for name in names:
            picture(root / f"ct_lung_patches/{group}/{name}")
            rows.append(f"{name},{group},{source},block{patient},{patient},{12 if group == 'test_lesion_msd' else ''}")
            if group == "test_lesion_msd":
                lesion_mask(root / f"ct_lung_patches/masks/{group}/{name}")
    table(root / "ct_lung_patches/manifest.csv", "file,group,source,patient_block,presumed_patient_id,lesion_px", rows)


def brats2013(root: Path) -> None:
    rows = []
    for patient in range(1, 7):
        name = f"pat000{patient}"
        for group, z in (("normal", "011"), ("abnormal", "060")):
            picture(root / f"brats2013_flair/{group}/{name}_z{z}.png")
            rows.append(f"{name}_z{z}.png,{name},{int(z)},{group},{12 if group == 'abnormal' else 0},2633,0")
        lesion_mask(root / f"brats2013_flair/masks/{name}_z060.png")
        rows.append(f"{name}_z050.png,{name},50,skipped_tiny,3,2633,1")
    table(root / "brats2013_flair/manifest.csv", "file,patient,z,group,tumour_px,brain_px,tumour_within_3_slices", rows)


def folder(root: Path) -> None:
    pictures(root, ["train/normal/a.png", "train/normal/sub/b.jpg", "test/normal/c.png", "test/abnormal/d.png"])
    lesion_mask(root / "test/masks/d.png")


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
