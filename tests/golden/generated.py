"""What the package computes on generated images: each detector, a folder, volumes, an evaluation, a merged model.

Values are recorded, not files: a table is read by the names of its columns, and nothing is kept that is allowed to
change, such as texts, settings or the layout of a file.
"""

import csv
import hashlib
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import nibabel
import numpy as np

from anomalib_med import (
    FittedModel,
    PatchCore,
    Preprocessing,
    Sample,
    Scores,
    TwoView,
    add_normals,
    detectors,
    fit,
    merge_models,
    score_to_folder,
)
from tests.conftest import abnormal_picture, normal_picture
from tests.golden.settings import SETTINGS, STEPS, VARIANTS
from tests.made_up_series import chest_volume, write_series

RATE = 0.25
SMALL = Preprocessing(size=64)
SCORES_CSV = ("id", "frame", "patient", "score", "p_value", "flagged", "area", "map")
VOLUMES_CSV = ("volume", "patient", "study", "slices", "scored", "score", "p_value", "flagged", "candidates", "area")
VOLUMES_CSV += ("map", "note")
CANDIDATES_CSV = ("volume", "patient", "rank", "x_mm", "y_mm", "z_mm", "ml", "peak", "p_value", "slice", "row")
CANDIDATES_CSV += ("column", "slices")
PATIENTS_CSV = ("patient", "volumes", "score", "p_value", "flagged")
TEXT = {"id", "patient", "area", "map", "volume", "study", "note", "slice", "flagged"}


def of_detector(name: str) -> dict[str, object]:
    """A detector with the settings it is recorded with."""
    return _fitted(name, SETTINGS.get(name, {}), SMALL)


def of_variant(name: str) -> dict[str, object]:
    """A detector with other settings."""
    detector, settings, preprocessing = VARIANTS[name]
    return _fitted(detector, settings, Preprocessing(size=64, **preprocessing))


def _fitted(name: str, settings: dict[str, object], preprocessing: Preprocessing) -> dict[str, object]:
    """Fit and calibrate on pictures, some of one patient; say what is said of pictures of three shapes."""
    kind = detectors()[name]
    trained = {"steps": STEPS} if is_trained(name) else {}
    detector = kind(**settings | trained)
    model = fit(detector, pictures(range(24)), calibration=0.4, preprocessing=preprocessing, device="cpu")
    shapes = [(96, 80)] * 6 + [(61, 133), (150, 100)]
    shown = [
        abnormal_picture(600 + i, shape)[0] if i % 2 else normal_picture(500 + i, shape)
        for i, shape in enumerate(shapes)
    ]
    scores = model.score([Sample(f"{i}", array=array) for i, array in enumerate(shown)], false_alarm_rate=RATE)
    return {**of_scores(scores), **of_model(model)}


def of_folder() -> dict[str, object]:
    """Files of patients with several images each, scored into a folder with its report; and the calibration itself."""
    with TemporaryDirectory() as temporary:
        root = Path(temporary)
        for i in range(30):
            write_picture(root / f"normals/patient{i // 2:02d}_{i % 2}.png", normal_picture(i))
        for i in range(8):
            picture = abnormal_picture(600 + i)[0] if i % 2 else normal_picture(500 + i)
            write_picture(root / f"images/patient{i // 3}_{i}.png", picture)
        (root / "images/broken.png").write_bytes(b"no image")
        pattern = r"(patient\d+)"
        settings = {"calibration": 0.4, "preprocessing": SMALL, "patient_pattern": pattern, "device": "cpu"}
        model = fit(TwoView(bank_size=300), root / "normals", **settings)
        out = root / "out"
        options = {"false_alarm_rate": RATE, "patient_pattern": pattern}
        summary = score_to_folder(model, root / "images", out, report=True, **options)
        table = columns(out / "scores.csv", SCORES_CSV)
        known = model.calibration
        judged = type(known).of([0.5, 1.0, 1.0, 2.0, 4.0, 3.0], ["a", "a", "b", "c", "d", "d"])
        return {
            "scores.csv": table,
            "scores.csv_sha256": short_hash("\n".join(as_text(out / "scores.csv", SCORES_CSV)).encode()),
            "maps": of_maps(np.load(out / str(path)) for path in table["map"]),
            "counts": [summary.scored, summary.flagged, summary.failed, int(summary.report is not None)],
            "thresholds": numbers(model.threshold(rate) for rate in (0.15, 0.25, 0.5, 0.9)),
            "given": {
                "p_value": numbers(judged.p_value(score) for score in (0.0, 0.5, 0.75, 1.0, 2.5, 4.0, 5.0)),
                "thresholds": numbers(judged.threshold(rate) for rate in (0.1, 0.2, 0.3, 0.5, 0.8, 1.0)),
            },
            **of_model(model),
        }


def of_volumes(kind: str) -> dict[str, object]:
    """DICOM series with a bright block in some, scored as volumes: the tables and the maps over the scans."""
    detector, settings = {
        "plain": (TwoView(bank_size=1000), Preprocessing(size=64)),
        "lung": (PatchCore(bank_size=300), Preprocessing(size=64, windows=("lung",), height="lung", slices=3)),
        "volume": (PatchCore(bank_size=300), Preprocessing(size=64, windows=("lung",), height="volume", valid="lung")),
    }[kind]
    with TemporaryDirectory() as temporary:
        root = Path(temporary)
        for i in range(8):
            write_chest(root / f"normals/n{i}", i, f"N{i // 2 if i < 4 else i}")
        for i, (patient, planted) in enumerate([("S0", False), ("S0", True), ("S1", True), ("S2", False)]):
            write_chest(root / f"scans/s{i}", 50 + i, patient, planted=planted)
        model = fit(detector, root / "normals", calibration=0.5, preprocessing=settings, device="cpu")
        out = root / "out"
        score_to_folder(model, root / "scans", out, maps="nifti", overlays=False, false_alarm_rate=0.3)
        volumes = columns(out / "volumes.csv", VOLUMES_CSV)
        scans = [nibabel.load(out / str(path)) for path in volumes["map"]]
        rule = model.volume_rule
        return {
            "scores.csv": columns(out / "scores.csv", SCORES_CSV),
            "volumes.csv": volumes,
            "candidates.csv": columns(out / "candidates.csv", CANDIDATES_CSV),
            "patients.csv": columns(out / "patients.csv", PATIENTS_CSV),
            "maps": of_maps(np.asarray(scan.dataobj) for scan in scans),
            "affines": numbers(value for scan in scans for value in scan.affine.ravel()),
            "rule": {
                "how": rule.how,
                "thresholds": numbers([rule.threshold, rule.background, rule.threshold_of_volumes(0.3)]),
            },
            **of_model(model),
        }


def of_evaluation() -> dict[str, object]:
    """Every metric of a small labelled set with masks and patients, with its interval."""
    from anomalib_med.evaluation.evaluate import evaluate_model

    model = fit(PatchCore(bank_size=200), pictures(range(24)), calibration=0.4, preprocessing=SMALL, device="cpu")
    with TemporaryDirectory() as folder:
        samples = []
        for i in range(8):
            samples.append(Sample(f"n{i}", array=normal_picture(700 + i), patient=f"n{i // 2}", label=0))
            where = abnormal_picture(800 + i)[1]
            picture = (
                (normal_picture(800 + i) + 6.0 * i * where).clip(0, 255).astype(np.uint8)
            )  # the first shows nothing
            mask = write_picture(Path(folder) / f"m{i}.png", where.astype(np.uint8) * 255)
            samples.append(Sample(f"a{i}", array=picture, patient=f"a{i // 2}", label=1, mask=mask))
        evaluation = evaluate_model(model, samples, false_alarm_rate=RATE, replicates=200)
        found = sorted(evaluation.metrics.items())
        return {
            "scores": numbers(evaluation.scores),
            "metrics": {name: numbers([x.value, x.low, x.high]) for name, x in found},
        }


def of_merging() -> dict[str, object]:
    """A model that learns from more normals, and one made of two."""
    settings = {"calibration": 0.4, "preprocessing": SMALL, "device": "cpu"}
    shown = [Sample(f"{i}", array=abnormal_picture(600 + i)[0] if i % 2 else normal_picture(500 + i)) for i in range(6)]
    first = fit(PatchCore(bank_size=100), pictures(range(12)), **settings)
    second = fit(PatchCore(bank_size=100), pictures(range(100, 112)), **settings)
    grown = add_normals(first, pictures(range(100, 112)), calibration=0.4, device="cpu")
    merged = merge_models(first, second, calibration_normals=pictures(range(200, 208)), device="cpu")
    return {
        name: {**of_scores(model.score(shown, false_alarm_rate=RATE)), **of_model(model)}
        for name, model in (("added", grown), ("merged", merged))
    }


def is_trained(name: str) -> bool:
    """Whether a detector learns in steps, and is not computed in closed form."""
    return "steps" in detectors()[name].Config.model_fields


def pictures(seeds: Iterable[int]) -> list[Sample]:
    """Normal pictures in memory, three of every two patients."""
    return [Sample(f"{i:03d}", array=normal_picture(i), patient=f"p{2 * i // 3:03d}") for i in seeds]


def write_picture(path: Path, picture: np.ndarray) -> Path:
    """A PNG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), picture)
    return path


def write_chest(folder: Path, seed: int, patient: str, *, planted: bool = False) -> None:
    """A chest with clouds of its own as a DICOM series, with a dense block in the left lung where `planted`."""
    hu = chest_volume(seed, 8, 80)
    noise = np.random.default_rng(900 + seed).normal(0, 1, hu.shape).astype(np.float32)
    hu += np.stack([cv2.GaussianBlur(each, (0, 0), 4) for each in noise]) * 400
    if planted:
        hu[3:6, 34:46, 20:30] = 200
    tags = {"SeriesInstanceUID": f"1.2.7.{seed}", "StudyInstanceUID": f"1.2.6.{seed}", "PatientID": patient}
    write_series(folder, hu, origin=(-170.0, -160.0, 55.0), spacing=(6.0, 4.4, 4.4), **tags)


def of_scores(scores: Scores) -> dict[str, object]:
    """What was said of each image."""
    return {
        "scores": numbers(scores.scores),
        "p_values": numbers(scores.p_values),
        "flagged": "".join(str(int(flagged)) for flagged in scores.flagged),
        "maps": of_maps(scores.maps),
    }


def of_model(model: FittedModel) -> dict[str, object]:
    """What was learnt: the tensors whatever their names, the scores of held-out normals, the scale of maps."""
    tensors = [tensor.detach().cpu().contiguous().numpy() for tensor in model.detector.state()[0].values()]
    hashes = sorted(short_hash(f"{t.dtype}{t.shape}".encode() + t.tobytes()) for t in tensors)
    known = model.calibration
    return {
        "state_sha256": short_hash("".join(hashes).encode()),
        "state": {"tensors": len(tensors), "values": sum(t.size for t in tensors)},
        "calibration": numbers([] if known is None else known.scores),
        "smallest_p": 1.0 if known is None else known.p_value(math.inf),
        "map_range": numbers(model.map_range),
    }


def of_maps(maps: Iterable[np.ndarray]) -> dict[str, object]:
    """A digest, the mean and the highest value of each map."""
    each = [np.ascontiguousarray(map, np.float32) for map in maps]
    return {
        "sha256": [short_hash(repr(map.shape).encode() + map.tobytes()) for map in each],
        "mean": numbers(map.mean(dtype=np.float64) for map in each),
        "max": numbers(map.max() for map in each),
    }


def columns(path: Path, names: Sequence[str]) -> dict[str, list[object]]:
    """The named columns of a CSV table, numbers as numbers."""
    rows = read_rows(path)
    return {name: [row[name] if name in TEXT else number(row[name]) for row in rows] for name in names}


def as_text(path: Path, names: Sequence[str]) -> list[str]:
    """The rows of a CSV table as they are written, without the columns that are not named."""
    return [",".join(row[name] for name in names) for row in read_rows(path)]


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV table."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def numbers(values: Iterable[object]) -> list[float | str | None]:
    """Each as `number` makes it."""
    return [number(value) for value in values]


def number(value: object) -> float | str | None:
    """A number that JSON can hold and give back to the last bit; None where there is none, a text where infinite."""
    if value is None or value == "":
        return None
    known = float(value)
    if math.isnan(known):
        return None
    return known if math.isfinite(known) else str(known)


def short_hash(data: bytes) -> str:
    """Enough of the SHA-256 to tell values apart."""
    return hashlib.sha256(data).hexdigest()[:16]
