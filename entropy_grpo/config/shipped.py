"""Files that travel with the package (recipes, sweeps, accelerate configurations), and the search for a named file.

A wheel holds both folders inside of the package (see setup.py), a checkout beside it.
"""

from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def _home() -> Path:
    return PACKAGE if (PACKAGE / "recipes").is_dir() else PACKAGE.parent


HOME = _home()
RECIPES, CONFIGS = HOME / "recipes", HOME / "accelerate_configs"


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes, for `entropy-grpo launch NAME` and for `base: NAME`."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def find_recipe(name: str | Path, folder: Path) -> Path | None:
    """Return a recipe's file: a path, relative to a folder, or the name of a shipped recipe. None if there is none."""
    path = folder / name
    if path.is_file():
        return path
    bare = Path(name).name == str(name)
    shipped = RECIPES / f"{str(name).removesuffix('.yaml')}.yaml"
    return shipped if bare and shipped.is_file() else None


def find_file(name: str, folders: list[Path]) -> Path | None:
    """Return a configuration of accelerate or a sweep, in one of the folders or with the package; None without one."""
    return next((folder / name for folder in [*folders, HOME] if (folder / name).is_file()), None)
