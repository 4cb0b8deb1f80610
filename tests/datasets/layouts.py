"""Tiny trees in the layouts of our own sets, of CT, MR and collections: names and columns are theirs, pixels not."""

from pathlib import Path

import numpy as np

from anomalib_med.phantoms import write_chest_dataset, write_digit_anatomy
from tests.datasets.layout_files import lesion_mask, metaimage, picture, pictures, table, volumes, write_json


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


def medianomaly_list(root: Path, name: str) -> None:
    base = root / f"MedIAnomaly-Data/{name}"
    lists = {
        "train": {"0": ["a.png", "b.png"], "unlabeled": {"0": ["c.png"], "1": ["d.png"]}},
        "test": {"0": ["e.png"], "1": ["f.png", "g.png"]},
    }
    pictures(base / "images", [f"{letter}.png" for letter in "abcdefg"])
    write_json(base / "data.json", lists)


def medianomaly_isic2018(root: Path) -> None:
    base, header = root / "MedIAnomaly-Data/ISIC2018_Task3", "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC"
    naevus, melanoma = "0.0,1.0,0.0,0.0,0.0,0.0,0.0", "1.0,0.0,0.0,0.0,0.0,0.0,0.0"
    for part, rows in {
        "Training": {"ISIC_0024306": naevus, "ISIC_0024307": naevus, "ISIC_0024310": melanoma},
        "Test": {"ISIC_0034524": naevus, "ISIC_0034525": melanoma},
    }.items():
        pictures(base / f"ISIC2018_Task3_{part}_Input", [f"{name}.jpg" for name in rows])
        name = f"ISIC2018_Task3_{part}_GroundTruth"
        table(base / name / f"{name}.csv", header, [f"{image},{row}" for image, row in rows.items()])


def medianomaly_camelyon16(root: Path) -> None:
    names = ["train/good/1000.png", "train/good/1001.png", "test/good/1000.png", "test/Ungood/100.png"]
    pictures(root / "MedIAnomaly-Data/Camelyon16", names)


def medianomaly_brats2021(root: Path) -> None:
    base = root / "MedIAnomaly-Data/BraTS2021"
    pictures(
        base,
        [
            "train/BraTS2021_00000_flair_70.png",
            "test/normal/BraTS2021_00002_flair_40.png",
            "test/tumor/BraTS2021_00002_flair_72.png",
        ],
    )
    lesion_mask(base / "test/annotation/BraTS2021_00002_seg_72.png")


LUNA_ORIGIN = (-40.0, -50.0, -100.0)


def luna16(root: Path) -> None:
    """Three scans of 40 slices of 80 x 96 pixels; the one of the test fold has a nodule of 7 mm in slice 20."""
    base, candidates, annotations = root / "LUNA16", [], []
    for fold, series in ((0, "1.3.6.1"), (3, "1.3.6.2"), (8, "1.3.6.3")):
        voxels = np.full((40, 80, 96), -1000, np.int16)
        voxels[20, 35:45, 43:53] = 30
        metaimage(base / f"subset{fold}/{series}.mhd", voxels, origin=LUNA_ORIGIN)
        for z in (5, 20, 35):
            x, y = LUNA_ORIGIN[0] + 48 * 0.7, LUNA_ORIGIN[1] + 40 * 0.7
            place = f"{series},{x},{y},{LUNA_ORIGIN[2] + 2.5 * z}"
            nodule = z == 20 and fold == 8
            # A tenth of the candidates is kept by hash, so there are many.
            candidates += [f"{place}{number},{int(nodule)}" for number in range(1 if nodule else 60)]
            if nodule:
                annotations.append(f"{place},7.0")
    table(base / "candidates_V2.csv", "seriesuid,coordX,coordY,coordZ,class", candidates)
    table(base / "annotations.csv", "seriesuid,coordX,coordY,coordZ,diameter_mm", annotations)


def br35h(root: Path) -> None:
    pictures(root / "Br35H", ["no/no0.jpg", "no/no1.jpg", "no/no2.jpg", "yes/y0.jpg", "yes/y1.jpg", "pred/pred0.jpg"])


def bmad(root: Path, folder: str, *, masks: bool = False, nested: bool = True, ungood: str = "Ungood") -> None:
    """As the archives hold it: test images in `img`, or not; the abnormal folder in either spelling."""
    base, image = root / folder, "img/" if nested else ""
    names = [
        "train/good/00003_60.png",
        "train/good/00003_61.png",
        f"valid/good/{image}00025_99.png",
        f"test/good/{image}00000_96.png",
        f"test/{ungood}/{image}00002_60.png",
    ]
    pictures(base, names)
    if masks:
        lesion_mask(base / f"test/{ungood}/label/00002_60.png")


def phantoms(root: Path) -> None:
    write_chest_dataset(root / "phantoms", train=2, normal=1, abnormal=2, size=64)


def digit_anatomy(root: Path) -> None:
    write_digit_anatomy(root / "digit_anatomy", train=2, normal=1, abnormal=2)


def planted(root: Path) -> None:
    """As `write_planted` leaves it, with a lesion of twelve pixels."""
    header = "path,patient,label,mask,kind,size,contrast,split,source"
    rows = []
    for path, label, mask, lesion in (
        ("train/normal/00000.png", 0, "", ",,"),
        ("test/normal/00000.png", 0, "", ",,"),
        ("test/abnormal/00000_0.png", 1, "test/masks/00000_0.png", "nodule,1.0,0.5"),
        ("test/abnormal/00000_1.png", 1, "test/masks/00000_1.png", "opacity,1.0,0.5"),
    ):
        split = path.partition("/")[0]
        picture(root / "planted" / path)
        if mask:
            lesion_mask(root / "planted" / mask)
        rows.append(f"{path},{split}-patient,{label},{mask},{lesion},{split},image.png")
    table(root / "planted/manifest.csv", header, rows)


def msd_lung(root: Path) -> None:
    base = root / "Task06_Lung"
    for number in range(1, 9):
        name = f"lung_{number:03d}.nii.gz"
        volumes(base / "imagesTr" / name, base / "labelsTr" / name, 40, -800)


def brats_slices(root: Path) -> None:
    for number in (0, 1, 2, 21, 25):  # the hash puts the last two on the test side
        name = f"BraTS2021_{number:05d}"
        base = root / "BraTS2021_Training_Data" / name
        volumes(base / f"{name}_flair.nii.gz", base / f"{name}_seg.nii.gz", 0, 300)
