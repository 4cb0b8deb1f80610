"""`anomed datasets`: the list, the card of one, and the check of a folder."""

from pathlib import Path

from anomalib_med.datasets.benchmarks import benchmark_card, benchmark_names
from tests.cli.command import anomed, assert_refused
from tests.datasets import layouts, layouts_cxr

MADE_HERE = (  # these have no source to get them from
    "your own",
    "anomalib_med.phantoms.write_chest_dataset",
    "anomalib_med.phantoms.write_digit_anatomy",
)


def test_datasets_lists_every_set_with_what_it_is_judged_by() -> None:
    outcome = anomed("datasets")
    assert outcome.code == 0
    lines = {line.split()[0]: line for line in outcome.out.splitlines()}
    assert list(lines) == benchmark_names()
    for name in benchmark_names():
        card = benchmark_card(name)
        assert card.title in lines[name]
        assert " ".join(card.tasks) in lines[name]


def test_show_tells_source_traps_and_layout_of_every_set() -> None:
    for name in benchmark_names():
        outcome = anomed("datasets", "show", name)
        assert outcome.code == 0, outcome.err
        card = benchmark_card(name)
        for text in (card.protocol, card.licence, card.source, *card.notes):
            assert text in outcome.out
        for heading in ("## Layout", "## Licence", *(() if card.source in MADE_HERE else ("## Get it", "## Split"))):
            assert heading in outcome.out, f"{name}: {heading}"


def test_an_unknown_name_gets_a_hint() -> None:
    assert_refused(anomed("datasets", "show", "luna"), 'data set "luna" is not known: did you mean "luna16"')


def test_check_of_a_part_says_what_differs(tmp_path: Path) -> None:
    layouts_cxr.zhanglab(tmp_path)
    outcome = anomed("datasets", "check", "zhanglab", "--root", tmp_path)
    assert_refused(outcome, "zhanglab: .* is not as the card says")
    assert "  train                3  but 1349 in the card\n" in outcome.out
    assert "  images read          6\n" in outcome.out


def test_check_names_missing_and_unreadable_files(tmp_path: Path) -> None:
    layouts.brats2013(tmp_path)
    base = tmp_path / "brats2013_flair"
    (base / "masks/pat0002_z060.png").unlink()
    (base / "normal/pat0001_z011.png").write_bytes(b"")
    outcome = anomed("datasets", "check", "brats2013", "--root", tmp_path, "--read", "all")
    assert outcome.code == 2
    assert f"  - no mask {base}/masks/pat0002_z060.png for abnormal/pat0002_z060.png" in outcome.out
    assert "pat0001_z011.png: the file is empty" in outcome.out


def test_check_of_a_whole_set_is_content(tmp_path: Path) -> None:
    layouts.folder(tmp_path)
    outcome = anomed("datasets", "check", "folder", "--root", tmp_path)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.endswith("complete, as the card says\n")


def test_wrong_use_is_refused_in_one_line(tmp_path: Path) -> None:
    assert_refused(anomed("datasets", "check", "folder", "--root", tmp_path / "no"), "no folder .*no: give the folder")
    assert_refused(anomed("datasets", "check", "folder"), "Missing option '--root'")
    assert_refused(anomed("datasets", "check", "folder", "--root", tmp_path, "--read", "x"), "neither a number nor all")


def test_help_has_examples() -> None:
    for verb in ((), ("show",), ("check",)):
        outcome = anomed("datasets", *verb, "--help")
        assert outcome.code == 0
        assert "anomed datasets" in outcome.out.split("Example")[1]
