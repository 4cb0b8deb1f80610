"""Tiny trees in the published layouts of public data sets: names, columns and nesting are theirs, pixels not."""

import gzip
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np

from tests.made_up_files import write_dicom


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


def dicom(path: Path, patient: str = "p") -> None:
    """A small radiograph."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_dicom(path, np.arange(24 * 20, dtype=np.uint16).reshape(24, 20), PatientID=patient)


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


def metaimage(path: Path, voxels: np.ndarray, *, origin: tuple[float, float, float], flip: bool = False) -> None:
    """A volume as LUNA16 publishes it: spacing 0.7, 0.7, 2.5 mm; `flip` stores rows and columns backwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = " ".join(map(str, voxels.shape[::-1]))
    sign = "-1 0 0 0 -1 0 0 0 1" if flip else "1 0 0 0 1 0 0 0 1"
    header = (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n"
        f"TransformMatrix = {sign}\nOffset = {' '.join(map(str, origin))}\nCenterOfRotation = 0 0 0\n"
        f"AnatomicalOrientation = RAI\nElementSpacing = 0.7 0.7 2.5\nDimSize = {size}\nElementType = MET_SHORT\n"
        f"ElementDataFile = {path.stem}.raw\n"
    )
    path.write_text(header)
    path.with_suffix(".raw").write_bytes(voxels.astype("<i2").tobytes())


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
