"""Recipes: YAML with one parent (`base:`), strict keys and strict types.

A recipe file is valid YAML and valid Python, because `accelerate launch FILE` can only run Python:

    recipe: r\"\"\"
    ... ordinary YAML ...
    # \"\"\"; from entropy_grpo.launch import main; __name__ == "__main__" and main(__file__)

YAML reads the first line as one more key and the last line as a comment. Python reads the text between as a string.
Plain YAML without the two lines is also a recipe, for `accelerate launch -m entropy_grpo.launch FILE`.

Every value is checked against the type of its dataclass field before data or a model is loaded. An error message is
one sentence with file and line, key, value, and the nearest valid key or the expected type.
"""

import copy
import dataclasses
import re
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic

from ..registry import nearest
from ..runs import yaml12
from . import shipped
from .bounds import has_nan
from .unread import RULES

FIRST_LINE = 'recipe: r"""'
LAST_LINE = '# """; from entropy_grpo.launch import main; __name__ == "__main__" and main(__file__)'
PARENT_KEY = "base"
COMMAND_LINE = "command line"
LAST_LAYER = 2**31


class RecipeError(ValueError):
    """Error in a recipe, in one sentence for its author."""


@dataclass(frozen=True)
class Setting:
    """Value of a setting and where it comes from.

    Attributes:
        source: `FILE:LINE`, or the command line.
        folder: folder of the file.
        word: the value's text on the command line, if it was one word.
        layer: number of the file among a recipe and its parents, 0 for the parent of all; the command line is last.
    """

    value: Any
    source: str
    folder: Path = Path()
    word: str | None = None
    layer: int = 0


Settings = dict[str, Setting]


def load(recipe: str | Path) -> Settings:
    """Load the settings of a recipe and its parents; a child's value replaces its parent's.

    Args:
        recipe: file, or name of a recipe that travels with the package.
    """
    return _load(find(recipe), ())


def find(recipe: str | Path, children: tuple[Path, ...] = ()) -> Path:
    """Return the file of a recipe.

    Args:
        recipe: file, relative to the recipe that names it, or name of a recipe that travels with the package.
        children: recipe that names it as its parent, last, and the children of that recipe.

    Raises:
        RecipeError: there is no such recipe.
    """
    path = shipped.find_recipe(recipe, children[-1].parent if children else Path())
    if path is None:
        child = f" ({PARENT_KEY} of {_shown(children[-1])})" if children else ""
        raise RecipeError(
            f"{_shown(children[-1].parent / recipe) if children else recipe}{child}: there is no such recipe file."
            f"{nearest(Path(recipe).stem, shipped.recipe_names())} entropy-grpo recipes lists the recipes that are "
            "known by name."
        )
    return path


def _load(path: Path, children: tuple[Path, ...]) -> Settings:
    path = path.resolve() if children else path
    if path.resolve() in [child.resolve() for child in children]:
        chain = " -> ".join(_shown(p) for p in (*children, path))
        raise RecipeError(f"{_shown(path)}: the recipe is its own {PARENT_KEY} ({chain}): remove one {PARENT_KEY}.")
    values, lines = _read(path)
    if not isinstance(values, dict):
        raise RecipeError(
            f"{_shown(path)}: a recipe is a mapping of keys to values, but this file is {_kind(values)}."
        )
    values.pop("recipe", None)
    parent = values.pop(PARENT_KEY, None)
    if parent is not None and not isinstance(parent, str):
        raise RecipeError(f"{_shown(path)}: {PARENT_KEY} is {parent!r}: set it to the path of one recipe file.")
    inherited = _load(find(parent, (*children, path)), (*children, path)) if parent is not None else {}
    folder = path.resolve().parent
    layer = max((setting.layer for setting in inherited.values()), default=-1) + 1
    own = {
        str(k): Setting(v, f"{_shown(path)}:{lines.get(str(k), 1)}", folder, layer=layer) for k, v in values.items()
    }
    return inherited | own


def _read(path: Path) -> tuple[Any, dict[str, int]]:
    """Return the parsed value of a recipe file, and the line of each key."""
    try:
        text = path.read_text(encoding="utf-8")
        return yaml12.parse(text), yaml12.key_lines(text)
    except yaml12.RepeatedKey as error:
        raise RecipeError(f"{_shown(path)}:{error.line}: {error}: remove one of the two.") from error
    except (yaml12.NotYAML, UnicodeDecodeError) as error:
        line = getattr(error, "line", None)
        where = _shown(path) if line is None else f"{_shown(path)}:{line}"
        raise RecipeError(f"{where}: the file is not YAML: {error}.") from error


def launch_words(path: str | Path) -> list[str]:
    """Return the arguments of `accelerate launch` before a recipe's name.

    Plain YAML is not Python, so a recipe without the two lines needs `-m entropy_grpo.launch`.
    """
    lines = Path(path).read_text(encoding="utf-8", errors="replace").split("\n") if Path(path).is_file() else []
    return [] if lines[:1] == [FIRST_LINE] and LAST_LINE in lines[-2:] else ["-m", "entropy_grpo.launch"]


def is_cold_start(settings: Settings) -> bool:
    """Return whether a recipe imitates responses (`trainer: sft`) instead of reinforcing them."""
    return "trainer" in settings and settings["trainer"].value == "sft"


def overrides(arguments: Sequence[str]) -> Settings:
    """Parse `--key value`, `--key=value`, `--key a b c` (a list) and `--flag` (true). Values are YAML."""
    settings: dict[str, list[str]] = {}
    key = None
    for argument in arguments:
        if argument.startswith("--") and len(argument) > 2:
            key, _, value = argument[2:].partition("=")
            key = key.replace("-", "_")
            if key in settings:
                raise RecipeError(f"{COMMAND_LINE}: --{key} is given twice: remove one of the two.")
            settings[key] = [value] if "=" in argument else []
        elif key is None:
            raise RecipeError(f"{COMMAND_LINE}: {argument!r} is a value without a key: write --KEY before it.")
        else:
            settings[key].append(argument)
    for key, words in settings.items():
        if "" in words:  # of a shell's variable that is not set
            raise RecipeError(f"{COMMAND_LINE}: --{key} is empty: write a value, or null to unset it.")
    return {
        key: Setting(_from_words(words), COMMAND_LINE, word=words[0] if len(words) == 1 else None, layer=LAST_LAYER)
        for key, words in settings.items()
    }


def _from_words(words: list[str]) -> Any:
    if not words:
        return True
    try:
        values = [_from_word(word) for word in words]
    except yaml12.NotYAML:
        values = words
    if len(values) == 1:
        return values[0]
    return [word if isinstance(value, dict) else value for word, value in zip(words, values, strict=True)]


def _from_word(word: str) -> Any:
    """Return the value of a word. Text without quotes is the word itself, because it may be the name of a file.

    YAML would end `data #2.jsonl` at its comment, drop the space of ` data.jsonl` and the anchor of `&a data.jsonl`,
    and take a line break for a space.
    """
    value = word if re.search(r"(^|\s)#", word) else yaml12.parse(word)
    first = word.lstrip()[:1]
    as_written = (isinstance(value, str) and first not in ("'", '"')) or (isinstance(value, list) and first != "[")
    return word if as_written else value


def checked(settings: Settings, classes: Iterable[type]) -> Settings:
    """Return the settings with each value in the type of its field; every key must be a field of some class.

    Inherited settings that a later switch leaves without a reader are dropped, and an inherited commit of a model
    beside a later name. So are inherited short forms that a later entry sets.
    """
    hints: dict[str, Any] = {}
    for cls in classes:
        types = typing.get_type_hints(cls)
        hints |= {field.name: types[field.name] for field in dataclasses.fields(cls) if field.init}
    for key, setting in settings.items():
        if key not in hints:
            raise RecipeError(
                f"{setting.source}: there is no setting {key} (value {setting.value!r}).{nearest(key, hints)}"
            )
    values = {
        key: dataclasses.replace(setting, value=_checked(key, setting, hints[key]))
        for key, setting in settings.items()
    }
    return without_unread(_without_replaced(values))


def _without_replaced(settings: Settings) -> Settings:
    """Drop inherited settings that a later entry of `advantages` or `token_weights` sets: its short forms.

    A configuration cannot tell a default value from a setting that is left out.

    Raises:
        RecipeError: a short form is set in the entry's file, or later, with another value.
    """
    # Late, because it loads torch, which the help and the list of recipes do without.
    from .methods import SETTINGS, contradiction, short_values

    replaced = set()
    for name in SETTINGS.keys() & settings.keys():
        listed = settings[name]
        for given in listed.value:
            try:
                values = short_values(name, given)
            except ValueError as error:
                raise RecipeError(f"{listed.source}: {error}") from error
            for short, value in values.items():
                if short not in settings:
                    continue
                own = settings[short]
                if own.layer < listed.layer:
                    replaced.add(short)
                elif own.value != value:
                    said = contradiction(name, given, short, value, own.value)
                    raise RecipeError(f"{listed.source}, {own.source}: {said}")
    return {key: setting for key, setting in settings.items() if key not in replaced}


def without_unread(settings: Settings) -> Settings:
    """Drop settings that nothing reads because a child, or the command line, changed the setting that they need."""
    for rule in RULES:
        switch = settings.get(rule.switch)
        if switch is not None and not rule.reads(switch.value):
            settings = {
                key: setting
                for key, setting in settings.items()
                if not (rule.covers(key) and setting.layer < switch.layer)
            }
    named, pinned = settings.get("model_name_or_path"), settings.get("model_revision")
    if named is not None and pinned is not None and pinned.layer < named.layer:
        # A parent pins a commit of its own model.
        settings = {key: setting for key, setting in settings.items() if key != "model_revision"}
    return settings


def build(settings: Settings, classes: Iterable[type]) -> list[Any]:
    """Make one instance of each dataclass from the checked settings that are its fields."""
    classes = list(classes)
    settings = checked(settings, classes)
    instances = []
    for cls in classes:
        names = {field.name for field in dataclasses.fields(cls) if field.init}
        try:
            # transformers writes into the dictionaries that it is given.
            values = {key: copy.deepcopy(setting.value) for key, setting in settings.items() if key in names}
            instances.append(cls(**values))
        except (ValueError, TypeError) as error:
            named = sources(settings, error)
            meant = [] if named else [key for key in names & settings.keys() if _is_named(settings[key].value, error)]
            named += [f"{settings[key].source}: {key} is {settings[key].value!r}" for key in meant]
            raise RecipeError(f"{', '.join(dict.fromkeys(named)) or cls.__name__}: {error}") from error
    return instances


def sources(settings: Settings, error: Exception) -> list[str]:
    """Return the places of the settings that an error names."""
    return [setting.source for key, setting in settings.items() if re.search(rf"\b{key}\b", str(error))]


def _is_named(value: Any, error: Exception) -> bool:
    """Return whether an error begins with a value, as those of transformers' enumerations do, without the setting."""
    return isinstance(value, str) and re.match(rf"'?{re.escape(value)}'? is not a valid", str(error), re.I) is not None


def _checked(key: str, setting: Setting, hint: Any) -> Any:
    if has_nan(setting.value):
        raise RecipeError(f"{setting.source}: {key} is {setting.value!r}: it must be a number, which nan is not.")
    adapter = pydantic.TypeAdapter(hint, config=pydantic.ConfigDict(strict=True, arbitrary_types_allowed=True))
    try:
        return adapter.validate_python(setting.value)
    except pydantic.ValidationError as error:
        value = setting.value
        for meant in _also_meant(setting):
            try:
                return adapter.validate_python(meant)
            except pydantic.ValidationError:
                continue
        wanted = getattr(hint, "__name__", None) if isinstance(hint, type) else str(hint).replace("typing.", "")
        advice = ""
        if isinstance(value, str) and _is_number(value):
            advice = f": write {value} without quotes"
        raise RecipeError(
            f"{setting.source}: {key} is {value!r} ({_kind(value)}), but its type is {wanted}{advice}."
        ) from error


def _also_meant(setting: Setting) -> list[Any]:
    """Return other readings of a value of the wrong type: a list of one, and text on the command line (a name `7`)."""
    value, word = setting.value, setting.word
    if isinstance(value, (list, dict)):  # on the command line, perhaps a name with a colon or in brackets
        return [] if word is None else [word, [word]]
    if setting.source == COMMAND_LINE and (word is None or value is None):
        word = "none" if value is None else str(value)
    text = [] if word is None else [word]
    return text if value is None else [*text, [value]]


def _is_number(text: str) -> bool:
    try:
        return isinstance(yaml12.parse(text), (int, float))
    except yaml12.NotYAML:
        return False


def dump(settings: Settings, notes: Iterable[str] = ()) -> str:
    """Return the text of a recipe without a parent, which is valid YAML and valid Python; notes become comments."""
    values = {key: setting.value for key, setting in sorted(settings.items())}
    said = ["Every setting of this run; launch it again with: accelerate launch FILE", *notes]
    return two_readings("".join(f"# {note}\n" for note in said) + yaml12.dump(values))


def two_readings(body: str) -> str:
    """Return the text of a recipe file that is valid YAML and valid Python."""
    if '"""' in body or any(line.startswith("---") for line in body.splitlines()):
        raise RecipeError('a setting contains """ or a line that starts with ---, which a recipe file cannot hold.')
    return f"{FIRST_LINE}\n{body}{LAST_LINE}\n"


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


# Source of the `run_name` if the recipe does not set it.
FILE_NAME = "file name"
