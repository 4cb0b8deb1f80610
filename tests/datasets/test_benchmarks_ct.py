"""What the readers of LIDC-IDRI and DLCS promise: marks where they were made, and errors that name what is wrong."""

from pathlib import Path

import numpy as np
import pytest

from anomalib_med.datasets import read
from anomalib_med.datasets.benchmarks import check_benchmark, open_benchmark
from anomalib_med.datasets.masks import read_mask
from anomalib_med.errors import InputError
from anomalib_med.records import Sample
from tests.datasets import layouts_ct

PATIENT = Path("LIDC-IDRI/LIDC-IDRI-0002")
XML = PATIENT / layouts_ct.SERIES / "069.xml"


def abnormal(name: str, root: Path) -> Sample:
    return next(s for s in open_benchmark(name, root).test if s.label == 1)


def test_the_lesion_is_what_two_readers_have_inside_their_outlines(tmp_path: Path) -> None:
    layouts_ct.lidc_idri(tmp_path)
    sample = abnormal("lidc_idri", tmp_path)
    assert (sample.patient, sample.id.rpartition("/")[2]) == ("LIDC-IDRI-0002", "1-010.dcm")
    mask = read_mask(sample)
    expected = np.zeros(layouts_ct.SHAPE, np.bool_)
    expected[21:31, 21:31] = True  # the outlines themselves, at 20 and 31 or 36, are not of the nodule
    expected[25:28, 25:28] = False
    np.testing.assert_array_equal(mask, expected)
    assert read(sample).pixels[0, 0] == -800


def test_slices_near_a_mark_of_any_kind_are_not_normal(tmp_path: Path) -> None:
    layouts_ct.lidc_idri(tmp_path)
    for patient, kept in (("LIDC-IDRI-0001", [1, 3, 5, 14, 16, 18]), ("LIDC-IDRI-0002", [1, 3, 5, 14, 16, 18])):
        benchmark = open_benchmark("lidc_idri", tmp_path)
        everything = [s for s in (*benchmark.train, *benchmark.test) if s.patient == patient and s.label == 0]
        assert sorted(20 - int(s.path.stem.partition("-")[2]) for s in everything if s.path) == kept
    small = layouts_ct.lidc_roi(1, 3, [(5, 5)])
    lone = f"<readingSession><unblindedReadNodule><noduleID>1</noduleID>{small}</unblindedReadNodule></readingSession>"
    layouts_ct.lidc_xml(tmp_path / str(XML).replace("0002", "0001"), [lone])
    train = [s for s in open_benchmark("lidc_idri", tmp_path).train if s.patient == "LIDC-IDRI-0001"]
    assert sorted(20 - int(s.path.stem.partition("-")[2]) for s in train if s.path) == [6, 8, 10, 12, 14, 16, 18]


def test_a_nodule_that_one_reader_outlined_is_in_neither_class(tmp_path: Path) -> None:
    layouts_ct.lidc_idri(tmp_path)
    layouts_ct.lidc_xml(tmp_path / XML, [layouts_ct.lidc_reading(2, (20, 30)), "<readingSession/>"])
    found = [s for s in open_benchmark("lidc_idri", tmp_path).test if s.patient == "LIDC-IDRI-0002"]
    assert {s.label for s in found} == {0}
    assert not [s for s in found if s.path and s.path.name == "1-010.dcm"]


def test_a_small_nodule_with_ratings_of_zero_is_no_outline(tmp_path: Path) -> None:
    layouts_ct.lidc_idri(tmp_path)
    text = (tmp_path / XML).read_text().replace("<malignancy>3", "<malignancy>0")
    (tmp_path / XML).write_text(text)
    found = [s for s in open_benchmark("lidc_idri", tmp_path).test if s.patient == "LIDC-IDRI-0002"]
    assert {s.label for s in found} == {0}
    kept = sorted(20 - int(s.path.stem.partition("-")[2]) for s in found if s.path)
    assert kept == [1, 3, 5, 14, 16, 18]  # its marks on slices 9 to 11 still count


def test_a_wrong_lidc_tree_says_what_is_wrong(tmp_path: Path) -> None:
    layouts_ct.lidc_idri(tmp_path)
    slice = tmp_path / PATIENT / layouts_ct.SERIES / "1-010.dcm"
    content, xml = slice.read_bytes(), (tmp_path / XML).read_text()
    slice.unlink()
    with pytest.raises(InputError, match=r"1 slices that .*0002.*069\.xml marks, the first is 1\.3\.6\.2\.10 in "):
        open_benchmark("lidc_idri", tmp_path)
    slice.write_bytes(b"DICM")
    with pytest.raises(InputError, match=r"1-010\.dcm: not a slice of a CT series"):
        open_benchmark("lidc_idri", tmp_path)
    slice.write_bytes(content)
    (tmp_path / XML).write_text(xml[:200])
    with pytest.raises(InputError, match=r"069\.xml: not XML \(.*\): copy it again"):
        open_benchmark("lidc_idri", tmp_path)
    (tmp_path / XML).write_text(xml.replace("<imageSOP_UID>1.3.6.2.10</imageSOP_UID>", ""))
    with pytest.raises(InputError, match=r"069\.xml: a mark \((roi|nonNodule)\) has no imageSOP_UID"):
        open_benchmark("lidc_idri", tmp_path)
    (tmp_path / XML).write_text(xml.replace("<xCoord>20", "<xCoord>x"))
    with pytest.raises(InputError, match="a point of an outline is not two whole numbers"):
        open_benchmark("lidc_idri", tmp_path)
    for path in tmp_path.rglob("069.xml"):
        path.unlink()
    with pytest.raises(InputError, match="no reading of a CT"):
        open_benchmark("lidc_idri", tmp_path)


def test_a_box_in_space_is_cut_where_its_slice_is(tmp_path: Path) -> None:
    layouts_ct.dlcs(tmp_path)
    sample = abnormal("dlcs", tmp_path)
    assert sample.boxes == (pytest.approx((20, 10, 6, 4), abs=1e-3),)
    image = read(sample)
    np.testing.assert_array_equal(read_mask(sample, image.shape), image.pixels == 40)
    normal = [s.frame for s in open_benchmark("dlcs", tmp_path).train]
    assert normal == [3, 21, 25, 29]  # lung from slice 3 on; 15 mm and half of 5 mm from 13.5; 10 mm apart
    counts = check_benchmark("dlcs", tmp_path).counts
    assert counts["nodules"] == (3, 2487)
    assert counts["volumes"] == (3, 1613)


def test_a_wrong_dlcs_tree_says_what_is_wrong(tmp_path: Path) -> None:
    layouts_ct.dlcs(tmp_path)
    table = tmp_path / "DLCS24/DLCSD24_Annotations.csv"
    text = table.read_text()
    volume = tmp_path / "DLCS24/DLCS_0003.nii.gz"
    content = volume.read_bytes()
    volume.unlink()
    with pytest.raises(InputError, match=r"1 of 2 volumes that DLCSD24_Annotations\.csv lists, .*DLCS_0003\.nii\.gz"):
        open_benchmark("dlcs", tmp_path)
    volume.write_bytes(content[:40])
    with pytest.raises(InputError, match=r"DLCS_0003\.nii\.gz: "):
        open_benchmark("dlcs", tmp_path)
    volume.write_bytes(content)
    for old, new, message in (
        ("coordX", "x", "no column named 'coordX'"),
        ("_01,DLCS_0001.nii.gz,-", "_01,DLCS_0001.nii.gz,", r"the nodule at .* mm \(LPS\) lies outside its volume"),
        (",4.8,", ",wide,", "the place of a nodule is not six numbers"),
        (",train", ",", "no row of .* in which benchmark_split is train"),
    ):
        assert old in text
        table.write_text(text.replace(old, new))
        with pytest.raises(InputError, match=message):
            open_benchmark("dlcs", tmp_path)
