"""What named data sets promise: the published layout is read, the split is leak-free, and what is missing is named."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from anomalib_med.datasets import read
from anomalib_med.datasets.benchmarks import benchmark_card, benchmark_names, check_benchmark, open_benchmark
from anomalib_med.datasets.masks import read_mask
from anomalib_med.datasets.readers.metaimage import slice_affine
from anomalib_med.errors import ConfigError, InputError
from anomalib_med.records import Sample
from tests.datasets import layouts, layouts_ct, layouts_cxr
from tests.datasets.layout_files import metaimage, picture, pictures, table

# Name: the tree, then images to train on, normals and abnormals to test.
LAYOUTS: dict[str, tuple[Callable[[Path], None], int, int, int]] = {
    "zhanglab_dev": (layouts.zhanglab_dev, 3, 1, 2),
    "nih_rsna": (layouts.nih_rsna, 2, 1, 2),
    "nih_rsna_nlp": (layouts.nih_rsna, 2, 1, 2),
    "covid_cxr_lesions": (layouts.covid_cxr_lesions, 2, 0, 1),
    "covid_ct": (layouts.covid_ct, 3, 3, 3),
    "ct_lung_patches": (layouts.ct_lung_patches, 2, 1, 2),
    "brats2013": (layouts.brats2013, 3, 3, 3),
    "folder": (layouts.folder, 2, 1, 1),
    "rsna_pneumonia": (layouts_cxr.rsna_pneumonia, 8, 4, 5),
    "vindr_cxr": (layouts_cxr.vindr_cxr, 2, 1, 1),
    "vindr_cxr_kaggle": (layouts_cxr.vindr_cxr_kaggle, 4, 2, 3),
    "chestxray14": (layouts_cxr.chestxray14, 2, 1, 2),
    "chestxray14_boxes": (layouts_cxr.chestxray14, 2, 1, 1),
    "zhanglab": (layouts_cxr.zhanglab, 3, 1, 2),
    "chexpert_squid": (layouts_cxr.chexpert_squid, 2, 1, 1),
    "medianomaly_rsna": (partial(layouts.medianomaly_list, name="RSNA"), 2, 1, 2),
    "medianomaly_vincxr": (partial(layouts.medianomaly_list, name="VinCXR"), 2, 1, 2),
    "medianomaly_braintumor": (partial(layouts.medianomaly_list, name="BrainTumor"), 2, 1, 2),
    "medianomaly_lag": (partial(layouts.medianomaly_list, name="LAG"), 2, 1, 2),
    "medianomaly_isic2018": (layouts.medianomaly_isic2018, 2, 1, 1),
    "medianomaly_camelyon16": (layouts.medianomaly_camelyon16, 2, 1, 1),
    "medianomaly_brats2021": (layouts.medianomaly_brats2021, 1, 1, 1),
    "chexpert": (layouts_cxr.chexpert, 9, 1, 1),
    "mimic_cxr_jpg": (layouts_cxr.mimic_cxr_jpg, 1, 1, 1),
    "padchest": (layouts_cxr.padchest, 13, 3, 3),
    "chestx_det": (layouts_cxr.chestx_det, 1, 1, 1),
    "tbx11k": (layouts_cxr.tbx11k, 2, 1, 2),
    "siim_pneumothorax": (layouts_cxr.siim_pneumothorax, 9, 3, 1),
    "nlm_tb_shenzhen": (partial(layouts_cxr.nlm_tb, folder="ChinaSet_AllFiles", prefix="CHNCXR"), 2, 2, 3),
    "nlm_tb_montgomery": (partial(layouts_cxr.nlm_tb, folder="MontgomerySet", prefix="MCUCXR"), 2, 2, 3),
    "br35h": (layouts.br35h, 2, 1, 2),
    "bmad_brain": (partial(layouts.bmad, folder="Brain_AD/BraTS2021_slice", masks=True), 2, 1, 1),
    "bmad_liver": (partial(layouts.bmad, folder="Liver_AD/hist_DIY", masks=True, ungood="ungood"), 2, 1, 1),
    "bmad_resc": (partial(layouts.bmad, folder="Retina_RESC_AD/RESC", masks=True, ungood="ungood"), 2, 1, 1),
    "bmad_oct2017": (partial(layouts.bmad, folder="Retina_OCT2017_AD/OCT2017"), 2, 1, 1),
    "bmad_rsna": (partial(layouts.bmad, folder="Chest_AD/Chest-RSNA"), 2, 1, 1),
    "bmad_camelyon16": (partial(layouts.bmad, folder="camelyon16", nested=False), 2, 1, 1),
    "jsrt": (layouts_cxr.jsrt, 2, 2, 2),
    "msd_lung": (layouts.msd_lung, 10, 6, 3),
    "brats_slices": (layouts.brats_slices, 6, 4, 2),
    "phantoms": (layouts.phantoms, 2, 1, 2),
    "digit_anatomy": (layouts.digit_anatomy, 2, 1, 2),
    "planted": (layouts.planted, 1, 1, 2),
    "lidc_idri": (layouts_ct.lidc_idri, 18, 18, 3),
    "dlcs": (layouts_ct.dlcs, 4, 8, 2),
    "luna16": (layouts.luna16, 6, 2, 1),
    "luna16_candidates": (layouts.luna16, 6, 2, 1),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_layout_is_read(name: str, tmp_path: Path) -> None:
    build, train, normal, abnormal = LAYOUTS[name]
    build(tmp_path)
    benchmark = open_benchmark(name, tmp_path)
    assert len(benchmark.train) == train
    assert [sum(s.label == label for s in benchmark.test) for label in (0, 1)] == [normal, abnormal]
    assert {s.label for s in benchmark.train} == {0}
    everything = [*benchmark.train, *benchmark.test]
    assert len({s.id for s in everything}) == len(everything)
    for sample in everything:
        image = read(sample)
        mask = read_mask(sample, image.shape)
        assert mask is None or mask.shape == image.shape
        assert mask is None or mask.any() == bool(sample.label)
        assert (mask is not None) or "pixel" not in benchmark.tasks
    if "box" in benchmark.tasks:
        assert any(sample.boxes for sample in benchmark.test)


@pytest.mark.parametrize("name", LAYOUTS)
def test_patients_are_on_one_side(name: str, tmp_path: Path) -> None:
    LAYOUTS[name][0](tmp_path)
    benchmark = open_benchmark(name, tmp_path)
    if not benchmark_card(name).shared_patients:
        assert not {s.patient for s in benchmark.train} & {s.patient for s in benchmark.test}


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_missing_file_is_named_with_its_place(name: str, tmp_path: Path) -> None:
    LAYOUTS[name][0](tmp_path)
    whole = open_benchmark(name, tmp_path)
    for path in sorted({s.mask for s in whole.test if s.mask is not None})[:1]:
        content = path.read_bytes()
        path.unlink()
        if name != "folder":
            with pytest.raises(InputError, match=f"no mask {tmp_path}.*{path.name}"):
                open_benchmark(name, tmp_path)
        path.write_bytes(content)
    for path in list(tmp_path.rglob("*")):
        if path.is_file():
            path.unlink()
    with pytest.raises(InputError, match=f"{name}: no (file|table) {tmp_path}"):
        open_benchmark(name, tmp_path)
    assert check_benchmark(name, tmp_path).missing


def test_every_data_set_has_a_layout_that_is_tested_and_a_card() -> None:
    assert sorted(LAYOUTS) == benchmark_names()
    for name in benchmark_names():
        described = benchmark_card(name)
        assert described.name == name
        assert described.notes, f"{name}: every set has a trap"
        assert bool(described.group) != bool(described.manifest)


def test_a_name_that_is_not_known_gets_a_hint(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='"nih_rnsa" is not known: did you mean "nih_rsna"'):
        open_benchmark("nih_rnsa", tmp_path)
    with pytest.raises(InputError, match=r"no folder .*absent: give the folder of the data set"):
        open_benchmark("folder", tmp_path / "absent")


def test_the_root_may_be_the_data_set_or_hold_it(tmp_path: Path) -> None:
    layouts.brats2013(tmp_path)
    assert open_benchmark("brats2013", tmp_path).split_hash == (
        open_benchmark("brats2013", str(tmp_path / "brats2013_flair")).split_hash
    )


def test_boxes_are_in_pixels_of_the_image(tmp_path: Path) -> None:
    layouts.nih_rsna(tmp_path)
    abnormal = [s for s in open_benchmark("nih_rsna", tmp_path).test if s.label == 1]
    assert abnormal[0].boxes == ((4.0, 2.0, 3.0, 5.0), (1.0, 1.0, 2.0, 2.0))


def test_a_smaller_set_than_the_protocol_says_so_in_its_notes(tmp_path: Path) -> None:
    layouts.brats2013(tmp_path)
    notes = open_benchmark("brats2013", tmp_path).notes
    assert "train: 3 images, 147 in the protocol: not comparable with published numbers" in notes


def test_a_patient_on_both_sides_is_refused(tmp_path: Path) -> None:
    layouts.zhanglab_dev(tmp_path)
    picture(tmp_path / "zhanglab_cxr/test/normal/IM-0115-0002.jpeg")
    with pytest.raises(InputError, match="1 patients are on both sides of the split, the first is IM-0115"):
        open_benchmark("zhanglab_dev", tmp_path)
    assert check_benchmark("zhanglab_dev", tmp_path).shared_patients == ("IM-0115",)


def test_a_stray_file_is_refused_by_name(tmp_path: Path) -> None:
    layouts.zhanglab_dev(tmp_path)
    picture(tmp_path / "zhanglab_cxr/test/normal/holiday.jpeg")
    with pytest.raises(InputError, match=r"holiday\.jpeg: not a name of this data set"):
        open_benchmark("zhanglab_dev", tmp_path)


def test_another_table_is_refused_with_its_columns(tmp_path: Path) -> None:
    layouts.brats2013(tmp_path)
    table(tmp_path / "brats2013_flair/manifest.csv", "path,label", ["a.png,0"])
    with pytest.raises(InputError, match=r"manifest\.csv: no column named 'file'; .*label, path"):
        open_benchmark("brats2013", tmp_path)


def test_the_check_counts_and_reads(tmp_path: Path) -> None:
    layouts.zhanglab_dev(tmp_path)
    (tmp_path / "zhanglab_cxr/test/virus/person1005_virus_1234.jpeg").write_bytes(b"cut")
    found = check_benchmark("zhanglab_dev", tmp_path)
    assert found.counts == {"train": (3, 1057), "test normal": (1, 148), "test abnormal": (2, 300)}
    assert found.read == 6
    assert len(found.unreadable) == 1
    assert "person1005_virus_1234.jpeg" in found.unreadable[0]
    assert not found.ok


def test_the_split_hash_knows_side_and_label(tmp_path: Path) -> None:
    layouts.brats2013(tmp_path)
    before = open_benchmark("brats2013", tmp_path).split_hash
    (tmp_path / "brats2013_flair/PROVENANCE.md").write_text("text")
    assert open_benchmark("brats2013", tmp_path).split_hash == before
    manifest = tmp_path / "brats2013_flair/manifest.csv"
    kept = [line for line in manifest.read_text().splitlines() if "pat0001_z011" not in line]
    manifest.write_text("\n".join(kept))
    assert open_benchmark("brats2013", tmp_path).split_hash != before


def test_filled_mask_equals_what_was_drawn(tmp_path: Path) -> None:
    layouts.brats2013(tmp_path)
    sample = next(s for s in open_benchmark("brats2013", tmp_path).test if s.label == 1)
    mask = read_mask(sample)
    assert mask is not None
    assert np.argwhere(mask).tolist() == [[r, c] for r in range(4, 7) for c in range(8, 12)]


def test_zhanglab_of_mendeley_is_the_same_set_under_other_names(tmp_path: Path) -> None:
    layouts_cxr.zhanglab_of_mendeley(tmp_path)
    benchmark = open_benchmark("zhanglab", tmp_path)
    assert [s.patient for s in benchmark.train] == ["NORMAL-28501"]
    assert [s.patient for s in benchmark.test] == ["NORMAL-4512", "BACTERIA-40699", "VIRUS-129004"]


def test_the_256_pixel_folders_of_squid_are_the_same_set(tmp_path: Path) -> None:
    names = ["train/normal_256/IM-0115-0001.jpeg", "test/normal_256/a.png", "test/pneumonia_256/person1_virus_6.jpeg"]
    pictures(tmp_path / "chest_xray", names)
    benchmark = open_benchmark("zhanglab", tmp_path)
    assert [s.patient for s in (*benchmark.train, *benchmark.test)] == ["IM-0115", "a.png", "person1_virus"]


def test_a_table_without_the_rows_that_are_asked_for_is_refused(tmp_path: Path) -> None:
    layouts.brats2013(tmp_path)
    manifest = tmp_path / "brats2013_flair/manifest.csv"
    manifest.write_text(manifest.read_text().replace("abnormal", "tumour"))
    with pytest.raises(InputError, match=r"no row of .*manifest\.csv in which group is abnormal"):
        open_benchmark("brats2013", tmp_path)


def test_a_missing_table_to_join_is_named(tmp_path: Path) -> None:
    layouts_cxr.mimic_cxr_jpg(tmp_path)
    (tmp_path / "mimic-cxr-jpg/2.1.0/mimic-cxr-2.0.0-split.csv.gz").unlink()
    with pytest.raises(InputError, match=r"mimic_cxr_jpg: no table .*mimic-cxr-2\.0\.0-split\.csv\.gz"):
        open_benchmark("mimic_cxr_jpg", tmp_path)


def test_a_training_normal_of_vindr_is_one_for_all_its_readers(tmp_path: Path) -> None:
    layouts_cxr.vindr_cxr(tmp_path)
    benchmark = open_benchmark("vindr_cxr", tmp_path)
    assert [s.id for s in benchmark.train] == ["train/a0.dicom", "train/a2.dicom"]
    assert benchmark.test[1].boxes == ((4.0, 2.0, 6.0, 8.0),)
    assert benchmark.test[1].meta["finding"] == "Cardiomegaly"


def test_boxes_of_chestxray14_are_all_there_and_named(tmp_path: Path) -> None:
    layouts_cxr.chestxray14(tmp_path)
    (boxed,) = [s for s in open_benchmark("chestxray14_boxes", tmp_path).test if s.label == 1]
    assert boxed.boxes == ((4.0, 2.0, 6.0, 8.0), (12.0, 2.0, 6.0, 8.0))
    assert boxed.meta["finding"] == "Infiltrate|Mass"
    assert boxed.patient == "3"


def test_rsna_tells_the_two_kinds_of_abnormal_apart(tmp_path: Path) -> None:
    layouts_cxr.rsna_pneumonia(tmp_path)
    test = open_benchmark("rsna_pneumonia", tmp_path).test
    assert {s.meta["kind"] for s in test} == {"Normal", "Lung Opacity", "No Lung Opacity / Not Normal"}
    assert all(len(s.boxes) == (2 if s.meta["kind"] == "Lung Opacity" else 0) for s in test)
    found = check_benchmark("rsna_pneumonia", tmp_path)
    assert found.counts["Lung Opacity"] == (6, 6012)
    assert found.counts["images in the table"] == (24, 26684)
    assert len(found.unlocated) == sum(s.meta["kind"].startswith("No Lung") for s in test)


def test_a_missing_image_of_a_table_is_counted(tmp_path: Path) -> None:
    layouts.medianomaly_list(tmp_path, "RSNA")
    (tmp_path / "MedIAnomaly-Data/RSNA/images/b.png").unlink()
    with pytest.raises(InputError, match=r"1 of 2 images that data\.json lists, the first is .*RSNA/images/b\.png"):
        open_benchmark("medianomaly_rsna", tmp_path)


def test_a_published_split_with_shared_patients_has_a_note(tmp_path: Path) -> None:
    layouts.medianomaly_brats2021(tmp_path)
    picture(tmp_path / "MedIAnomaly-Data/BraTS2021/train/BraTS2021_00002_flair_10.png")
    assert any(
        "1 patients have images in both" in note for note in open_benchmark("medianomaly_brats2021", tmp_path).notes
    )


def test_a_slice_through_a_nodule_has_its_box_and_its_neighbours_are_not_normal(tmp_path: Path) -> None:
    layouts.luna16(tmp_path)
    test = open_benchmark("luna16", tmp_path).test
    (abnormal,) = [s for s in test if s.label == 1]
    assert abnormal.frame == 20
    assert abnormal.boxes == (pytest.approx((43.5, 35.5, 10.0, 10.0)),)
    inside = read(abnormal).pixels[read_mask(abnormal)]
    assert (inside == 30).mean() > 0.8
    assert sorted(s.frame for s in test if s.label == 0) == [5, 35]


def test_a_candidate_is_a_crop_of_its_slice(tmp_path: Path) -> None:
    layouts.luna16(tmp_path)
    benchmark = open_benchmark("luna16_candidates", tmp_path)
    (abnormal,) = [s for s in benchmark.test if s.label == 1]
    assert read(abnormal).shape == (64, 64)
    assert (read(abnormal).pixels == 30).sum() == 100
    assert abnormal.id.startswith("subset8/1.3.6.3.mhd#020@")


def test_flipped_volumes_are_shown_the_same_way(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(-1000, 400, (5, 6, 7)).astype(np.int16)
    metaimage(tmp_path / "a.mhd", voxels, origin=(0.0, 0.0, 0.0))
    metaimage(tmp_path / "b.mhd", voxels[:, ::-1, ::-1], origin=(0.7 * 6, 0.7 * 5, 0.0), flip=True)
    a, b = (Sample(name, tmp_path / name, frame=3) for name in ("a.mhd", "b.mhd"))
    np.testing.assert_array_equal(read(a).pixels, voxels[3])
    np.testing.assert_array_equal(read(b).pixels, voxels[3])
    assert read(a).spacing == (0.7, 0.7)
    place = (0.7 * 2, 0.7 * 4, 2.5 * 3)
    for name in ("a.mhd", "b.mhd"):
        at = np.linalg.inv(slice_affine(tmp_path / name)) @ [*np.multiply(place, (-1, -1, 1)), 1]
        assert at[:3][::-1] == pytest.approx((3, 4, 2))


def test_slices_of_a_volume_are_normal_abnormal_or_left_out(tmp_path: Path) -> None:
    layouts.msd_lung(tmp_path)
    benchmark = open_benchmark("msd_lung", tmp_path)
    assert {s.frame for s in benchmark.train} == {2, 9}  # every fifth of those with lung and without tumour
    (abnormal, *_) = [s for s in benchmark.test if s.label == 1]
    assert abnormal.frame == 4
    assert abnormal.patient == abnormal.id.partition("#")[0]
    mask = read_mask(abnormal, read(abnormal).shape)
    assert mask is not None
    assert mask.sum() == 24
    (tmp_path / "Task06_Lung/imagesTr/lung_001.nii.gz").write_bytes(b"cut")
    with pytest.raises(InputError, match=r"lung_001\.nii\.gz: not a NIfTI file, or damaged"):
        open_benchmark("msd_lung", tmp_path)


@pytest.mark.real
@pytest.mark.parametrize(
    "name",
    ["zhanglab_dev", "nih_rsna", "nih_rsna_nlp", "covid_cxr_lesions", "covid_ct", "ct_lung_patches", "brats2013"],
)
def test_the_real_sets_are_as_their_cards_say(name: str, real_data: Path) -> None:
    found = check_benchmark(name, real_data, images=20)
    assert found.ok, found
    assert not found.unlocated
    if "pixel" in benchmark_card(name).tasks:
        for sample in [s for s in open_benchmark(name, real_data).test if s.label == 1][::20]:
            mask = read_mask(sample, read(sample).shape)
            assert mask is not None
            assert mask.any()
