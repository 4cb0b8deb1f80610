"""What every command has in common: help, version, one line for an error, a traceback on request."""

import subprocess
import sys
import time
from collections.abc import Callable
from inspect import signature
from pathlib import Path

import click
import pytest

from anomalib_med import __version__, fit
from anomalib_med.cli.fit import OWN_OPTION
from anomalib_med.cli.main import VERBS, cli
from anomalib_med.cli.progress import ProgressDisplay
from anomalib_med.demo import run_demo
from anomalib_med.merging import add_normals, merge_models
from anomalib_med.scoring import score_to_folder
from tests.cli.command import anomed, assert_refused


def test_help_lists_the_verbs_and_how_to_start() -> None:
    for arguments in ((), ("--help",), ("-h",)):
        outcome = anomed(*arguments)
        assert outcome.code == 0
        assert all(f"\n  {verb} " in outcome.out for verb in VERBS)
        assert "anomed fit normals/ -o model/" in outcome.out
        assert "not a medical device" in outcome.out
        assert outcome.err == ""


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_shows_examples(verb: str) -> None:
    outcome = anomed(verb, "--help")
    assert outcome.code == 0
    assert f"Usage: anomed {verb} " in outcome.out
    assert "Example" in outcome.out
    assert f"\n    anomed {verb}" in outcome.out


def command_of(verb: str) -> click.Command:
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    return command


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_a_verb_says_what_it_is(verb: str) -> None:
    for parameter in command_of(verb).params:
        if isinstance(parameter, click.Option):
            record = parameter.get_help_record(click.Context(command_of(verb)))
            assert record is not None
            assert record[1][:1].isupper(), record


@pytest.mark.parametrize(
    ("verb", "work"),
    [("fit", fit), ("score", score_to_folder), ("add", add_normals), ("merge", merge_models), ("demo", run_demo)],
)
def test_an_option_that_a_verb_passes_on_has_its_name_in_python(verb: str, work: Callable[..., object]) -> None:
    command = command_of(verb)
    assert command.callback is not None
    passed_on = {parameter.name for parameter in command.params} - set(signature(command.callback).parameters)
    assert passed_on - set(OWN_OPTION) <= set(signature(work).parameters)


def test_version() -> None:
    outcome = anomed("--version")
    assert outcome.code == 0
    assert outcome.out == f"anomed, version {__version__}\n"


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["fit", "--help"]])
def test_version_and_help_do_not_wait_for_torch(arguments: list[str]) -> None:
    code = (
        "import sys; from anomalib_med.cli.main import main; main(sys.argv[1:]); "
        "print(sorted({'torch', 'timm', 'cv2', 'matplotlib'} & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_python_m_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "anomalib_med", "score"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "anomed: Missing argument 'MODEL_DIR'. See anomed score --help\n"


def test_wrong_use_is_one_line_that_points_to_the_help() -> None:
    assert_refused(anomed("train"), r"No such command 'train'.* See anomed --help")
    assert_refused(anomed("fit"), r"Missing argument 'NORMALS'\. See anomed fit --help")
    assert_refused(anomed("fit", "normals"), r"Missing option '-o'.*See anomed fit --help")
    assert_refused(anomed("score", "model", "images", "-o", "out", "--maps", "gif"), r"'gif' is not one of .*npy")


@pytest.mark.parametrize("place", [0, 1, 2])
def test_debug_shows_the_traceback_wherever_it_stands_and_keeps_line_and_exit_code(tmp_path: Path, place: int) -> None:
    arguments: list[object] = ["info", tmp_path / "nowhere"]
    arguments.insert(place, "--debug")
    outcome = anomed(*arguments)
    assert outcome.code == 2
    assert "Traceback (most recent call last)" in outcome.err
    assert "ModelError" in outcome.err
    assert outcome.err.splitlines()[-1].startswith(f"anomed: {tmp_path / 'nowhere'}: no such folder")


def test_a_name_with_a_line_feed_still_makes_one_line(tmp_path: Path) -> None:
    assert_refused(anomed("info", tmp_path / "no\nwhere"), "no where: no such folder")


def test_a_stage_that_comes_again_is_timed_anew(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    with pytest.MonkeyPatch.context() as patch, ProgressDisplay() as progress:
        patch.setattr(time, "monotonic", lambda: now)
        for _ in range(2):
            for done in (1, 2, 3):
                progress("reading", done, 3)
                now += 1
            now += 100
    assert capsys.readouterr().err.count("reading: 3 / 3, 1.5/s, 2.0 s") == 2
