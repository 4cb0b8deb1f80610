"""Tiny trees in the published layouts of chest X-ray sets: names, columns and nesting are theirs, pixels are not."""

import gzip
from pathlib import Path

from tests.datasets.layout_files import dicom, picture, pictures, table, write_json


def rsna_pneumonia(root: Path) -> None:
    """Twenty-four patients, so that the hash puts some of each kind on the test side."""
    base = root / "rsna-pneumonia-detection-challenge"
    kinds = ("Normal", "Normal", "No Lung Opacity / Not Normal", "Lung Opacity")
    classes, labels = [], []
    for number in range(24):
        patient, kind = f"{number:08x}-d0ae-4f0b-92ef-b5b4ce3e0b55", kinds[number % 4]
        dicom(base / f"stage_2_train_images/{patient}.dcm", patient)
        boxes = ("4.0,2.0,6.0,8.0,1", "12.0,2.0,6.0,8.0,1") if kind == "Lung Opacity" else (",,,,0",)
        classes += [f"{patient},{kind}" for _ in boxes]
        labels += [f"{patient},{box}" for box in boxes]
    table(base / "stage_2_detailed_class_info.csv", "patientId,class", classes)
    table(base / "stage_2_train_labels.csv", "patientId,x,y,width,height,Target", labels)


VINDR_LABELS = "Aortic enlargement,Cardiomegaly,ILD,Lung Opacity,Nodule/Mass,Pneumonia,Other diseases,No finding"


def vindr_cxr(root: Path) -> None:
    base = root / "vindr-cxr/1.0.0"
    none, some = "0,0,0,0,0,0,0,1", "0,1,0,0,0,0,0,0"
    rows = []
    for image, readings in {"a0": (none, none, none), "a1": (none, none, some), "a2": (none, none, none)}.items():
        dicom(base / f"train/{image}.dicom", image)
        rows += [f"{image},R{reader},{reading}" for reader, reading in enumerate(readings, 8)]
    table(base / "annotations/image_labels_train.csv", f"image_id,rad_id,{VINDR_LABELS}", rows)
    header = "image_id,rad_id,class_name,x_min,y_min,x_max,y_max"
    table(base / "annotations/annotations_train.csv", header, ["a1,R10,Cardiomegaly,4.0,2.0,10.0,10.0"])
    for image in ("b0", "b1"):
        dicom(base / f"test/{image}.dicom", image)
    labels = VINDR_LABELS.replace("Other diseases", "Other disease")
    table(base / "annotations/image_labels_test.csv", f"image_id,{labels}", [f"b0,{none}", f"b1,{some}"])
    boxes = ["b0,No finding,,,,", "b1,Cardiomegaly,4.0,2.0,10.0,10.0"]
    table(base / "annotations/annotations_test.csv", "image_id,class_name,x_min,y_min,x_max,y_max", boxes)


def vindr_cxr_kaggle(root: Path) -> None:
    base, rows = root / "vinbigdata-chest-xray-abnormalities-detection", []
    for number in range(12):
        image = f"{number:032x}"
        dicom(base / f"train/{image}.dicom", image)
        found = ("No finding,14", ",,,") if number % 2 else ("Aortic enlargement,0", "4.0,2.0,10.0,10.0")
        rows += [f"{image},{found[0]},R{reader},{found[1]}" for reader in (8, 9, 10)]
    table(base / "train.csv", "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max", rows)


def chestxray14(root: Path) -> None:
    base = root / "ChestX-ray14"
    rows, boxes, lists = [], [], {"train_val": [], "test": []}
    for patient, findings, side in (
        (1, ("No Finding", "Cardiomegaly|Effusion"), "train_val"),
        (2, ("No Finding",), "train_val"),
        (3, ("No Finding", "Infiltration"), "test"),
        (4, ("Mass",), "test"),
    ):
        for follow_up, finding in enumerate(findings):
            name = f"{patient:08d}_{follow_up:03d}.png"
            picture(base / f"images_{1 + patient // 3:03d}/images/{name}")
            size = "2682,2749,0.143,0.143,"
            rows.append(f"{name},{finding},{follow_up},{patient},58,M,PA,{size}")
            lists[side].append(name)
    boxes = ["00000003_001.png,Infiltrate,4.0,2.0,6.0,8.0,,,", "00000003_001.png,Mass,12.0,2.0,6.0,8.0,,,"]
    header = (
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
        "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
    )
    table(base / "Data_Entry_2017.csv", header, rows)
    table(base / "BBox_List_2017.csv", "Image Index,Finding Label,Bbox [x,y,w,h],,,", boxes)
    for side, names in lists.items():
        (base / f"{side}_list.txt").write_text("\n".join(names))


def zhanglab(root: Path) -> None:
    pictures(
        root / "chest_xray",
        [
            "train/NORMAL/IM-0115-0001.jpeg",
            "train/NORMAL/NORMAL2-IM-0383-0001.jpeg",
            "train/PNEUMONIA/person1_bacteria_1.jpeg",
            "val/NORMAL/NORMAL2-IM-1427-0001.jpeg",
            "val/PNEUMONIA/person1946_bacteria_4874.jpeg",
            "test/NORMAL/IM-0001-0001.jpeg",
            "test/PNEUMONIA/person1_virus_6.jpeg",
            "test/PNEUMONIA/person100_bacteria_475.jpeg",
        ],
    )


def zhanglab_of_mendeley(root: Path) -> None:
    pictures(
        root / "chest_xray",
        [
            "train/NORMAL/NORMAL-28501-0001.jpeg",
            "train/PNEUMONIA/BACTERIA-7422-0001.jpeg",
            "test/NORMAL/NORMAL-4512-0001.jpeg",
            "test/PNEUMONIA/BACTERIA-40699-0001.jpeg",
            "test/PNEUMONIA/VIRUS-129004-0001.jpeg",
        ],
    )


def chexpert_squid(root: Path) -> None:
    names = [
        "train_256_pa/normal_256/00000.jpg",
        "train_256_pa/normal_256/00001.jpg",
        "val_256_pa/normal_256/00002.jpg",
        "our_test_256_pa/normal_256/00960.jpg",
        "our_test_256_pa/abnormal_256/00002.jpg",
    ]
    pictures(root / "chexpert", names)


CHEXPERT_LABELS = (
    "No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,"
    "Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)
NOTHING, PNEUMONIA, DEVICE = "1.0" + "," * 13, "," * 7 + "1.0" + "," * 6, "," * 13 + "1.0"


def chexpert(root: Path) -> None:
    """Thirty patients, so that the hash puts some of each kind on the test side."""
    base, rows = root / "CheXpert-v1.0-small", []
    for number in range(30):
        study = f"CheXpert-v1.0-small/train/patient{number:05d}/study1"
        labels = (NOTHING, PNEUMONIA, DEVICE)[number % 3]
        picture(root / study / "view1_frontal.jpg")
        rows.append(f"{study}/view1_frontal.jpg,Female,68,Frontal,AP,{labels}")
        rows.append(f"{study}/view2_lateral.jpg,Female,68,Lateral,,{labels}")
    table(base / "train.csv", f"Path,Sex,Age,Frontal/Lateral,AP/PA,{CHEXPERT_LABELS}", rows)


def mimic_cxr_jpg(root: Path) -> None:
    base = root / "mimic-cxr-jpg/2.1.0"
    meta, labels, splits = [], [], []
    for subject, study, split, finding in (
        ("10000032", "50414267", "train", NOTHING),
        ("10000032", "53189527", "train", PNEUMONIA),
        ("11000935", "51178377", "test", NOTHING),
        ("19999987", "55368167", "test", PNEUMONIA),
        ("19999987", "58621812", "validate", NOTHING),
    ):
        for view in ("AP", "LATERAL"):
            name = f"{study}-{view.lower()}"
            picture(base / f"files/p{subject[:2]}/p{subject}/s{study}/{name}.jpg")
            meta.append(f"{name},{subject},{study},CHEST (PA AND LAT),{view},3056,2544")
            splits.append(f"{name},{study},{subject},{split}")
        labels.append(f"{subject},{study},{finding}")
    header = "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns"
    for name, columns, rows in (
        ("metadata", header, meta),
        ("chexpert", f"subject_id,study_id,{CHEXPERT_LABELS}", labels),
        ("split", "dicom_id,study_id,subject_id,split", splits),
    ):
        path = base / f"mimic-cxr-2.0.0-{name}.csv.gz"
        path.write_bytes(gzip.compress(("\n".join([columns, *rows]) + "\n").encode()))


def padchest(root: Path) -> None:
    base, rows = root / "PadChest", []
    kinds = ("['normal']", "['pneumonia', 'pleural effusion']", "['normal', 'exclude']", "['unchanged']", "")
    for number in range(80):
        name, folder = f"2168401113669640{number:020d}_00-{number:03d}.png", number % 3
        picture(base / f"{folder}/{name}")
        labels = f'"{kinds[number % 5]}"'
        rows.append(f"{name},{folder},20140915,{number},839860488694{number:03d},1930,M,POSTEROANTERIOR,PA,No,{labels}")
    header = (
        "ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,ViewPosition_DICOM,"
        "Projection,Pediatric,Labels"
    )
    table(base / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv", header, rows)


def chestx_det(root: Path) -> None:
    base = root / "ChestX-Det"
    square = [[4, 4], [8, 4], [8, 8], [4, 8]]
    for side, names in {"train": ("36199", "36204"), "test": ("36205", "36206")}.items():
        pictures(base / side, [f"{name}.png" for name in names])
        items = [
            {"file_name": f"{names[0]}.png", "syms": [], "boxes": [], "polygons": []},
            {"file_name": f"{names[1]}.png", "syms": ["Nodule"], "boxes": [[4, 4, 8, 8]], "polygons": [square]},
        ]
        write_json(base / f"ChestX_Det_{side}.json", items)


def tbx11k(root: Path) -> None:
    base = root / "TBX11K"
    for side, names in {
        "train": ("health/h0001.png", "health/h0002.png", "tb/tb0005.png"),
        "val": ("health/h0003.png", "sick/s0001.png", "tb/tb0007.png"),
    }.items():
        pictures(base / "imgs", names)
        images = [{"id": i, "file_name": name, "width": 20, "height": 24} for i, name in enumerate(names, 1)]
        boxes = [{"id": 1, "image_id": 3, "category_id": 1, "iscrowd": 0, "area": 48, "bbox": [4.5, 2.0, 6.0, 8.0]}]
        categories = [{"id": 1, "name": "ActiveTuberculosis", "supercategory": "Tuberculosis"}]
        content = {"categories": categories, "images": images, "annotations": boxes}
        write_json(base / f"annotations/json/TBX11K_{side}.json", content)


def siim_pneumothorax(root: Path) -> None:
    base, rows = root / "siim", []
    for number in range(24):
        name = f"1.2.276.0.7230010.3.1.4.8323329.{number}.1517875201.850819"
        dicom(base / f"dicom-images-train/1.2.{number}/1.3.{number}/{name}.dcm")
        rows += [f"{name}, 30 4 20 4", f"{name}, 100 2"] if number % 2 else [f"{name}, -1"]
    table(base / "train-rle.csv", "ImageId, EncodedPixels", rows)


def nlm_tb(root: Path, folder: str, prefix: str) -> None:
    names = [f"{prefix}_{number:04d}_{int(number > 4)}.png" for number in range(1, 8)]
    pictures(root / folder / "CXR_png", names)


def jsrt(root: Path) -> None:
    pictures(root / "JSRT", [f"JPCNN{number:03d}.png" for number in range(1, 5)] + ["JPCLN001.png", "JPCLN002.png"])
