"""Checks that all folders share: choices, functions of the user, settings that nothing reads, missing packages."""

import dataclasses
import difflib
import functools
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any


class FunctionError(RuntimeError):
    """A fault of a user's function, in one sentence for its author."""


def called(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function that a callable calls: that of a partial, or the `__call__` of an object's class."""
    while isinstance(function, functools.partial):
        function = function.func
    return function if inspect.isroutine(function) or isinstance(function, type) else type(function).__call__


def line_of(error: BaseException, function: Callable[..., Any]) -> str:
    """Return `file:line` at which a function raised an error: the last line in the function's own file, if any."""
    frames = traceback.extract_tb(error.__traceback__)
    code = getattr(inspect.unwrap(called(function)), "__code__", None)
    own = [frame for frame in frames if code is not None and frame.filename == code.co_filename]
    frame = (own or frames)[-1]
    return f"{frame.filename}:{frame.lineno}"


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise `ValueError` if a setting's value is not among the choices."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}: choose one of {', '.join(choices)}.")


def installed(package: str) -> bool:
    """Return whether a package is installed. A folder of its name on the path, as wandb makes one, is no package."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def nearest(name: str, names: Iterable[str]) -> str:
    """Question that offers the known name most similar to an unknown name, empty if no name is similar."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean {close[0]}?" if close else ""


def import_function(setting: str, name: str) -> Callable[..., Any]:
    """Import a function of the user, `module:function`. The module may lie in the working directory.

    Args:
        setting: setting that names the function.

    Raises:
        ValueError: the name cannot be imported, or is no function.
    """
    module, _, function = name.partition(":")
    if module.endswith(".py"):
        stem = os.path.basename(module).removesuffix(".py")
        raise ValueError(
            f"{setting} names {name!r}, a file: name its module, {stem}:{function}, and run from its folder, or add "
            "the folder to PYTHONPATH."
        )
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function)
    except (Exception, SystemExit) as error:  # the user's module may raise any error, and may exit
        said = "its module exits" if isinstance(error, SystemExit) else str(error).strip() or type(error).__name__
        reason = said.splitlines()[0].rstrip(".")
        raise ValueError(f"{setting} names {name!r}, which cannot be imported: {reason}.") from error
    if not callable(found):
        raise ValueError(f"{setting} names {name!r}, which is no function: name a function.")
    return found


@dataclass(frozen=True)
class ReadIf:
    """Settings that are read only if another setting has a certain value.

    Attributes:
        names: names of settings; a name that ends in `*` stands for all settings that begin so.
        switch: the other setting, of the same dataclass.
        reads: whether the settings are read with a value of the switch.
        advice: the end of a sentence that begins with "which nothing reads": what the switch is and what to set.
    """

    names: tuple[str, ...]
    switch: str
    reads: Callable[[Any], bool]
    advice: str

    def covers(self, name: str) -> bool:
        return name != self.switch and any(
            name == known or (known.endswith("*") and name.startswith(known[:-1])) for known in self.names
        )


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def unread(config: Any, rules: Iterable[ReadIf], beside: Any = None) -> Iterator[tuple[ReadIf, str, bool]]:
    """Yield (rule, name, whether it is set) for every setting that nothing reads with the values of a configuration.

    Args:
        config: a dataclass instance. A setting with its default value counts as not set.
        rules: rules whose switch the dataclass does not have are passed over.
        beside: another dataclass instance of the same run, whose fields are the switches in place of its own.
    """
    switches = config if beside is None else beside
    for rule in rules:
        if not hasattr(switches, rule.switch) or rule.reads(getattr(switches, rule.switch)):
            continue
        for field in dataclasses.fields(config):
            if rule.covers(field.name):
                yield rule, field.name, getattr(config, field.name) != _default(field)


def refuse_unread(config: Any, rules: Iterable[ReadIf], beside: Any = None) -> None:
    """Refuse settings that are set and that nothing reads (see `unread`).

    Raises:
        ValueError: the sentence names setting, value and switch.
    """
    for rule, name, is_set in unread(config, rules, beside):
        if is_set:
            raise ValueError(f"{name} is {getattr(config, name)!r}, which nothing reads {rule.advice}.")
