import errno
import json
import os
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from made_up_results import FINGERPRINT, RANGE, failed, grey, scored, volume, volumes_in

from anomalib_med.calibration import VolumeJudge, VolumeRule
from anomalib_med.errors import ConfigError, OutputError
from anomalib_med.files import TEMPORARY, AppendFile
from anomalib_med.outputs.tables import FAILURES, read_scores
from anomalib_med.outputs.writer import ResultWriter
from tests.made_up_files import read_png_map


def writer(out, **options):
    options = {"volumes": volumes_in(Path(out).parent), **options}
    return ResultWriter(out, **{"fingerprint": FINGERPRINT, "colour_range": RANGE, **options})


def put(target, results):
    judge = VolumeJudge(VolumeRule(), 0.05, volumes_in(target.out.parent), target.volumes)
    for result in results:
        if result.id not in target.done:
            target.write(result, grey(result.geometry.original) if result.ok else None)
            volume = judge.add(result)
            if volume is not None:
                target.write_volume(volume)
    target.write_patients(judge.patients())


def score(out, results, *, stop=None, **options):
    """Score all results, or the first `stop` of those still to do, as if Ctrl-C came then."""
    with writer(out, **options) as target:
        todo = [result for result in results if result.id not in target.done]
        put(target, todo[:stop])
        if stop is not None:
            raise KeyboardInterrupt


def stopped(out, results, stop, **options):
    with pytest.raises(KeyboardInterrupt):
        score(out, results, stop=stop, **options)


def files(out):
    return {file.relative_to(out).as_posix(): file.read_bytes() for file in out.rglob("*") if file.is_file()}


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


MIXED = [
    scored("a.png", 0.5),
    scored("b/b.png", 1.5),
    failed("c.dcm"),
    scored('d"\n.png', 1.7),
    failed("e"),
    scored("f", 0.1),
]


def test_each_image_gets_its_row_its_map_and_its_overlay(tmp_path):
    score(tmp_path / "out", MIXED)
    rows = read_scores(tmp_path / "out/scores.csv")
    assert [row.id for row in rows] == ["a.png", "b/b.png", 'd"\n.png', "f"]
    for row in rows:
        map = np.load(tmp_path / "out" / row.map, allow_pickle=False)
        assert map.shape == (40, 32)
        assert map.dtype == np.float32
        assert map[0, 0] == np.float32(row.score)
        assert (tmp_path / "out/overlays" / f"{Path(row.map).stem}.jpg").is_file()
    assert [row.id for row in FAILURES.read(tmp_path / "out/failures.csv")] == ["c.dcm", "e"]


def test_the_result_comes_back_with_the_place_of_its_map(tmp_path):
    with writer(tmp_path) as target:
        assert target.write(scored("a.png"), grey()).map == "maps/a.png.npy"


def test_a_complete_run_says_so_with_its_counts(tmp_path):
    score(tmp_path, MIXED)
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["complete"] is True
    assert run["counts"] == {"scored": 4, "flagged": 2, "failed": 2, "clipped_pixels": 0}


def test_an_interrupted_run_is_not_complete(tmp_path):
    stopped(tmp_path, MIXED, 2)
    assert json.loads((tmp_path / "run.json").read_text())["complete"] is False


@pytest.mark.parametrize("maps", ["npy", "png", "none"])
@pytest.mark.parametrize("stop", range(len(MIXED)))
def test_a_resumed_run_leaves_the_same_bytes_as_one_without_interruption(tmp_path, stop, maps):
    score(tmp_path / "whole", MIXED, maps=maps)
    stopped(tmp_path / "parts", MIXED, stop, maps=maps)
    score(tmp_path / "parts", MIXED, maps=maps)
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_any_torn_end_of_the_table_is_cut_off(tmp_path):
    score(tmp_path / "whole", MIXED, maps="none", overlays=False)
    stopped(tmp_path / "parts", MIXED, 4, maps="none", overlays=False)
    whole = (tmp_path / "whole/scores.csv").read_bytes()
    for length in range(len((tmp_path / "parts/scores.csv").read_bytes())):
        shutil.copytree(tmp_path / "parts", tmp_path / "torn")
        os.truncate(tmp_path / "torn/scores.csv", length)
        score(tmp_path / "torn", MIXED, maps="none", overlays=False)
        assert (tmp_path / "torn/scores.csv").read_bytes() == whole, length
        shutil.rmtree(tmp_path / "torn")


def test_done_names_the_scored_images_and_failures_are_tried_again(tmp_path):
    stopped(tmp_path, MIXED, 4)
    with writer(tmp_path) as target:
        assert target.done == {"a.png", "b/b.png", 'd"\n.png'}
        put(target, [*MIXED[:2], scored("c.dcm", 0.3), *MIXED[3:]])
    assert [row.id for row in FAILURES.read(tmp_path / "failures.csv")] == ["e"]
    assert "c.dcm" in {row.id for row in read_scores(tmp_path / "scores.csv")}


def test_rows_after_a_lost_map_are_scored_again(tmp_path):
    score(tmp_path, MIXED)
    before = files(tmp_path)
    (tmp_path / read_scores(tmp_path / "scores.csv")[1].map).unlink()
    with writer(tmp_path) as target:
        assert target.done == {"a.png"}
        put(target, MIXED)
    assert files(tmp_path) == before


def test_results_of_another_run_are_not_touched(tmp_path):
    score(tmp_path, MIXED)
    before = files(tmp_path)
    for options in ({"fingerprint": {**FINGERPRINT, "model": "new"}}, {"maps": "png"}, {"colour_range": (0.0, 3.0)}):
        with pytest.raises(OutputError, match=r"another run \((model|maps|colour_range) differs\).*--overwrite"):
            writer(tmp_path, **options)
    assert files(tmp_path) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_not_ours_is_never_touched(tmp_path, overwrite):
    (tmp_path / "scores.csv").write_text("mine")
    with pytest.raises(OutputError, match="no results"):
        writer(tmp_path, overwrite=overwrite)
    (tmp_path / "run.json").write_text('{"mine": true}')
    with pytest.raises(OutputError, match=r"run\.json"):
        writer(tmp_path, overwrite=overwrite)
    assert set(files(tmp_path)) == {"scores.csv", "run.json"}


def test_overwrite_removes_our_files_and_nothing_else(tmp_path):
    score(tmp_path, MIXED, table="parquet")
    mine = ("notes.txt", "maps/mine.npy", "overlays/mine.jpg")
    for name in mine:
        (tmp_path / name).write_text("mine")
    score(tmp_path, [scored("z")], fingerprint={"model": "new"}, overwrite=True)
    ours = {"run.json", "scores.csv", "failures.csv", "maps/z.npy", "overlays/z.jpg"}
    assert set(files(tmp_path)) == ours | set(mine)


def test_overwrite_is_the_remedy_for_an_edited_table(tmp_path):
    score(tmp_path, MIXED)
    (tmp_path / "scores.csv").write_text("id;score\na;1\n")
    with pytest.raises(OutputError, match="--overwrite"):
        writer(tmp_path)
    score(tmp_path, MIXED, overwrite=True)
    assert len(read_scores(tmp_path / "scores.csv")) == 4


def test_overwrite_follows_no_path_that_leads_out_of_the_folder(tmp_path):
    out = tmp_path / "out"
    score(out, [scored("a")])
    (tmp_path / "precious.npy").write_text("mine")
    table = out / "scores.csv"
    table.write_bytes(table.read_bytes().replace(b"maps/a.npy", b"maps/../../precious.npy"))
    score(out, [scored("b")], overwrite=True)
    assert (tmp_path / "precious.npy").exists()


def test_a_hostile_id_writes_nothing_outside_the_folder(tmp_path):
    out = tmp_path / "out"
    score(out, [scored(id) for id in ("../../x", "/etc/x", "..", "<script>.png", "é" * 400, "")])
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    assert len(list((out / "maps").iterdir())) == 6


@pytest.mark.parametrize("table", ["parquet", "jsonl"])
def test_the_other_table_is_made_beside_the_csv_and_kept_up_to_date(tmp_path, table):
    score(tmp_path, MIXED, table=table)
    score(tmp_path, [*MIXED[:2], scored("c.dcm"), *MIXED[3:]])
    assert read_scores(tmp_path / f"scores.{table}") == read_scores(tmp_path / "scores.csv")


def test_png_maps_and_their_scale_are_recorded(tmp_path):
    score(tmp_path, [scored("a", 1.25), scored("b", 1e6)], maps="png", overlays=False)
    scale = json.loads((tmp_path / "maps/scale.json").read_text())
    assert np.abs(read_png_map(tmp_path / "maps/a.png") - 1.25).max() <= scale["step"]
    assert json.loads((tmp_path / "run.json").read_text())["counts"]["clipped_pixels"] == 40 * 32
    assert not (tmp_path / "overlays").exists()


@pytest.mark.parametrize("range", [(1.0, 1.0), (2.0, 1.0), (0.0, float("nan")), (0.0, float("inf"))])
def test_a_colour_range_without_extent_is_refused(tmp_path, range):
    with pytest.raises(ConfigError, match="colour_range"):
        writer(tmp_path / "out", colour_range=range)
    assert not (tmp_path / "out").exists()


# Volumes


def volumes(folder):
    _, first = volume(folder, "v.nii.gz")
    _, second = volume(folder, "w.nii", frames=3)
    return [scored("before.png"), *first, scored("between.png"), *second]


def test_a_volume_gets_one_map_whose_slices_are_in_their_places(tmp_path):
    score(tmp_path / "out", volumes(tmp_path), maps="nifti")
    rows = read_scores(tmp_path / "out/scores.csv")
    assert [row.id for row in rows] == [result.id for result in volumes(tmp_path)]
    assert len({row.map for row in rows[1:5]}) == 1
    values = np.asarray(nibabel.load(tmp_path / "out" / rows[1].map).dataobj)
    assert values.shape == (5, 6, 4)
    assert [float(values[0, 0, k]) for k in range(4)] == [1, 2, 3, 4]
    assert rows[0].map == "maps/before.png.npy"


def test_at_no_time_a_row_names_a_map_that_is_not_there(tmp_path):
    out = tmp_path / "out"
    with writer(out, maps="nifti") as target:
        for result in volumes(tmp_path):
            put(target, [result])
            assert all((out / row.map).is_file() for row in read_scores(out / "scores.csv"))


def test_memory_does_not_grow_with_the_slices_of_a_volume(tmp_path):
    shape = (256, 256)
    path, _ = volume(tmp_path, "v.nii", frames=60, shape=shape)
    judge = VolumeJudge(VolumeRule(threshold=70.0), 0.05, volumes_in(tmp_path))

    def write(target, frames):
        for k in frames:
            result = scored(f"v.nii#{k}", shape=shape, path=str(path), frame=k)
            result = replace(result, grid=np.full(shape, k, np.float32))
            target.write(result, None)
            judged = judge.add(result)
            if judged is not None:
                target.write_volume(judged)

    with writer(tmp_path / "out", maps="nifti", overlays=False) as target:
        write(target, range(10))
        tracemalloc.start()
        write(target, range(10, 60))
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert held < 1_000_000  # the maps of 50 slices are 13 MB


@pytest.mark.parametrize("stop", range(9))
def test_a_half_done_volume_is_scored_again_whole(tmp_path, stop):
    results = volumes(tmp_path)
    score(tmp_path / "whole", results, maps="nifti")
    stopped(tmp_path / "parts", results, stop, maps="nifti")
    with writer(tmp_path / "parts", maps="nifti") as target:
        done = [result.id in target.done for result in results]
        assert len(set(done[1:5])) == len(set(done[6:])) == 1
        put(target, results)
    same = "scores.csv", "failures.csv", "run.json"
    assert [(tmp_path / "parts" / n).read_bytes() for n in same] == [
        (tmp_path / "whole" / n).read_bytes() for n in same
    ]
    assert set(files(tmp_path / "parts")) == set(files(tmp_path / "whole"))
    for row in read_scores(tmp_path / "parts/scores.csv")[1:5]:
        values = np.asarray(nibabel.load(tmp_path / "parts" / row.map).dataobj)
        assert values[0, 0, row.frame] == row.score


def test_a_group_of_slices_torn_by_a_crash_is_scored_again_whole(tmp_path):
    results = volumes(tmp_path)
    score(tmp_path / "whole", results, maps="nifti")
    stopped(tmp_path / "parts", results, 6, maps="nifti")
    lines = (tmp_path / "parts/scores.csv").read_bytes().splitlines(keepends=True)
    (tmp_path / "parts/scores.csv").write_bytes(b"".join(lines[:4]))
    with writer(tmp_path / "parts", maps="nifti") as target:
        assert target.done == {"before.png"}
        put(target, results)
    assert (tmp_path / "parts/scores.csv").read_bytes() == (tmp_path / "whole/scores.csv").read_bytes()


def test_a_failed_slice_is_missing_in_the_volume_and_not_tried_again(tmp_path):
    path, results = volume(tmp_path, "v.nii.gz")
    results[2] = failed(results[2].id, path=str(path), frame=2)
    score(tmp_path / "out", results, maps="nifti")
    rows = read_scores(tmp_path / "out/scores.csv")
    assert [row.frame for row in rows] == [0, 1, 3]
    assert np.isnan(np.asarray(nibabel.load(tmp_path / "out" / rows[0].map).dataobj)[..., 2]).all()
    with writer(tmp_path / "out", maps="nifti") as target:
        assert target.done == {result.id for result in results}
    assert [row.frame for row in FAILURES.read(tmp_path / "out/failures.csv")] == [2]


def test_scattered_slices_of_a_volume_are_refused(tmp_path):
    _, results = volume(tmp_path, "v.nii")
    with (
        pytest.raises(OutputError, match=r"v\.nii.*one after the other"),
        writer(tmp_path / "out", maps="nifti") as target,
    ):
        put(target, [results[0], scored("a.png"), results[1]])


# A disk that does not take it


def test_a_full_disk_at_a_map_keeps_what_was_written(tmp_path, monkeypatch):
    score(tmp_path / "whole", MIXED)
    target = writer(tmp_path / "out")
    put(target, MIXED[:3])
    with monkeypatch.context() as patch, pytest.raises(OutputError, match=r"maps/.*disk is full.*same command"):
        patch.setattr(Path, "replace", no_space)
        put(target, MIXED[3:])
    target.close()
    assert not list((tmp_path / "out").rglob(f"*{TEMPORARY}"))
    assert [row.id for row in read_scores(tmp_path / "out/scores.csv")] == ["a.png", "b/b.png"]
    score(tmp_path / "out", MIXED)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_full_disk_in_the_middle_of_a_row_leaves_no_part_of_it(tmp_path):
    class Full:
        """A file that takes seven bytes and then no more."""

        def __init__(self, handle):
            self.handle, self.left = handle, 7

        def write(self, data):
            if not self.left:
                no_space()
            self.left -= (taken := self.handle.write(data[: self.left]))
            return taken

        def __getattr__(self, name):
            return getattr(self.handle, name)

    table = AppendFile(tmp_path / "scores.csv")
    table.append(b"first,row\n")
    table._handle = Full(table._handle)
    with pytest.raises(OutputError, match="disk is full"):
        table.append(b"second,row\n")
    table.close()
    assert (tmp_path / "scores.csv").read_bytes() == b"first,row\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_real_full_device_is_named(tmp_path):
    (tmp_path / "scores.csv").symlink_to("/dev/full")
    with pytest.raises(OutputError, match=r"scores\.csv"):
        AppendFile(tmp_path / "scores.csv").append(b"row\n")


def test_a_folder_that_may_not_be_written_is_named_with_the_remedy(tmp_path, monkeypatch):
    def forbidden(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", forbidden)
    with pytest.raises(OutputError, match=r"out: not writable.*choose another"):
        writer(tmp_path / "out")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(OutputError, match="not writable"):
        writer(tmp_path)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError, match="out"):
        writer(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_half_written_files_of_a_killed_run_are_removed(tmp_path):
    stopped(tmp_path, MIXED, 1)
    (tmp_path / "maps" / f"b.npy{TEMPORARY}").write_text("half")
    score(tmp_path, MIXED)
    assert not list(tmp_path.rglob(f"*{TEMPORARY}"))


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    shape = (512, 512)
    display = grey(shape)

    def write(target, numbers):
        for i in numbers:
            target.write(scored(f"{i}.png", 1 + i / 300, shape=shape), display)

    with writer(tmp_path) as target:
        write(target, range(20))
        tracemalloc.start()
        write(target, range(20, 60))
        before, first_peak = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        write(target, range(60, 300))
        after, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert after - before < 100_000
    assert peak < first_peak * 1.05
