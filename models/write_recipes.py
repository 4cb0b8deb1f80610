"""Write the recipe of every detector of the package beside its card: `make recipes`."""

from pathlib import Path

from anomalib_med.models.recipes import recipe
from anomalib_med.models.registry import detectors


def main() -> None:
    for name, kind in detectors().items():
        folder = Path(__file__).parent / name
        if folder.is_dir():
            (folder / "recipe.toml").write_text(recipe(kind), encoding="utf-8")


if __name__ == "__main__":
    main()
