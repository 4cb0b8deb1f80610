"""What the DICOM reader promises."""

import io
import os
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image as Pillow
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels.decoders import JPEG2000LosslessDecoder
from pydicom.sequence import Sequence
from pydicom.uid import (
    MPEG4HP41,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from anomalib_med.datasets import read
from anomalib_med.datasets.readers import header, is_image
from anomalib_med.errors import ReadError
from anomalib_med.records import Sample

STORED = np.random.default_rng(0).integers(0, 4096, (24, 31)).astype(np.uint16)


def dataset(pixels: np.ndarray = STORED, bits: int = 12, **tags) -> Dataset:
    """A data set with the pixels ``(H, W)``, ``(frames, H, W)`` or ``(H, W, 3)`` and any further tags."""
    colour = pixels.ndim == 3 and pixels.shape[-1] == 3
    ds = Dataset()
    ds.SOPClassUID = pydicom.uid.CTImageStorage
    ds.SOPInstanceUID, ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(), "1.2.3", "1.2.3.4"
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "Doe^Jane", "4711", "19700101", "F"
    ds.Modality = "CT"
    ds.Rows, ds.Columns = pixels.shape[:2] if colour else pixels.shape[-2:]
    ds.SamplesPerPixel = 3 if colour else 1
    ds.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        ds.PlanarConfiguration = 0
    if pixels.ndim == 3 and not colour:
        ds.NumberOfFrames = len(pixels)
    ds.BitsAllocated = pixels.dtype.itemsize * 8
    ds.BitsStored, ds.HighBit = bits, bits - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    ds.PixelData = pixels.tobytes()
    ds["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
    for keyword, value in tags.items():
        setattr(ds, keyword, value)
    return ds


def saved(path: Path, ds: Dataset, syntax=ExplicitVRLittleEndian, compress=None) -> Path:
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    if compress is not None:
        ds.compress(compress, generate_instance_uid=False)
    ds.save_as(path, enforce_file_format=True)
    return path


def image_of(path: Path, frame: int | None = None):
    return read(Sample(str(path), path, frame=frame))


def compressed(path: Path, frames: np.ndarray, syntax: str, **tags) -> Path:
    """A file with frames ``(frames, H, W)`` of 16 bits, compressed without loss."""
    ds = dataset(frames, bits=16, **tags)
    if syntax != JPEG2000Lossless:
        return saved(path, ds, compress=syntax)
    streams = []
    for frame in frames:
        stream = io.BytesIO()
        Pillow.fromarray(frame).save(stream, "JPEG2000", irreversible=False, no_jp2=True)
        streams.append(stream.getvalue())
    ds.PixelData = pydicom.encaps.encapsulate(streams)
    return saved(path, ds, JPEG2000Lossless)


def lut_item(first: int, values: list[int], bits: int) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(values), first, bits])
    item.add_new("LUTData", "US", values)
    return item


def test_ct_is_in_hounsfield_units(tmp_path):
    image = image_of(
        saved(tmp_path / "a.dcm", dataset(RescaleSlope=2, RescaleIntercept=-1024, PixelSpacing=[0.5, 0.75]))
    )
    np.testing.assert_array_equal(image.pixels, STORED * 2.0 - 1024)
    assert image.pixels.dtype == np.float32
    assert (image.modality, image.spacing, image.missing) == ("CT", (0.5, 0.75), None)


def test_signed_pixels_are_read(tmp_path):
    signed = STORED.astype(np.int16) - 2048
    image = image_of(saved(tmp_path / "a.dcm", dataset(signed, bits=16, Modality="MR")))
    np.testing.assert_array_equal(image.pixels, signed)


def test_signed_twelve_bits_are_extended_and_unused_bits_ignored(tmp_path):
    signed = STORED.astype(np.int16) - 2048
    dirty = (signed.view(np.uint16) & 0x0FFF) | 0x5000
    ds = dataset(dirty.view(np.int16), bits=12, Modality="MR")
    np.testing.assert_array_equal(image_of(saved(tmp_path / "a.dcm", ds)).pixels, signed)


def test_monochrome1_is_inverted_whatever_the_content(tmp_path):
    plain = dataset(Modality="DX", WindowCenter=1000.5, WindowWidth=401)
    inverted = dataset(Modality="DX", WindowCenter=1000.5, WindowWidth=401, PhotometricInterpretation="MONOCHROME1")
    first, second = image_of(saved(tmp_path / "a.dcm", plain)), image_of(saved(tmp_path / "b.dcm", inverted))
    np.testing.assert_array_equal(second.pixels, 4095 - first.pixels)
    assert first.window == (800, 1200)
    assert second.window == (4095 - 1200, 4095 - 800)


def test_monochrome1_is_inverted_within_the_rescaled_and_signed_range(tmp_path):
    signed = STORED.astype(np.int16) - 2048
    tags = {"RescaleSlope": -2, "RescaleIntercept": 10, "PhotometricInterpretation": "MONOCHROME1"}
    image = image_of(saved(tmp_path / "a.dcm", dataset(signed, bits=12, Modality="CR", **tags)))
    low, high = -2 * 2047 + 10, 2 * 2048 + 10
    np.testing.assert_array_equal(image.pixels, low + high - (signed * -2.0 + 10))


@pytest.mark.parametrize(
    ("function", "expected"), [(None, (-1350, 149)), ("LINEAR_EXACT", (-1350, 150)), ("SIGMOID", (-1350, 150))]
)
def test_the_first_window_is_handed_on(tmp_path, function, expected):
    tags = {"WindowCenter": [-600, 40], "WindowWidth": [1500, 400]}
    if function:
        tags["VOILUTFunction"] = function
    assert image_of(saved(tmp_path / "a.dcm", dataset(**tags))).window == expected


def test_a_window_of_no_width_is_no_window(tmp_path):
    assert image_of(saved(tmp_path / "a.dcm", dataset(WindowCenter=5, WindowWidth=0))).window is None


def test_voi_lut_of_a_radiograph_is_applied(tmp_path):
    table = [i // 16 for i in range(4096)]  # 8 bits out of a table of more than 256 entries
    ds = dataset(Modality="DX", VOILUTSequence=Sequence([lut_item(0, table, 8)]))
    image = image_of(saved(tmp_path / "a.dcm", ds))
    np.testing.assert_array_equal(image.pixels, STORED // 16)
    assert image.window == (0, 255)


def test_voi_lut_holds_its_ends_and_is_inverted_with_monochrome1(tmp_path):
    ds = dataset(Modality="CR", VOILUTSequence=Sequence([lut_item(1000, list(range(0, 2000, 2)), 12)]))
    ds.PhotometricInterpretation = "MONOCHROME1"
    expected = 4095 - np.clip(STORED.astype(int) - 1000, 0, 999) * 2
    np.testing.assert_array_equal(image_of(saved(tmp_path / "a.dcm", ds)).pixels, expected)


def test_voi_lut_of_a_ct_leaves_hounsfield_units(tmp_path):
    ds = dataset(RescaleSlope=1, RescaleIntercept=-1024, VOILUTSequence=Sequence([lut_item(0, [1, 2, 3], 8)]))
    np.testing.assert_array_equal(image_of(saved(tmp_path / "a.dcm", ds)).pixels, STORED - 1024.0)


def test_modality_lut_is_applied(tmp_path):
    item = lut_item(0, [(7 * i) % 65536 for i in range(4096)], 16)
    item.ModalityLUTType = "US"
    ds = dataset(Modality="CR", ModalityLUTSequence=Sequence([item]))
    np.testing.assert_array_equal(image_of(saved(tmp_path / "a.dcm", ds)).pixels, STORED * 7.0)


def test_pixel_padding_is_missing(tmp_path):
    ds = dataset(Modality="DX", PixelPaddingValue=10, PixelPaddingRangeLimit=2000)
    image = image_of(saved(tmp_path / "a.dcm", ds))
    np.testing.assert_array_equal(image.missing, (STORED >= 10) & (STORED <= 2000))
    np.testing.assert_array_equal(image.pixels, STORED)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_negative_pixel_padding_is_missing(tmp_path, syntax):
    signed = STORED.astype(np.int16) - 1000
    signed[:3] = -1999
    ds = dataset(signed, bits=16, Modality="MR", PixelPaddingValue=-1999)
    image = image_of(saved(tmp_path / "a.dcm", ds, syntax))
    np.testing.assert_array_equal(image.missing, signed == -1999)


def test_what_lies_outside_a_ct_is_missing_even_without_modality(tmp_path):
    signed = STORED.astype(np.int16) - 1000
    signed[:3] = -2048
    ds = dataset(signed, bits=16, RescaleSlope=1, RescaleIntercept=0)
    del ds.Modality
    image = image_of(saved(tmp_path / "a.dcm", ds))
    assert image.modality == ""
    np.testing.assert_array_equal(image.missing, signed == -2048)


def test_each_frame_is_read(tmp_path):
    frames = np.stack([STORED, STORED[::-1], STORED // 2])
    path = saved(tmp_path / "a.dcm", dataset(frames))
    assert header(path).frames == 3
    for k in range(3):
        np.testing.assert_array_equal(image_of(path, k).pixels, frames[k])
    with pytest.raises(ReadError, match=r"a\.dcm: holds 3 frames, there is no frame 3"):
        image_of(path, 3)


def test_functional_groups_of_an_enhanced_ct_are_honoured(tmp_path):
    def group(**items):
        outer = Dataset()
        for name, tags in items.items():
            inner = Dataset()
            for keyword, value in tags.items():
                setattr(inner, keyword, value)
            setattr(outer, name, Sequence([inner]))
        return outer

    ds = dataset(np.stack([STORED, STORED]))
    ds.SharedFunctionalGroupsSequence = Sequence([group(PixelMeasuresSequence={"PixelSpacing": [0.5, 0.6]})])
    ds.PerFrameFunctionalGroupsSequence = Sequence(
        group(
            PixelValueTransformationSequence={"RescaleSlope": slope, "RescaleIntercept": -1000},
            FrameVOILUTSequence={"WindowCenter": 40.5 * slope, "WindowWidth": 401},
        )
        for slope in (1, 3)
    )
    image = image_of(saved(tmp_path / "a.dcm", ds), 1)
    np.testing.assert_array_equal(image.pixels, STORED * 3.0 - 1000)
    assert image.spacing == (0.5, 0.6)
    assert image.window == (121.5 - 0.5 - 200, 121.5 - 0.5 + 200)


def test_the_spacing_at_the_detector_is_the_second_choice(tmp_path):
    image = image_of(saved(tmp_path / "a.dcm", dataset(Modality="DX", ImagerPixelSpacing=[0.14, 0.15])))
    assert image.spacing == (0.14, 0.15)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_uncompressed_syntaxes_are_read(tmp_path, syntax):
    np.testing.assert_array_equal(image_of(saved(tmp_path / "a.dcm", dataset(), syntax)).pixels, STORED)


def test_big_endian_is_read(tmp_path):
    ds = dataset(STORED.astype(">u2"))
    np.testing.assert_array_equal(image_of(saved(tmp_path / "a.dcm", ds, ExplicitVRBigEndian)).pixels, STORED)


@pytest.mark.parametrize(("implicit", "little"), [(True, True), (False, True)])
def test_files_without_preamble_are_read(tmp_path, implicit, little):
    pydicom.dcmwrite(tmp_path / "a.dcm", dataset(), implicit_vr=implicit, little_endian=little)
    assert (tmp_path / "a.dcm").read_bytes()[128:132] != b"DICM"
    np.testing.assert_array_equal(image_of(tmp_path / "a.dcm").pixels, STORED)


def test_files_without_extension_are_known_by_their_content(tmp_path):
    path = saved(tmp_path / "1.2.840.113619.2", dataset())
    assert is_image(path)
    np.testing.assert_array_equal(image_of(path).pixels, STORED)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
def test_lossless_compression_gives_the_same_values(tmp_path, syntax):
    frames = np.stack([STORED, STORED[::-1]])
    path = compressed(tmp_path / "a.dcm", frames, syntax, RescaleIntercept=-1024, RescaleSlope=1)
    np.testing.assert_array_equal(image_of(path, 1).pixels, STORED[::-1] - 1024.0)


def test_compressed_without_the_extra_names_the_syntax_and_the_extra(tmp_path, monkeypatch):
    ds = dataset()
    ds.file_meta = FileMetaDataset()
    ds.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51" + bytes(60)])
    path = saved(tmp_path / "a.dcm", ds, JPEG2000Lossless)
    monkeypatch.setattr(JPEG2000LosslessDecoder, "_available", {})
    expected = r'a\.dcm: .*JPEG 2000.*\(1\.2\.840\.10008\.1\.2\.4\.90\).*pip install "anomalib-med\[dicom\]"'
    with pytest.raises(ReadError, match=expected):
        image_of(path)


def test_a_transfer_syntax_that_cannot_be_decoded_is_named(tmp_path):
    path = saved(tmp_path / "a.dcm", dataset(PixelData=pydicom.encaps.encapsulate([bytes(64)])), MPEG4HP41)
    expected = r"a\.dcm: .*MPEG-4.*\(1\.2\.840\.10008\.1\.2\.4\.102\).*convert it to Explicit VR Little Endian"
    with pytest.raises(ReadError, match=expected):
        image_of(path)


def test_colour_is_rgb_and_equal_channels_are_grey(tmp_path):
    grey = (STORED // 16).astype(np.uint8)
    rgb = np.dstack([grey, grey[::-1], 255 - grey])
    np.testing.assert_array_equal(image_of(saved(tmp_path / "a.dcm", dataset(rgb, bits=8))).pixels, rgb)
    same = dataset(np.dstack([grey] * 3), bits=8)
    np.testing.assert_array_equal(image_of(saved(tmp_path / "b.dcm", same)).pixels, grey)


def test_ybr_is_turned_to_rgb(tmp_path):
    grey = (STORED // 16).astype(np.uint8)
    ybr = np.dstack([grey, np.full_like(grey, 128), np.full_like(grey, 128)])
    ds = dataset(ybr, bits=8, PhotometricInterpretation="YBR_FULL")
    np.testing.assert_array_equal(image_of(saved(tmp_path / "a.dcm", ds)).pixels, grey)


def test_palette_is_looked_up(tmp_path):
    index = (STORED // 1024).astype(np.uint8)
    palettes = {"Red": [0, 255, 0, 7], "Green": [0, 0, 255, 8], "Blue": [9, 0, 0, 9]}
    ds = dataset(index, bits=8, PhotometricInterpretation="PALETTE COLOR")
    for colour, values in palettes.items():
        setattr(ds, f"{colour}PaletteColorLookupTableDescriptor", [4, 0, 8])
        setattr(ds, f"{colour}PaletteColorLookupTableData", bytes(values))
    expected = np.dstack([np.array(values)[index] for values in palettes.values()])
    np.testing.assert_array_equal(image_of(saved(tmp_path / "a.dcm", ds)).pixels, expected)


def test_dicom_without_pixels_is_an_error(tmp_path):
    report = dataset(Modality="SR", SOPClassUID=pydicom.uid.BasicTextSRStorage)
    del report.Rows, report.PixelData
    with pytest.raises(ReadError, match=r"a\.dcm: a DICOM object without pixel data \(Basic Text SR Storage\)"):
        image_of(saved(tmp_path / "a.dcm", report))
    stripped = dataset()
    del stripped.PixelData
    with pytest.raises(ReadError, match=r"b\.dcm: a DICOM object without pixel data"):
        image_of(saved(tmp_path / "b.dcm", stripped))


@pytest.mark.parametrize("syntax", [None, RLELossless, JPEG2000Lossless, JPEGLSLossless])
@pytest.mark.parametrize("kept", [0.3, 0.8, 0.97])
def test_truncated_dicom_is_an_error(tmp_path, syntax, kept):
    path = tmp_path / "a.dcm"
    saved(path, dataset()) if syntax is None else compressed(path, STORED[None], syntax)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ReadError, match=r"a\.dcm: "):
        image_of(path)


def test_text_called_dcm_is_an_error(tmp_path):
    (tmp_path / "a.dcm").write_text("not an image\n" * 40)
    with pytest.raises(ReadError, match=r"a\.dcm: not a DICOM file"):
        image_of(tmp_path / "a.dcm")


def test_identity_is_a_pseudonym_by_default(tmp_path):
    path = saved(tmp_path / "a.dcm", dataset(ViewPosition="PA"))
    info = header(path)
    assert info.patient.startswith("dicom-") and len(info.patient) == 18
    assert info == header(saved(tmp_path / "b.dcm", dataset(ViewPosition="PA")))
    assert (info.modality, info.view, info.sex) == ("CT", "PA", "F")
    for secret in ("4711", "Doe", "1970", "1.2.3"):
        assert secret not in repr(info)
    assert header(path, keep_patient_ids=True).patient == "4711"


def test_without_patient_id_the_study_stands_for_the_patient(tmp_path):
    first = header(saved(tmp_path / "a.dcm", dataset(PatientID="")))
    second = header(saved(tmp_path / "b.dcm", dataset(PatientID="", StudyInstanceUID="1.2.9")))
    assert first.patient.startswith("dicom-") and first.patient != second.patient


def test_a_damaged_number_of_frames_is_bounded(tmp_path):
    path = saved(tmp_path / "a.dcm", dataset(NumberOfFrames=2_000_000_000))
    assert header(path).frames <= path.stat().st_size


def real_folder() -> Path:
    folder = os.environ.get("ANOMED_TEST_DATA")
    if not folder:
        pytest.skip("ANOMED_TEST_DATA is not set")
    return Path(folder) / "reader_samples"


@pytest.mark.real
@pytest.mark.parametrize(
    "pattern", ["ct_dicom_series/*.dcm", "ct_dicom_slices/*.dcm", "ct_dicom_bigendian_abdomen/*.dcm"]
)
def test_real_ct_has_pydicoms_hounsfield_units(pattern):
    paths = sorted(real_folder().glob(pattern))
    assert paths
    for path in paths:
        ds = pydicom.dcmread(path)
        image = image_of(path)
        np.testing.assert_array_equal(image.pixels, pydicom.pixels.apply_modality_lut(ds.pixel_array, ds))
        assert image.shape == (ds.Rows, ds.Columns) == (512, 512)
        assert image.spacing == tuple(ds.PixelSpacing)


@pytest.mark.real
def test_real_padding_is_missing():
    image = image_of(real_folder() / "ct_dicom_slices/0.dcm")
    assert image.modality == ""
    np.testing.assert_array_equal(image.missing, image.pixels == -2048)
    assert 0.2 < image.missing.mean() < 0.23


@pytest.mark.real
def test_real_monochrome1_is_its_twin_inverted():
    folder = real_folder() / "cxr_dicom"
    twin = next(path for path in folder.glob("*.dcm") if path.name != "Fake_MONOHR1.dcm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain, inverted = image_of(twin), image_of(folder / "Fake_MONOHR1.dcm")
        np.testing.assert_array_equal(plain.pixels, pydicom.dcmread(twin).pixel_array)
    np.testing.assert_array_equal(inverted.pixels, 255 - plain.pixels)
    assert plain.shape == (1024, 1024)
    assert (plain.modality, plain.spacing) == ("CR", (0.168, 0.168))
