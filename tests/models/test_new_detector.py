"""A new detector is one file and one card: shown in a copy of the package that is given both."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.made_up_files import write_pictures

ROOT = Path(__file__).parents[2]
CARD = "# pixel_statistics\n\n" + "How far each pixel lies from the mean normal image, in standard deviations.\n" * 10
LEFT_OUT = shutil.ignore_patterns("__pycache__", ".git", ".venv", "*.pyc", "golden")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the detector of the examples and its card."""
    copy = tmp_path_factory.mktemp("checkout")
    for folder in ("anomalib_med", "models", "tests"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=LEFT_OUT)
    shutil.copy(ROOT / "pyproject.toml", copy)
    shutil.copy(ROOT / "examples" / "own_detector.py", copy / "anomalib_med" / "models" / "reconstruction")
    (copy / "models" / "pixel_statistics").mkdir()
    (copy / "models" / "pixel_statistics" / "README.md").write_text(CARD)
    return copy


def run(checkout: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(checkout), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-W", "ignore", *arguments]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


IN_USE = """
import sys
import anomalib_med
assert "PixelStatistics" in anomalib_med.__all__ and "torch" not in sys.modules
from anomalib_med import PixelStatistics, load
from anomalib_med.cli.main import main
assert main(["models"]) == main(["models", "pixel_statistics"]) == 0
sys.path.append("models")
import write_recipes
write_recipes.main()
normals, model = sys.argv[1:]
recipe = "models/pixel_statistics/recipe.toml"
assert main(["fit", normals, "-o", model, "-m", "pixel_statistics", "--recipe", recipe, "--device", "cpu"]) == 0
assert isinstance(load(model, device="cpu").detector, PixelStatistics)
"""


def test_it_is_listed_public_and_fitted_from_its_recipe(checkout: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "normals", 6)
    said = run(checkout, "-c", IN_USE, str(tmp_path / "normals"), str(tmp_path / "model"))
    assert "pixel_statistics  Difference to the mean image" in said
    assert "  side = 64  (whole number, at least 8)\n      Side of the square that images are stretched to" in said
    assert CARD in said
    recipe = (checkout / "models" / "pixel_statistics" / "recipe.toml").read_text()
    assert "# Side of the square that images are stretched to, in pixels.\nside = 64\n" in recipe


def test_its_contract_is_tested(checkout: Path) -> None:
    said = run(checkout, "-m", "pytest", "-q", "tests/models/test_contract.py", "-k", "pixel_statistics")
    passed = re.search(r"(\d+) passed", said)
    assert passed and int(passed[1]) >= 9, said
