"""What is written appears whole or not at all."""

from pathlib import Path

import pytest

from anomalib_med.errors import OutputError
from anomalib_med.files import (
    TEMPORARY,
    move_folder,
    replacing,
    replacing_folder,
    temporary_beside,
    write_atomic,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("sync", [False, True])
def test_a_file_is_replaced_when_the_block_ends(tmp_path: Path, sync: bool) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path, sync=sync) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.name.endswith(TEMPORARY)
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


def test_where_the_block_fails_the_old_file_stays_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with replacing(path) as first, replacing(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"
    assert temporary_beside(path) != temporary_beside(path)


def test_a_refusal_of_the_system_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"a\.txt: cannot be written"):
        write_atomic(tmp_path / "none" / "a.txt", b"")


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    move_folder(tmp_path / "new", tmp_path / "old")
    assert names(tmp_path) == ["old"]
    assert names(tmp_path / "old") == ["new"]


def test_where_the_new_folder_cannot_be_moved_the_old_one_comes_back(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    with pytest.raises(OSError, match="new"):
        move_folder(tmp_path / "new", tmp_path / "old")
    assert names(tmp_path) == ["old"]


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for word in ("old", "new"):
        with replacing_folder(folder) as temporary:
            (temporary / word).write_text(word)
    assert names(folder) == ["new"]
    with pytest.raises(KeyboardInterrupt), replacing_folder(folder) as temporary:
        (temporary / "half").write_text("half")
        raise KeyboardInterrupt
    assert names(folder) == ["new"]
    assert names(tmp_path) == ["model"]
