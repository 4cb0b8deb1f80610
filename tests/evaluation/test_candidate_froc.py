"""FROC of candidates in mm, and LUNA16 end to end on a tiny tree of its layout."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from anomalib_med import PatchCore, Preprocessing, fit, score_to_folder
from anomalib_med.calibration import VolumeRule
from anomalib_med.datasets.benchmarks import open_benchmark
from anomalib_med.datasets.folder import discover
from anomalib_med.datasets.scans import volumes_of
from anomalib_med.errors import InputError
from anomalib_med.evaluation.candidate_froc import Lesion, candidate_froc, found_candidates, read_lesions
from anomalib_med.evaluation.evaluate import evaluate_model
from anomalib_med.evaluation.froc import MISSED
from anomalib_med.outputs.volume_tables import CANDIDATES, VOLUMES, read_volumes
from anomalib_med.records import Candidate, VolumeResult
from tests.cli.command import anomed
from tests.datasets.layout_files import metaimage
from tests.made_up_files import write_nifti, write_table
from tests.made_up_series import chest_volume

pytestmark = pytest.mark.filterwarnings("ignore:.*held out")

HEADER = "volume,x_mm,y_mm,z_mm,diameter_mm"


def scored(candidates: list[tuple[str, float, float, float, float]], volumes: tuple[str, ...]) -> list[VolumeResult]:
    """Volumes with candidates ``(volume, x, y, z, peak)``."""
    own = {
        id: [
            Candidate(id, f"p-{id}", 1, (x, y, z), 1.0, peak, None, ("s", 0, 0), 1)
            for v, x, y, z, peak in candidates
            if v == id
        ]
        for id in volumes
    }
    return [VolumeResult(id, f"p-{id}", "", 1, 1, 0.0, None, None, tuple(found)) for id, found in own.items()]


def write_run(out: Path, volumes: list[VolumeResult]) -> Path:
    """The tables of `anomed score` with these volumes."""
    out.mkdir()
    candidates = [CANDIDATES.line(c) for volume in volumes for c in volume.candidates]
    (out / "volumes.csv").write_bytes(b"".join([VOLUMES.header, *map(VOLUMES.line, volumes)]))
    (out / "candidates.csv").write_bytes(b"".join([CANDIDATES.header, *candidates]))
    return out


def test_a_candidate_within_the_radius_hits_once_and_the_others_are_false() -> None:
    out = scored(
        [("a.nii.gz", 0, 0, 4, 3.0), ("a.nii.gz", 0, 3, 0, 2.0), ("a.nii.gz", 0, 0, 6, 9.0), ("b", 1, 1, 1, 5.0)],
        ("a.nii.gz", "b", "c"),
    )
    lesions = [Lesion("a", (0, 0, 0), 10.0), Lesion("c", (0, 0, 0), 10.0)]
    found, patients = found_candidates(out, lesions)
    assert patients == ["p-a.nii.gz", "p-b", "p-c"]
    assert [f.lesions.tolist() for f in found] == [[3.0], [], [MISSED]]
    assert [f.false.tolist() for f in found] == [[9.0], [5.0], []]
    metrics = candidate_froc(found, patients, replicates=100)
    assert metrics["sensitivity@8fp/scan"].value == 0.5
    assert metrics["sensitivity@0.125fp/scan"].value < 0.5


def test_tables_of_luna16_are_turned_into_the_axes_of_candidates(tmp_path: Path) -> None:
    table = write_table(tmp_path / "annotations.csv", "seriesuid,coordX,coordY,coordZ,diameter_mm", "1.2.3,1,2,-3,4")
    assert read_lesions(table) == [Lesion("1.2.3", (-1, -2, -3), 4)]
    pseudonym = "ct/series-" + hashlib.sha256(b"1.2.3").hexdigest()[:12]
    found, _ = found_candidates(scored([(pseudonym, -1, -2, -2, 7)], (pseudonym,)), read_lesions(table))
    assert found[0].lesions.tolist() == [7.0]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (("volume,x_mm", "a,1"), "has the columns"),
        ((HEADER, "a,1,2,three,4"), "line 2"),
        ((HEADER, "z,1,2,3,4"), "z: has a lesion"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path: Path, rows: tuple[str, ...], words: str) -> None:
    volumes = scored([], ("a",))
    table = write_table(tmp_path / "lesions.csv", *rows)
    with pytest.raises(InputError, match=words):
        found_candidates(volumes, read_lesions(table))
    outcome = anomed("froc", write_run(tmp_path / "out", volumes), table)
    assert outcome.code == 2
    assert words in outcome.err


def luna16(root: Path) -> None:
    """Four scans of the challenge's layout, two of them with a bright ball, which is a nodule in the table."""
    nodules, candidates = [], []
    for k in range(6):
        volume = chest_volume(k, 12, 96)
        name, fold = f"1.3.{k}", k if k < 3 else 5 + k  # folds 0 to 2 to train, 8 to 10 (so 8, 9) to test
        fold = min(fold, 9)
        if k >= 4:
            z, y, x = np.mgrid[:12, :96, :96]
            at = (6, 48, 30)
            ball = ((z - at[0]) * 3) ** 2 + ((y - at[1]) * 3.5) ** 2 + ((x - at[2]) * 3.5) ** 2 < 12**2
            volume[ball] = 200
            nodules.append(f"{name},{at[2] * 3.5 - 170},{at[1] * 3.5 - 160},{at[0] * 3.0 - 300},24")
        candidates += [f"{name},{70 * 3.5 - 170},{48 * 3.5 - 160},{s * 3.0 - 300},0" for s in range(0, 12, 4)]
        folder = root / f"subset{fold}"
        folder.mkdir(parents=True, exist_ok=True)
        metaimage(folder / f"{name}.mhd", volume.astype(np.int16), spacing=(3.5, 3.5, 3.0), origin=(-170, -160, -300))
    write_table(root / "annotations.csv", "seriesuid,coordX,coordY,coordZ,diameter_mm", *nodules)
    write_table(root / "candidates_V2.csv", "seriesuid,coordX,coordY,coordZ,class", *candidates)


def test_luna16_runs_end_to_end(tmp_path: Path) -> None:
    luna16(tmp_path / "LUNA16")
    benchmark = open_benchmark("luna16", tmp_path)
    preprocessing = Preprocessing(size=192, valid="lung")
    model = fit(
        PatchCore(bank_size=500), list(benchmark.train), calibration=0, preprocessing=preprocessing, device="cpu"
    )
    measured = evaluate_model(model, benchmark.test, replicates=100).metrics
    assert measured["auroc"].value > 0.9
    assert measured["froc_cpm"].value > 0.5
    scans = sorted((tmp_path / "LUNA16").glob("subset[789]/*.mhd"))
    summary = score_to_folder(model, scans, tmp_path / "out", maps="nifti", overlays=False)
    assert summary.volumes == 3
    outcome = anomed("froc", tmp_path / "out", tmp_path / "LUNA16/annotations.csv", "--replicates", "100")
    assert outcome.code == 0, outcome.err
    assert "2 lesions in 2 of 3 scans of 3 patients" in outcome.out
    found, patients = found_candidates(
        read_volumes(tmp_path / "out"), read_lesions(tmp_path / "LUNA16/annotations.csv")
    )
    assert candidate_froc(found, patients, replicates=100)["sensitivity@1fp/scan"].value == 1.0
    assert isinstance(model.volume_rule, VolumeRule)
    assert all(volume.affine is not None for volume in volumes_of(discover(scans)))


def test_msd_lung_runs_end_to_end(tmp_path: Path) -> None:
    """Ten volumes, so that some lie on each side of the split by hash; each has a bright ball in its middle slices."""
    for kind in ("imagesTr", "labelsTr"):
        (tmp_path / "Task06_Lung" / kind).mkdir(parents=True)
    z, y, x = np.mgrid[:30, :96, :96]
    ball = ((z - 15) * 3) ** 2 + ((y - 48) * 3.5) ** 2 + ((x - 30) * 3.5) ** 2 < 20**2
    for k in range(10):
        hu = np.where(ball, 200, chest_volume(k, 30, 96))
        for kind, voxels in (("imagesTr", np.round(hu).astype(np.int16)), ("labelsTr", ball.astype(np.uint8))):
            path = tmp_path / f"Task06_Lung/{kind}/lung_{k:03d}.nii.gz"
            write_nifti(path, voxels[:, ::-1, ::-1].T, np.diag([3.5, 3.5, 3.0, 1.0]))
    benchmark = open_benchmark("msd_lung", tmp_path)
    preprocessing = Preprocessing(size=192, valid="lung", windows=("lung",))
    model = fit(
        PatchCore(bank_size=500), list(benchmark.train), calibration=0, preprocessing=preprocessing, device="cpu"
    )
    measured = evaluate_model(model, benchmark.test, replicates=100).metrics
    assert measured["auroc"].value > 0.9
    assert measured["pixel_auroc"].value > 0.9
    assert measured["froc_cpm"].value > 0.5
