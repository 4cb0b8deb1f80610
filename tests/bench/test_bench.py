"""The bench: every cell once, resumed after an interruption, failures recorded, the same tables whatever happened."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from anomalib_med import Detector, DetectorConfig, Preprocessing
from anomalib_med.bench.baselines import MEAN_IMAGE, UNDIRECTED
from anomalib_med.bench.cells import Cell, cell_path, read_cell
from anomalib_med.bench.plan import EXAMPLES, Plan, limited, methods_of
from anomalib_med.bench.results import write_outputs
from anomalib_med.bench.runner import run_bench
from anomalib_med.bench.sheet import markdown, sheets_of
from anomalib_med.bench.summary import COMPARED, compare, given_away, rows_of
from anomalib_med.datasets.benchmarks import open_benchmark
from anomalib_med.errors import ConfigError, InputError, OutputError
from tests.conftest import abnormal_picture, normal_picture

SHARED = {"weights": "random", "bank_size": "100"}


class Watched(Detector):
    """Scores by brightness; counts its fits, and fails them on demand."""

    name = "watched_by_a_test_of_the_bench"
    title = "Brightness (test of the bench)"
    Config = DetectorConfig
    fits: ClassVar[int] = 0
    broken: ClassVar[bool] = False

    def fit(self, frames: object) -> None:
        Watched.fits += 1
        if Watched.broken:
            raise RuntimeError("out of memory")

    def anomaly_map(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(1)

    def state(self) -> tuple[dict[str, torch.Tensor], dict]:
        return {}, {}

    def load_state(self, tensors: Mapping[str, torch.Tensor], extra: Mapping[str, object]) -> None:
        pass


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of the layout "folder"."""
    top = tmp_path_factory.mktemp("root") / "folder"
    for name, count in (("train/normal", 24), ("test/normal", 6), ("test/abnormal", 6), ("test/masks", 6)):
        (top / name).mkdir(parents=True)
        for i in range(count):
            picture, mask = abnormal_picture(900 + i)
            made = {"test/abnormal": picture, "test/masks": mask.astype(np.uint8) * 255}
            seed = i if name == "train/normal" else 950 + i
            cv2.imwrite(str(top / name / f"{i}.png"), made.get(name, normal_picture(seed)))
    return top


@pytest.fixture(scope="module")
def plan(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return Plan(
        root=root,
        out=tmp_path_factory.mktemp("bench"),
        datasets=("folder",),
        methods=methods_of(["patchcore", "patchcore pooling=max"], SHARED),
        seeds=2,
        preprocessing=Preprocessing(size=64),
        device="cpu",
        replicates=50,
    )


@pytest.fixture(scope="module")
def finished(plan: Plan) -> Plan:
    run_bench(plan)
    return plan


def test_every_method_and_baseline_has_a_row(finished: Plan) -> None:
    rows = rows_of(run_bench(finished))
    assert [r.method for r in rows] == [*UNDIRECTED, MEAN_IMAGE, "patchcore", "patchcore pooling=max"]
    assert [r.baseline for r in rows] == [True] * 5 + [False] * 2
    for row in rows:
        number = row.numbers["auroc"]
        assert number.interval.low <= number.interval.value <= number.interval.high
        assert number.seeds == (1 if row.baseline else 2)
    detector = rows[-1]
    assert {"aupro@0.3", "sensitivity", "dice_img (oracle)"} <= set(detector.numbers)
    assert detector.mean_of("fit_s") > 0
    assert detector.mean_of("peak_mb") > 50


def test_a_result_says_where_it_comes_from(finished: Plan) -> None:
    info = read_cell(cell_path(finished.out, "folder", "patchcore", 1)).info
    wanted = ("protocol", "split_hash", "selection_rule", "threshold_rule", "packages", "machine", "backbone", "seen")
    for key in (*wanted, "anomalib_med", "seed", "settings", "training"):
        assert info[key] not in (None, ""), key
    assert info["backbone"]["sha256"]  # type: ignore[index,call-overload]


def test_finished_cells_are_not_run_again(finished: Plan, tmp_path: Path) -> None:
    said: list[str] = []
    run_bench(finished, say=said.append)
    assert len(said) == 4
    assert all(line.endswith("done before") for line in said)
    watched = replace(finished, out=tmp_path, methods=methods_of([Watched.name], {}), seeds=1)
    before = Watched.fits
    for _ in range(2):
        run_bench(watched)
    assert Watched.fits == before + 1


def test_an_interrupted_bench_resumes_to_the_same_numbers(finished: Plan, tmp_path: Path) -> None:
    again = replace(finished, out=tmp_path)
    calls = 0

    def interrupt(line: str) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_bench(again, say=interrupt)
    said: list[str] = []
    resumed = run_bench(again, say=said.append)
    assert sum(line.endswith("done before") for line in said) == 2
    for a, b in zip(run_bench(finished), resumed, strict=True):
        assert (a.dataset, a.method, a.seed, a.metrics) == (b.dataset, b.method, b.seed, b.metrics)


def test_detectors_on_the_same_features_share_one_pass(finished: Plan) -> None:
    extracted = {
        (m.label, seed): read_cell(cell_path(finished.out, "folder", m.label, seed)).info["features_extracted"]
        for m in finished.methods
        for seed in range(2)
    }
    assert extracted["patchcore", 0] == 36
    assert extracted["patchcore pooling=max", 0] == 0


def test_a_failing_cell_is_recorded_and_the_rest_is_measured(
    finished: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Watched, "broken", True)
    methods = methods_of(["patchcore", Watched.name], SHARED)
    broken = replace(finished, out=tmp_path, seeds=1, methods=methods)
    cells = run_bench(broken)
    rows = rows_of(cells)
    assert rows[-1].error == "seed 0: RuntimeError: out of memory"
    assert "auroc" in rows[-2].numbers
    write_outputs(tmp_path, cells)
    assert "RuntimeError: out of memory" in (tmp_path / "results.md").read_text()
    assert "RuntimeError: out of memory" in (tmp_path / "bench.html").read_text()
    monkeypatch.setattr(Watched, "broken", False)
    assert not rows_of(run_bench(broken))[-1].error  # tried again


def test_a_set_that_is_not_there_does_not_stop_the_others(finished: Plan) -> None:
    cells = run_bench(replace(finished, datasets=("luna16", "folder")))
    missing = [c for c in cells if c.dataset == "luna16"]
    assert len(missing) == 2
    assert all(c.error for c in missing)
    assert any(c.metrics for c in cells if c.dataset == "folder")


@pytest.fixture(scope="module")
def pixel_only(finished: Plan, tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, list[Cell]]:
    """A set without test normals, judged by its maps alone: of the layout "covid_cxr_lesions"."""
    top = tmp_path_factory.mktemp("pixel")
    normals, images, masks = (
        top / name for name in ("nih_rsna_cxr", "covid_cxr_lesions/images", "covid_cxr_lesions/masks")
    )
    for folder in (normals, images, masks):
        folder.mkdir(parents=True)
    tables = {
        "nih_rsna_cxr": ["group,path,patient,view"],
        "covid_cxr_lesions": ["stem,lesion_frac,patient,finding,view"],
    }
    for i in range(24):
        cv2.imwrite(str(normals / f"{i}.png"), normal_picture(i))
        tables["nih_rsna_cxr"].append(f"train_normal,{i}.png,{i},PA")
    for i in range(6):
        picture, mask = abnormal_picture(900 + i)
        cv2.imwrite(str(images / f"{i}.jpg"), picture)
        cv2.imwrite(str(masks / f"{i}.png"), mask.astype(np.uint8) * 255)
        tables["covid_cxr_lesions"].append(f"{i},0.1,{i},COVID-19,PA")
    for name, lines in tables.items():
        (top / name / "manifest.csv").write_text("\n".join(lines))
    plan = replace(finished, root=top, datasets=("covid_cxr_lesions",), out=top / "bench", seeds=1)
    return plan, run_bench(plan)


def test_a_set_without_normals_is_judged_by_its_maps(pixel_only: tuple[Plan, list[Cell]]) -> None:
    rows = rows_of(pixel_only[1])
    assert [row.method for row in rows] == [MEAN_IMAGE, "patchcore", "patchcore pooling=max"]
    assert not any(row.error for row in rows)
    for row in rows:
        assert {"pixel_auroc", "pixel_ap", "aupro@0.3", "froc_cpm"} <= set(row.numbers)
        assert not {"auroc", "sensitivity", "flagged_rate", "brier (cross-fitted)"} & set(row.numbers)
    assert {c.metric for c in compare(rows)} == {"pixel_auroc", "pixel_ap", "aupro@0.3"}


def test_outputs_of_a_set_without_normals(pixel_only: tuple[Plan, list[Cell]], finished: Plan, tmp_path: Path) -> None:
    _, found = pixel_only
    both = [*run_bench(finished), *(replace(cell, dataset="maps") for cell in found)]
    assert all(path.stat().st_size > 100 for path in write_outputs(tmp_path, both))
    assert {p.name for p in (tmp_path / "plots").iterdir()} == {"folder-roc.png", "folder-speed.png", "maps-speed.png"}
    header = (tmp_path / "results.md").read_text().partition("### maps")[2].partition("| Method | ")[2]
    assert header.startswith("Pixel AUROC | Pixel AP | ")


def test_every_measured_number_reaches_the_tidy_table(finished: Plan) -> None:
    write_outputs(finished.out, run_bench(finished))
    table = pq.read_table(finished.out / "results.parquet").to_pylist()
    found = {r["metric"] for r in table if r["method"] == "patchcore"}
    wanted = {"ece (cross-fitted)", "brier (cross-fitted)", "false_alarm_rate", "froc_cpm", "froc_cpm (overlap)"}
    assert wanted <= found
    assert any(name.startswith("sensitivity@1fp/image (lesions ") for name in found)


def test_other_settings_in_the_same_folder_are_refused(finished: Plan) -> None:
    other = replace(finished, calibration=0.3)
    with pytest.raises(OutputError, match=r"other settings or on another split: choose another folder, or --overwrite"):
        run_bench(other)


def test_tables_plots_and_page_are_written(finished: Plan) -> None:
    cells = run_bench(finished)
    written = write_outputs(finished.out, cells)
    assert all(path.stat().st_size > 100 for path in written)
    table = pq.read_table(finished.out / "results.parquet").to_pylist()
    auroc = [r for r in table if r["metric"] == "auroc" and r["method"] == "patchcore"]
    assert [r["seed"] for r in auroc] == ["0", "1", "all"]
    assert auroc[2]["value"] == pytest.approx((auroc[0]["value"] + auroc[1]["value"]) / 2)
    assert all(r["low"] <= r["value"] <= r["high"] for r in auroc)
    page = (finished.out / "bench.html").read_text()
    assert page.count("data:image/jpeg") == 2 * EXAMPLES
    assert page.count("data:image/png") == 2
    assert "<script" not in page
    assert "patchcore pooling=max" in page


def test_every_number_of_the_markdown_table_has_its_interval(finished: Plan) -> None:
    rows = rows_of(run_bench(finished))
    text = markdown(sheets_of(rows, compare(rows)))
    lines = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line][1:]
    assert len(lines) == 7
    for line in lines:
        numbers = [cell for cell in line.split("|")[2:-4] if cell.strip() != "-"]
        assert numbers
        assert all("[" in number for number in numbers), line


def test_a_set_that_a_trivial_baseline_solves_is_marked(finished: Plan) -> None:
    rows = rows_of(run_bench(finished))
    trivial = given_away(rows)
    scores = {r.method: r.numbers["auroc"].interval for r in rows if r.baseline}
    assert (trivial is not None) == any(i.low > 0.6 for i in scores.values())
    assert ("†" in markdown(sheets_of(rows, compare(rows))).partition("\n")[0]) == (trivial is not None)


def test_comparisons_are_paired_and_adjusted(finished: Plan) -> None:
    rows = rows_of(run_bench(finished))
    comparisons = compare(rows)
    assert [c.metric for c in comparisons] == list(COMPARED)
    for c in comparisons:
        a, b = (next(r for r in rows if r.method == name) for name in (c.first, c.second))
        assert c.difference.value == pytest.approx(
            a.numbers[c.metric].interval.value - b.numbers[c.metric].interval.value
        )
        assert c.difference.low <= c.difference.value <= c.difference.high
        assert 0 <= c.p_value <= c.adjusted <= 1


def test_a_limited_set_says_so_in_its_protocol(root: Path, finished: Plan) -> None:
    few = limited(open_benchmark("folder", root), replace(finished, max_train=10, max_test=6))
    assert (len(few.train), len(few.test)) == (10, 6)
    assert {s.label for s in few.test} == {0, 1}
    assert few.protocol == "folder (limited)"
    assert "not comparable" in few.notes[-1]


def test_methods_are_named_with_their_settings() -> None:
    (method,) = methods_of(["patchcore pooling=max bank_size=50"], {"weights": "random", "backbone": "resnet18"})
    assert method.label == "patchcore pooling=max bank_size=50"
    assert method.settings == {"weights": "random", "backbone": "resnet18", "pooling": "max", "bank_size": 50.0}
    assert method.size is None
    (method,) = methods_of(["knn size=96"], {})
    assert method.size == 96 and "size" not in method.settings
    with pytest.raises(ConfigError, match="size"):
        methods_of(["knn size=big"], {})
    with pytest.raises(InputError, match="named twice"):
        methods_of(["patchcore", "patchcore"], SHARED)
    with pytest.raises(InputError, match="write settings as key=value"):
        methods_of(["patchcore max"], SHARED)
    with pytest.raises(ConfigError, match='no option "bank"'):
        methods_of(["patchcore bank=3"], SHARED)
