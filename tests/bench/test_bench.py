"""The bench: every cell once, resumed after an interruption, failures recorded, the same tables whatever happened."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from anomalib_med import Preprocessing
from anomalib_med.bench import runner as bench
from anomalib_med.bench.baselines import MEAN_IMAGE, UNDIRECTED
from anomalib_med.bench.cells import Cell, cell_path, read_cell
from anomalib_med.bench.results import markdown, readme_table, replace_between_markers
from anomalib_med.bench.runner import Plan, methods_of, run_bench
from anomalib_med.bench.summary import COMPARED, compare, given_away, rows_of
from anomalib_med.bench.written import write_outputs
from anomalib_med.datasets.benchmarks import Benchmark, open_benchmark
from anomalib_med.errors import ConfigError, InputError, OutputError
from tests.conftest import abnormal_picture, normal_picture

SHARED = {"weights": "random", "bank_size": "100"}


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
        assert number.spread.seeds == (1 if row.baseline else 2)
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


def test_finished_cells_are_not_run_again(finished: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "fit", lambda *a, **k: pytest.fail("a finished cell was run again"))
    said: list[str] = []
    run_bench(finished, say=said.append)
    assert len(said) == 4
    assert all(line.endswith("done before") for line in said)


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
    fit = bench.fit

    def failing(detector, *args, **kwargs):  # type: ignore[no-untyped-def]
        if detector.config.pooling == "max":
            raise RuntimeError("out of memory")
        return fit(detector, *args, **kwargs)

    monkeypatch.setattr(bench, "fit", failing)
    broken = replace(finished, out=tmp_path, seeds=1)
    cells = run_bench(broken)
    rows = rows_of(cells)
    assert rows[-1].error == "seed 0: RuntimeError: out of memory"
    assert "auroc" in rows[-2].numbers
    write_outputs(tmp_path, cells)
    assert "RuntimeError: out of memory" in (tmp_path / "results.md").read_text()
    assert "RuntimeError: out of memory" in (tmp_path / "bench.html").read_text()
    monkeypatch.setattr(bench, "fit", fit)
    assert not rows_of(run_bench(broken))[-1].error  # tried again


def test_a_set_that_is_not_there_does_not_stop_the_others(finished: Plan) -> None:
    cells = run_bench(replace(finished, datasets=("luna16", "folder")))
    missing = [c for c in cells if c.dataset == "luna16"]
    assert len(missing) == 2
    assert all(c.error for c in missing)
    assert any(c.metrics for c in cells if c.dataset == "folder")


@pytest.fixture(scope="module")
def pixel_only(root: Path, finished: Plan, tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, list[Cell]]:
    """A set without test normals, judged by its maps alone."""

    def opened(name: str, root: Path) -> Benchmark:
        benchmark = open_benchmark(name, root)
        abnormal = tuple(s for s in benchmark.test if s.label == 1)
        return replace(benchmark, tasks=("pixel",), test=abnormal)

    plan = replace(finished, out=tmp_path_factory.mktemp("pixel"), seeds=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "open_benchmark", opened)
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
    images, maps = (block.splitlines() for block in readme_table(tmp_path / "results.csv").split("\n\n"))
    assert images[0] == "| Image AUROC | folder |"
    assert maps[0] == "| Pixel AP | folder | maps |"
    assert len(images) == len(maps) == 2 + 1 + 2  # heading, best baseline, methods
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
    assert page.count("data:image/jpeg") == 2 * bench.EXAMPLES
    assert page.count("data:image/png") == 2
    assert "<script" not in page
    assert "patchcore pooling=max" in page


def test_every_number_of_the_markdown_table_has_its_interval(finished: Plan) -> None:
    rows = rows_of(run_bench(finished))
    text = markdown(rows, compare(rows))
    lines = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line][1:]
    assert len(lines) == 7
    for line in lines:
        numbers = [cell for cell in line.split("|")[2:-4] if cell.strip() != "-"]
        assert numbers
        assert all("[" in number for number in numbers), line


def test_a_set_that_a_trivial_baseline_solves_is_marked(finished: Plan) -> None:
    rows = rows_of(run_bench(finished))
    trivial = given_away(rows, "folder")
    scores = {r.method: r.numbers["auroc"].interval for r in rows if r.baseline}
    assert (trivial is not None) == any(i.low > 0.6 for i in scores.values())
    assert ("†" in markdown(rows, compare(rows)).partition("\n")[0]) == (trivial is not None)


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


def test_the_table_of_the_readme_lies_between_its_markers(finished: Plan) -> None:
    write_outputs(finished.out, run_bench(finished))
    table = readme_table(finished.out / "results.csv")
    assert all("| *best trivial baseline* | *" in block for block in table.split("\n\n"))
    text = "before\n<!-- bench -->\nold\n<!-- /bench -->\nafter\n"
    assert replace_between_markers(text, table) == f"before\n<!-- bench -->\n{table}\n<!-- /bench -->\nafter\n"
    with pytest.raises(OutputError, match="no markers"):
        replace_between_markers("nothing", table)


def test_a_limited_set_says_so_in_its_protocol(root: Path, finished: Plan) -> None:
    limited = bench.limited(open_benchmark("folder", root), replace(finished, max_train=10, max_test=6))
    assert (len(limited.train), len(limited.test)) == (10, 6)
    assert {s.label for s in limited.test} == {0, 1}
    assert limited.protocol == "folder (limited)"
    assert "not comparable" in limited.notes[-1]


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
