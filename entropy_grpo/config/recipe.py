"""Recipes: YAML with one parent (`base:`), strict keys, and numbers that are numbers.

A recipe file is YAML and Python at once, because `accelerate launch FILE` can only run Python:

    recipe: r\"\"\"
    ... ordinary YAML ...
    # \"\"\"; from entropy_grpo.launch import main; __name__ == "__main__" and main(__file__)

To YAML the first line is one more key and the last a comment; to Python what lies between is a string. Plain YAML
without the two lines is a recipe too, for `accelerate launch -m entropy_grpo.launch FILE`.

A value is checked against the type of the dataclass field that it sets, before any data or model is loaded. What is
wrong is said in one sentence: file, key, value, and the nearest valid key or the expected type.
"""

import dataclasses
import difflib
import re
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic
import yaml

FIRST_LINE = 'recipe: r"""'
LAST_LINE = '# """; from entropy_grpo.launch import main; __name__ == "__main__" and main(__file__)'
PARENT_KEY = "base"
COMMAND_LINE = "command line"


class RecipeError(ValueError):
    """A recipe that cannot be run, in one sentence for its author."""


class _Loader(yaml.SafeLoader):
    """PyYAML's YAML 1.1, but as in YAML 1.2 `1e-6` is a number and `no` is text; a repeated key is an error."""

    yaml_implicit_resolvers: typing.ClassVar[dict] = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


@dataclass(frozen=True)
class Setting:
    """A value, the file (or command line) that it comes from, and the folder of that file."""

    value: Any
    source: str
    folder: Path = Path()


Settings = dict[str, Setting]


def load(path: Path) -> Settings:
    """The settings of a recipe and its parents; a child's value replaces its parent's."""
    return _load(Path(path), ())


def _load(path: Path, children: tuple[Path, ...]) -> Settings:
    path = path.resolve() if children else path
    if not path.is_file():
        named = f" ({PARENT_KEY} of {_shown(children[-1])})" if children else ""
        raise RecipeError(f"{_shown(path)}{named}: there is no such recipe file.")
    if path.resolve() in [child.resolve() for child in children]:
        chain = " -> ".join(_shown(p) for p in (*children, path))
        raise RecipeError(f"{_shown(path)}: {PARENT_KEY} leads back to itself ({chain}): remove one of them.")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{_shown(path)}: this is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{_shown(path)}: a recipe is a mapping of keys to values, this is {_kind(values)}.")
    values.pop("recipe", None)
    parent = values.pop(PARENT_KEY, None)
    if parent is not None and not isinstance(parent, str):
        raise RecipeError(f"{_shown(path)}: {PARENT_KEY} is {parent!r}: name one recipe file.")
    inherited = _load(path.parent / parent, (*children, path)) if parent is not None else {}
    own = {key: Setting(value, _shown(path), path.resolve().parent) for key, value in values.items()}
    return inherited | own


def overrides(arguments: Sequence[str]) -> Settings:
    """Settings from `--key value`, `--key=value`, `--key a b c` (a list) and `--flag` (true); values are YAML."""
    settings: dict[str, list[str]] = {}
    key = None
    for argument in arguments:
        if argument.startswith("--") and len(argument) > 2:
            key, _, value = argument[2:].partition("=")
            key = key.replace("-", "_")
            if key in settings:
                raise RecipeError(f"{COMMAND_LINE}: --{key} is given twice.")
            settings[key] = [value] if "=" in argument else []
        elif key is None:
            raise RecipeError(f"{COMMAND_LINE}: {argument!r} follows no --key.")
        else:
            settings[key].append(argument)
    return {key: Setting(_from_words(words), COMMAND_LINE) for key, words in settings.items()}


def _from_words(words: list[str]) -> Any:
    if not words:
        return True
    try:
        values = [yaml.load(word, Loader=_Loader) for word in words]
    except yaml.YAMLError:
        values = words
    return values[0] if len(values) == 1 else values


def checked(settings: Settings, classes: Iterable[type]) -> Settings:
    """The settings with each value as the field that it sets wants it; every key must be a field of some class."""
    hints = {}
    for cls in classes:
        types = typing.get_type_hints(cls)
        hints |= {field.name: types[field.name] for field in dataclasses.fields(cls) if field.init}
    for key, setting in settings.items():
        if key not in hints:
            close = difflib.get_close_matches(key, hints, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise RecipeError(f"{setting.source}: there is no setting {key} (value {setting.value!r}).{hint}")
    return {
        key: dataclasses.replace(setting, value=_checked(key, setting, hints[key]))
        for key, setting in settings.items()
    }


def build(settings: Settings, classes: Iterable[type]) -> list[Any]:
    """One instance of each dataclass from the settings, checked, that are its fields."""
    classes = list(classes)
    settings = checked(settings, classes)
    instances = []
    for cls in classes:
        names = {field.name for field in dataclasses.fields(cls) if field.init}
        try:
            instances.append(cls(**{key: setting.value for key, setting in settings.items() if key in names}))
        except (ValueError, TypeError) as error:
            named = [setting.source for key, setting in settings.items() if re.search(rf"\b{key}\b", str(error))]
            raise RecipeError(f"{', '.join(dict.fromkeys(named)) or cls.__name__}: {error}") from error
    return instances


def _checked(key: str, setting: Setting, hint: Any) -> Any:
    adapter = pydantic.TypeAdapter(hint, config=pydantic.ConfigDict(strict=True, arbitrary_types_allowed=True))
    try:
        return adapter.validate_python(setting.value)
    except pydantic.ValidationError as error:
        value = setting.value
        if setting.source == COMMAND_LINE and not isinstance(value, (list, dict)):
            # A word such as `7` may have been meant as text, and a single word as a list of one.
            for meant in ("none" if value is None else str(value), [value]):
                try:
                    return adapter.validate_python(meant)
                except pydantic.ValidationError:
                    continue
        wanted = getattr(hint, "__name__", None) if isinstance(hint, type) else str(hint).replace("typing.", "")
        advice = ""
        if isinstance(value, str) and isinstance(yaml.load(value, Loader=_Loader), (int, float)):
            advice = f": write {value} without quotes"
        raise RecipeError(
            f"{setting.source}: {key} is {value!r}, {_kind(value)}, where {wanted} belongs{advice}."
        ) from error


def dump(settings: Settings) -> str:
    """The text of a recipe without a parent, runnable as YAML and as Python."""
    values = {key: setting.value for key, setting in sorted(settings.items())}
    body = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)
    if '"""' in body or any(line.startswith("---") for line in body.splitlines()):
        raise RecipeError('a value contains """ or a line that starts with ---, which a recipe file cannot hold.')
    return (
        f"{FIRST_LINE}\n# Every setting of this run; launch it again with: accelerate launch FILE\n{body}{LAST_LINE}\n"
    )


def _kind(value: Any) -> str:
    names = {
        str: "a string",
        int: "an integer",
        float: "a number",
        bool: "a boolean",
        list: "a list",
        dict: "a mapping",
    }
    return "empty" if value is None else names.get(type(value), type(value).__name__)


def _shown(path: Path) -> str:
    path = Path(path)
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


# Where the `run_name` comes from that a recipe does not give.
FILE_NAME = "file name"
