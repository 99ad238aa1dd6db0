"""Recipes that travel with the package: a list of them, and copies for users who change them."""

import itertools
import re
from pathlib import Path

from ..runs import yaml12
from . import recipe
from .recipe import RecipeError
from .shipped import RECIPES, recipe_names


def catalogue() -> list[tuple[str, str]]:
    """Return name and description of every shipped recipe that can be launched, which names a model."""
    named = {name: RECIPES / f"{name}.yaml" for name in recipe_names()}
    return [(name, _sentence(path)) for name, path in named.items() if "model_name_or_path" in recipe.load(path)]


def _sentence(path: Path) -> str:
    text = " ".join(line.lstrip("# ") for line in first_comment(path))
    return re.split(r"(?<=\.)\s+(?=[A-Z`])", text)[0]


def first_comment(path: Path) -> list[str]:
    """Return the lines of the first comment of a recipe file, which describes the recipe."""
    lines = path.read_text(encoding="utf-8").splitlines()
    own = [line for line in lines if line not in (recipe.FIRST_LINE, recipe.LAST_LINE)]
    return list(itertools.takewhile(lambda line: line.startswith("#"), own))


def flat(path: Path) -> str:
    """Return a recipe without a parent: the settings of every file of its chain, the parent of all first."""
    layers: dict[int, recipe.Settings] = {}
    for key, setting in recipe.without_unread(recipe.load(path)).items():
        layers.setdefault(setting.layer, {})[key] = setting
    body = "".join(f"{line}\n" for line in first_comment(path))
    for _, layer in sorted(layers.items()):
        file = Path(next(iter(layer.values())).source.rpartition(":")[0])
        body += f"\n# Settings of {file.name}\n" + yaml12.dump({key: setting.value for key, setting in layer.items()})
    return recipe.two_readings(body)


def copy(name: str, folder: Path) -> Path:
    """Write a shipped recipe into a folder (see `flat`), and return the file.

    Raises:
        RecipeError: there is no recipe of this name, or the file exists.
    """
    source = recipe.find(name)
    target = folder / source.name
    if target.exists():
        raise RecipeError(f"{folder / source.name} exists: remove it, or name another folder.")
    text = flat(source)
    folder.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    return target
