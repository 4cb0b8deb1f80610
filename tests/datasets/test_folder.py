"""What discovery of folders, globs, lists and tables promises."""

import os
from pathlib import Path

import cv2
import nibabel
import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from anomalib_med.datasets import discover, read
from anomalib_med.datasets.masks import read_mask
from anomalib_med.errors import ConfigError, InputError, ReadError
from anomalib_med.records import Sample

PNG = cv2.imencode(".png", np.full((4, 5), 7, np.uint8))[1].tobytes()


def fill(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(PNG)
    return root


def write_dicom(path: Path, frames: int = 1, **tags: str) -> Path:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = SecondaryCaptureImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = "1.2.3.4.5"
    ds.PatientName, ds.Modality, ds.NumberOfFrames = "Doe^Jane", "DX", frames
    ds.Rows = ds.Columns = 4
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    ds.PixelData = bytes(16 * frames)
    for keyword, value in tags.items():
        setattr(ds, keyword, value)
    ds.save_as(path, enforce_file_format=True)
    return path


def ids(samples: list[Sample]) -> list[str]:
    return [sample.id for sample in samples]


def test_a_folder_is_searched_through_in_natural_order(tmp_path):
    fill(tmp_path, "10.png", "2.png", "b/1.PNG", "a/x/1.png")
    samples = discover(tmp_path)
    assert ids(samples) == ["2.png", "10.png", "a/x/1.png", "b/1.PNG"]
    assert [s.patient for s in samples] == ids(samples)
    assert discover(str(tmp_path)) == samples


def test_what_is_no_image_is_left_out(tmp_path):
    fill(tmp_path, "1.png", ".hidden.png", "._1.png", ".cache/1.png", "__MACOSX/1.png")
    for name in ("README.txt", "labels.json", "Thumbs.db", "DICOMDIR"):
        (tmp_path / name).write_text("text")
    write_dicom(tmp_path / "DICOMDIR")
    assert ids(discover(tmp_path)) == ["1.png"]


def test_links_are_followed_and_loops_end(tmp_path):
    fill(tmp_path / "data", "a/1.png")
    (tmp_path / "data/a/loop").symlink_to(tmp_path / "data", target_is_directory=True)
    fill(tmp_path / "elsewhere", "2.png")
    (tmp_path / "data/z").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert ids(discover(tmp_path / "data")) == ["a/1.png", "z/2.png"]


def test_each_kind_of_nothing_has_its_own_words(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("text")
    for source, words in {
        tmp_path / "empty": "empty: the folder is empty",
        tmp_path / "texts": "texts: no image in this folder or below it",
        tmp_path / "absent": "absent: no such file or folder",
        tmp_path / "texts/a.txt": r"a\.txt: not an image",
        f"{tmp_path}/*.png": "the pattern matches nothing",
        f"{tmp_path}/texts/*": "1 matches, none of them an image",
    }.items():
        with pytest.raises(InputError, match=words):
            discover(source)
    with pytest.raises(InputError, match="the list of images is empty"):
        discover([])


def test_a_glob_names_files_below_its_fixed_part(tmp_path):
    fill(tmp_path, "p1/normal/1.png", "p2/normal/1.png", "p2/other/1.png")
    assert ids(discover(f"{tmp_path}/p*/normal/*.png")) == ["p1/normal/1.png", "p2/normal/1.png"]
    assert ids(discover(f"{tmp_path}/p*")) == ["p1/normal/1.png", "p2/normal/1.png", "p2/other/1.png"]
    assert len(discover(f"{tmp_path}/**")) == 3


def test_a_folder_named_like_a_pattern_is_a_folder(tmp_path):
    fill(tmp_path / "data[1]", "1.png")
    assert ids(discover(tmp_path / "data[1]")) == ["1.png"]


def test_one_file_is_one_sample(tmp_path):
    fill(tmp_path, "1.png")
    assert ids(discover(tmp_path / "1.png")) == ["1.png"]


def test_a_list_keeps_its_order_and_may_hold_folders(tmp_path):
    fill(tmp_path, "b.png", "a.png", "c/2.png", "c/10.png")
    assert ids(discover([tmp_path / "b.png", tmp_path / "a.png", tmp_path / "c"])) == [
        "b.png",
        "a.png",
        "c/2.png",
        "c/10.png",
    ]
    with pytest.raises(InputError, match=r"x\.png: no such file or folder \(1 of 2"):
        discover([tmp_path / "a.png", tmp_path / "x.png"])
    with pytest.raises(InputError, match="listed twice"):
        discover([tmp_path / "a.png", tmp_path / "a.png"])


def test_arrays_and_samples_are_passed_through():
    samples = discover(np.ones((3, 4, 5)))
    assert len(samples) == 3
    assert discover(samples) == samples
    assert len(discover([np.ones((4, 5)), np.ones((6, 7))])) == 2
    with pytest.raises(InputError, match="only paths, only arrays or only samples"):
        discover([samples[0], "a.png"])
    with pytest.raises(InputError, match="listed twice"):
        discover([samples[0], samples[0]])


def test_every_slice_of_a_volume_is_a_sample(tmp_path):
    nibabel.Nifti1Image(np.zeros((4, 5, 12), np.int16), np.eye(4)).to_filename(tmp_path / "v.nii.gz")
    samples = discover(tmp_path)
    assert ids(samples)[:2] == ["v.nii.gz#000", "v.nii.gz#001"]
    assert [s.frame for s in samples] == list(range(12))
    assert {s.patient for s in samples} == {"v.nii.gz"}


def test_dicom_headers_give_patient_study_and_meta(tmp_path):
    tags = {"PatientID": "4711", "StudyInstanceUID": "1.2.3", "ViewPosition": "PA", "PatientSex": "M"}
    write_dicom(tmp_path / "a.dcm", **tags)
    write_dicom(tmp_path / "IM0001", frames=2, **tags)
    write_dicom(tmp_path / "c.dcm")
    samples = {s.id: s for s in discover(tmp_path)}
    assert set(samples) == {"a.dcm", "IM0001#000", "IM0001#001", "c.dcm"}
    first = samples["a.dcm"]
    assert first.patient == samples["IM0001#001"].patient
    assert first.patient.startswith("dicom-") and first.study is not None and first.study.startswith("study-")
    assert dict(first.meta) == {"modality": "DX", "view": "PA", "sex": "M"}
    assert samples["c.dcm"].patient == "c.dcm"
    assert "4711" not in repr(samples) and "Doe" not in repr(samples)
    kept = {s.id: s for s in discover(tmp_path, keep_patient_ids=True)}
    assert (kept["a.dcm"].patient, kept["a.dcm"].study) == ("4711", "1.2.3")


def test_damaged_files_are_listed_and_fail_only_when_read(tmp_path):
    fill(tmp_path, "good.png")
    whole = write_dicom(tmp_path / "cut.dcm").read_bytes()
    (tmp_path / "cut.dcm").write_bytes(whole[:200])
    (tmp_path / "text.dcm").write_text("text")
    (tmp_path / "text.nii.gz").write_text("text")
    (tmp_path / "text.tif").write_text("text")
    (tmp_path / "text.npy").write_text("text")
    samples = discover(tmp_path)
    assert ids(samples) == ["cut.dcm", "good.png", "text.dcm", "text.nii.gz", "text.npy", "text.tif"]
    for sample in samples:
        if sample.id == "good.png":
            assert read(sample).shape == (4, 5)
            continue
        with pytest.raises(ReadError, match=sample.id.replace(".", r"\.")):
            read(sample)


def test_a_file_that_may_not_be_opened_is_listed_and_fails_when_read(tmp_path, monkeypatch):
    write_dicom(tmp_path / "IM0001")
    (tmp_path / "nowhere").symlink_to(tmp_path / "absent")

    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    (sample,) = discover(tmp_path)
    with pytest.raises(ReadError, match=r"IM0001: cannot be opened \(Permission denied\)"):
        read(sample)


def test_a_pattern_finds_the_patient_and_a_file_without_match_is_its_own(tmp_path):
    fill(tmp_path, "p1/a_1.png", "p1/a_2.png", "p2/a_1.png", "x.png")
    assert [s.patient for s in discover(tmp_path, patient_pattern="(p[0-9]+)/")] == ["p1", "p1", "p2", "x.png"]
    assert discover(tmp_path, patient_pattern="(?P<patient>p[0-9]+)/(a)")[0].patient == "p1"


def test_a_pattern_comes_before_the_header_and_the_header_before_the_file(tmp_path):
    for name in ("p1.dcm", "x.dcm"):
        write_dicom(tmp_path / name, PatientID="4711")
    patients = [s.patient for s in discover(tmp_path, patient_pattern="(p[0-9])")]
    assert patients[0] == "p1" and patients[1].startswith("dicom-")


@pytest.mark.parametrize("pattern", ["(", "abc", "(a)(b)"])
def test_a_pattern_without_one_group_is_refused(tmp_path, pattern):
    with pytest.raises(ConfigError, match="patient_pattern"):
        discover(fill(tmp_path, "1.png"), patient_pattern=pattern)


def test_a_label_is_given_where_none_is_known(tmp_path):
    fill(tmp_path, "1.png", "2.png")
    assert [s.label for s in discover(tmp_path, label=1)] == [1, 1]
    (tmp_path / "t.csv").write_text("path,label\n1.png,0\n2.png,\n")
    assert [s.label for s in discover(tmp_path / "t.csv", label=1)] == [0, 1]
    with pytest.raises(ConfigError, match="label = 2"):
        discover(tmp_path, label=2)


def test_a_table_gives_what_its_columns_say(tmp_path):
    fill(tmp_path, "images/1.png", "images/2.png", "masks/2.png")
    (tmp_path / "t.csv").write_text(
        "Path,patient,study,label,mask,boxes,age,id\n"
        'images/2.png,p2,s2,abnormal,masks/2.png,"[[1, 2, 3, 4]]",51,two\n'
        "\n"
        "images/1.png,,,0,,,,\n"
    )
    two, one = discover(tmp_path / "t.csv")
    assert (two.id, two.patient, two.study, two.label) == ("two", "p2", "s2", 1)
    assert two.mask == tmp_path / "masks/2.png" and two.boxes == ((1, 2, 3, 4),) and dict(two.meta) == {"age": "51"}
    assert (one.id, one.patient, one.study, one.label) == ("images/1.png", "images/1.png", None, 0)
    assert (one.mask, one.boxes, dict(one.meta)) == (None, (), {})


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_table_as_a_spreadsheet_saves_it_is_read(tmp_path, delimiter, encoding, newline):
    fill(tmp_path, "ä.png")
    lines = [delimiter.join(row) for row in (("path", "label"), ("ä.png", "1.0"))]
    (tmp_path / "t.csv").write_bytes(newline.join([*lines, ""]).encode(encoding))
    (sample,) = discover(tmp_path / "t.csv")
    assert (sample.id, sample.label) == ("ä.png", 1)


def test_frames_of_a_table_are_named_like_those_of_a_folder(tmp_path):
    np.save(tmp_path / "s.npy", np.ones((4, 5, 6)))
    (tmp_path / "t.csv").write_text("path,frame,label\ns.npy,2,1\ns.npy,0,0\n")
    samples = discover(tmp_path / "t.csv")
    assert [(s.id, s.frame, s.label, s.patient) for s in samples] == [
        ("s.npy#002", 2, 1, "s.npy"),
        ("s.npy#000", 0, 0, "s.npy"),
    ]
    (tmp_path / "t.csv").write_text("path\ns.npy\n")
    assert ids(discover(tmp_path / "t.csv")) == [f"s.npy#00{k}" for k in range(4)]


def test_a_table_may_cut_images_and_outline_lesions(tmp_path):
    pixels = np.arange(20).reshape(4, 5)
    cv2.imwrite(str(tmp_path / "a.png"), pixels.astype(np.uint8))
    (tmp_path / "t.csv").write_text('path,crop,label,runs\na.png,"[1, 2, 2, 3]",1,1 3\na.png,"[0, 0, 2, 2]",0,\n')
    one, two = discover(tmp_path / "t.csv")
    assert [one.id, two.id] == ["a.png@1,2,2,3", "a.png@0,0,2,2"]
    np.testing.assert_array_equal(read(one).pixels, pixels[1:3, 2:5])
    np.testing.assert_array_equal(read_mask(one), [[True, True, False], [True, False, False]])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,label\n1.png,0\n", "no column named path; the columns are: file, label"),
        ("", "no column named path; the columns are: none"),
        ("path\n", "no row"),
        ("path,label\n1.png,0\n1.png,2\n", "line 3: label '2' is not one of"),
        ("path,label\n1.png,0\n,1\n", "line 3: the path is empty"),
        ("path,frame\n1.png,-1\n", "line 2: frame '-1' is not a whole number"),
        ("path,boxes\n1.png,none\n", "line 2: boxes 'none' is not JSON"),
        ('path,boxes\n1.png,"[[1,2,3]]"\n', "line 2: boxes"),
        ('path,crop\n1.png,"[1,2,3]"\n', "line 2: crop .* is not JSON like"),
        ("path,label\n1.png,0,9\n", "line 2: more cells than the header has columns"),
        ("path,a,a\n1.png,0,0\n", "two columns have the same name"),
        ("path\n1.png\nx.png\ny.png\n", r"no such file: .*x\.png \(2 of 3 are missing\)"),
        ("path,mask\n1.png,m.png\n", r"no such mask: .*m\.png \(1 of 1 are missing\)"),
        ("path\n1.png\n./1.png\n", r"1\.png.* listed twice"),
        ("path,id\n1.png,a\n2.png,a\n", "listed twice"),
        ("path,id\n1.png,a\n1.png,b\n", "listed twice"),
    ],
)
def test_a_wrong_table_says_what_is_wrong(tmp_path, text, words):
    fill(tmp_path, "1.png", "2.png")
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=words) as error:
        discover(tmp_path / "t.csv")
    assert "\n" not in str(error.value)


def test_a_table_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"path\n\xff\xfe\xe4.png\n")
    with pytest.raises(InputError, match=r"t\.csv: not a text table in UTF-8"):
        discover(tmp_path / "t.csv")


def test_discovery_reads_no_header_of_a_png(tmp_path, monkeypatch):
    fill(tmp_path, *(f"{i}.png" for i in range(50)))
    opened = []
    monkeypatch.setattr(Path, "open", lambda self, *args, **kwargs: opened.append(self))
    monkeypatch.setattr(np, "memmap", lambda *args, **kwargs: opened.append(args))
    assert len(discover(tmp_path)) == 50
    assert opened == []


@pytest.mark.real
def test_real_samples_are_all_listed():
    folder = os.environ.get("ANOMED_TEST_DATA")
    if not folder:
        pytest.skip("ANOMED_TEST_DATA is not set")
    samples = discover(Path(folder) / "reader_samples")
    assert sum(s.id.startswith("ct_dicom_series/") for s in samples) == 24
    assert len({s.patient for s in samples if s.id.startswith("ct_dicom_series/")}) == 1
    assert sum(s.id.startswith("nifti/") for s in samples) == 2 * 155
    assert not any(s.id.endswith((".txt", ".json", ".md", ".nrrd")) for s in samples)
