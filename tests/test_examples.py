"""What is written for a reader runs: the examples, the code of the README, the options and links it names."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import cv2
import pytest
import timm

from anomalib_med import PatchCore
from anomalib_med.cli.main import VERBS, cli, main
from anomalib_med.features.backbones import create
from tests.conftest import abnormal_picture, normal_picture

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted(ROOT.glob("models/*/README.md")),
    *sorted(ROOT.glob("datasets/*/README.md")),
    *sorted(ROOT.glob("docs/*.md")),
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")


def blocks(page: Path, language: str) -> list[str]:
    return [code for kind, code in FENCE.findall(page.read_text(encoding="utf-8")) if kind == language]


def options_of(command: click.Command) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


def verb(name: str) -> click.Command:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None, f"anomed has no verb {name}"
    return command


def commands(page: Path) -> list[list[str]]:
    """Every line of a page that starts with ``anomed``, and every ``anomed ...`` set as code, as words."""
    lines = [line for code in blocks(page, "bash") for line in code.splitlines() if line.startswith("anomed ")]
    lines += re.findall(r"`(anomed [^`]+)`", FENCE.sub("", page.read_text(encoding="utf-8")))
    return [shlex.split(line, comments=True)[1:] for line in lines]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ``normals/`` and ``new_images/``, where timm gives a network without asking the hub."""
    for folder in ("normals", "new_images"):
        (tmp_path / folder).mkdir()
    for i in range(10):
        cv2.imwrite(str(tmp_path / "normals" / f"{i}.png"), normal_picture(i))
    cv2.imwrite(str(tmp_path / "new_images" / "0.png"), normal_picture(50))
    cv2.imwrite(str(tmp_path / "new_images" / "1.png"), abnormal_picture(51)[0])
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **rest: create(name, pretrained=False, **rest))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_example(name: str, *arguments: str, at: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments],
        cwd=at,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_quickstart_runs_and_writes_what_it_says(tmp_path: Path) -> None:
    said = run_example("quickstart.py", "out", at=tmp_path)
    assert said.count("score") >= 13
    assert (tmp_path / "out" / "results" / "report.html").stat().st_size > 10_000
    assert len((tmp_path / "out" / "scores.csv").read_text().splitlines()) == 14


def test_dicom_folder_runs_on_files_of_its_own_and_shows_no_patient_id(tmp_path: Path) -> None:
    said = run_example("dicom_folder.py", "-o", "out", at=tmp_path)
    assert "fitted on 20 patients, calibrated on 20" in said
    assert said.count("2 images") == 8
    assert said.count("map (128, 128)") == 8
    table = (tmp_path / "out" / "results" / "scores.csv").read_text()
    assert "dicom-" in table
    assert "P41" not in said + table


def test_own_detector_runs_and_scores_alike_after_loading(tmp_path: Path) -> None:
    said = run_example("own_detector.py", "out", at=tmp_path)
    assert "equal after loading: True" in said
    assert said.count("score") == 8


def test_compare_methods_prints_its_table_and_goes_on_where_it_was(tmp_path: Path) -> None:
    small = ("out", "--train", "20", "--test", "6", "--size", "64")
    said = run_example("compare_methods.py", *small, at=tmp_path)
    assert said.count("detector  AUROC") == 2
    assert said.count("baseline  AUROC") == 5
    assert "auroc: patchcore minus spade" in said
    assert (tmp_path / "out" / "bench" / "bench.html").stat().st_size > 10_000
    assert run_example("compare_methods.py", *small, at=tmp_path).count("done before") == 2


def test_python_of_the_readme_runs_block_after_block(workplace: Path) -> None:
    names: dict[str, object] = {}
    code = blocks(ROOT / "README.md", "python")
    assert len(code) >= 3
    for block in code:
        exec(compile(block, "README.md", "exec"), names)
    assert (workplace / "report" / "report.html").is_file()
    assert len((workplace / "scores.csv").read_text().splitlines()) == 3
    assert len(list((workplace / "out" / "maps").glob("*.npy"))) == 2


def test_first_commands_of_the_readme_run(workplace: Path) -> None:
    section = README.partition("## Fit and score")[2]
    code = FENCE.search(section)
    assert code is not None
    lines = [shlex.split(line) for line in code[2].splitlines()]
    assert [line[:2] for line in lines] == [["anomed", "fit"], ["anomed", "score"], ["anomed", "info"]]
    for line in lines:
        assert main(line[1:]) == 0, line
    for name in ("scores.csv", "failures.csv", "maps", "overlays", "report.html", "run.json"):
        assert (workplace / "out" / name).exists()


def test_readme_lists_the_files_that_come_out(workplace: Path) -> None:
    assert main(["fit", "normals", "-o", "model", "--size", "64"]) == 0
    assert main(["score", "model", "new_images", "-o", "out", "--report"]) == 0
    listed = set(re.findall(r"^  +([\w.]+)/?  ", README.partition("## What comes out")[2], re.MULTILINE))
    written = {path.name for folder in ("out", "model") for path in (workplace / folder).iterdir()}
    assert listed == written
    header = (workplace / "out" / "scores.csv").read_text().partition("\n")[0]
    assert header.replace(",", ", ") in README


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_file_that_is_linked_exists(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if not link.startswith("http")]
    for link in links:
        target, _, heading = link.partition("#")
        assert not target or (page.parent / target).exists(), f"{page}: {link}"
        if not target:
            assert re.search(rf"^#+ {heading}$", page.read_text(encoding="utf-8"), re.MULTILINE | re.IGNORECASE), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_verbs_and_options_in_commands_exist(page: Path) -> None:
    for words in commands(page):
        if words[0].isupper() or words[0].startswith("-"):
            continue  # `anomed VERB --help`
        known = options_of(verb(words[0]))
        used = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert used <= known | {"--help"}, f"{page}: anomed {' '.join(words)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_options_named_in_text_exist(page: Path) -> None:
    text = "\n".join(
        line
        for line in page.read_text(encoding="utf-8").splitlines()
        if "mypy" not in line and ".py " not in line and not line.startswith("make ")
    )
    text = re.sub(r'ARGS="[^"]*"|torchrun [^`]* anomed', "", text)  # options of a script
    known = {"--help"} | options_of(cli).union(*(options_of(verb(name)) for name in VERBS))
    assert set(OPTION.findall(text)) <= known


def test_targets_of_make_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        named = re.findall(r"`make ([a-z-]+)", text)
        named += [line.split()[1] for code in blocks(page, "bash") for line in code.splitlines() if line[:5] == "make "]
        assert set(named) <= targets, page


def test_card_of_patchcore_states_every_default() -> None:
    card = (ROOT / "models" / "patchcore" / "README.md").read_text(encoding="utf-8")
    settings = card.partition("## Settings")[2].partition("## Results")[0]
    stated = dict(re.findall(r"^\| `(\w+)` \| `?([^|`]*?)`? \|", settings, re.MULTILINE))
    defaults = PatchCore().config.model_dump()
    assert set(stated) == set(defaults)
    assert stated.pop("layers") == "strides 8 and 16"
    assert create("radlite").strides == (8, 16)
    assert stated.pop("scales") == "1" and defaults["scales"] == (1,)
    for name, text in stated.items():
        assert text == str(defaults[name]) or float(text) == defaults[name], name


def test_recipe_runs_on_the_command_line(workplace: Path) -> None:
    recipe = str(ROOT / "models" / "patchcore" / "recipe.toml")
    assert main(["fit", "normals", "-o", "plain", "-m", "patchcore", "--size", "64"]) == 0
    assert main(["fit", "normals", "-o", "planned", "--recipe", recipe, "--size", "64"]) == 0
    assert (workplace / "plain/weights.safetensors").read_bytes() == (
        workplace / "planned/weights.safetensors"
    ).read_bytes()


def test_pictures_are_small() -> None:
    pictures = [path for path in (ROOT / "docs").iterdir() if path.suffix in (".png", ".jpg")]
    assert pictures
    for path in pictures:
        assert path.stat().st_size < 300_000
        assert any(path.name in page.read_text(encoding="utf-8") for page in PAGES), path
