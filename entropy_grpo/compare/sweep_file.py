"""Sweep of several recipes with the same variants, described by a YAML file instead of a command line.

    recipes: [qwen3_14b, qwen3_32b]               # names, or files
    set: {top_entropy_quantile: [1.0, 0.2]}       # as --set
    variants: [{entropy_selection: bottom}]       # as --variant
    baseline: {top_entropy_quantile: 1.0}         # as --baseline; by default the first variant

Every recipe is a sweep of its own, with its own folder and comparison.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config.shipped import find_file
from ..runs import yaml12
from ..runs.folder import RUNS
from .options import SweepOptions

KEYS = {"recipes": list, "set": dict, "variants": list, "baseline": dict}


def _word(value: Any) -> str:
    """Return a value as a word of the command line, which is read as YAML."""
    return value if isinstance(value, str) else json.dumps(value)


def _pairs(settings: Mapping[str, Any]) -> list[str]:
    return [f"{key}={_word(value)}" for key, value in settings.items()]


def _product(path: Path, key: str, values: Any) -> str:
    if not isinstance(values, list) or any(isinstance(value, (list, dict)) for value in values):
        raise ValueError(f"{path}: set has {key}: {values!r}, but it must be a list of numbers or texts.")
    return f"{key}={','.join(map(_word, values))}"


def read(path: Path) -> dict[str, Any] | None:
    """Return the contents of a sweep file, or None if the file is a recipe or does not exist.

    Raises:
        ValueError: a key is unknown or has a value of another kind.
    """
    if not path.is_file():
        return None
    found = yaml12.parse(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict) or "recipes" not in found:
        return None
    for key, value in found.items():
        if key not in KEYS:
            raise ValueError(f"{path} has the key {key!r}: a sweep file has {', '.join(KEYS)}.")
        if not isinstance(value, KEYS[key]) or not value:
            raise ValueError(f"{path}: {key} is {value!r}, but it must be a {KEYS[key].__name__} with values.")
    return found


def sweeps(options: SweepOptions) -> list[SweepOptions]:
    """Return the sweeps that the options request: one for a recipe, and one per recipe for a sweep file.

    The file may travel with the package.

    Raises:
        ValueError: the file is no sweep file, or variants are also given on the command line.
    """
    found = read(find_file(options.recipe, [Path()]) or Path(options.recipe))
    if found is None:
        return [options]
    if options.products or options.others or options.baseline:
        raise ValueError(f"{options.recipe} is a sweep file, which names its variants: leave out --set and --variant.")
    products = [_product(Path(options.recipe), key, values) for key, values in found.get("set", {}).items()]
    others = [_pairs(variant) for variant in found.get("variants", [])]
    folder = options.output or RUNS / "sweeps"
    return [
        replace(
            options,
            recipe=recipe,
            products=products,
            others=others,
            baseline=_pairs(found.get("baseline", {})),
            output=folder / Path(recipe).stem,
        )
        for recipe in found["recipes"]
    ]
