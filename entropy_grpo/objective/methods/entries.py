"""Entries of the settings `advantages` and `token_weights`: a method with its parameters and its schedule.

An entry is a name, or a mapping of `name` and parameters. `start`, `end` and `plateau_steps` limit any entry to some
optimiser steps (see `advantages.Schedule`).
"""

import contextlib
import hashlib
import inspect
import itertools
import sys
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pydantic

from ...registry import called, import_function, nearest
from ..advantages import Schedule
from .registry import REGISTERED, Method
from .view import FREE

# Setting of a recipe -> kind of its methods.
SETTINGS = {"advantages": "advantage", "token_weights": "weight"}
SCHEDULE = Schedule._fields
# Fields of the view that need the current policy, and fields that a pass over the rollout gives.
CURRENT = frozenset({"logps", "entropies", "residual_norms"})
OLD = frozenset({"old_logps", "old_entropies"})
# Type of a default -> type of a parameter without an annotation. A recipe writes other values in its own types.
OF_DEFAULT: dict[type, Any] = {bool: bool, int: int | float, float: float, str: str}
# Moments at which entries run, in order.
MOMENTS = ("rollout", "sequence", "step", "loss")


@dataclass(frozen=True)
class Entry:
    """A method of a run.

    Attributes:
        method: its declaration. The name of a user's own method is `module:function`.
        params: keyword arguments that the recipe gives.
        schedule: optimiser steps in which the entry is active.
        digest: SHA-256 of the file of a user's own function, empty for a method of this package.
    """

    method: Method
    params: dict[str, Any] = field(default_factory=dict)
    schedule: Schedule = field(default_factory=Schedule)
    digest: str = ""

    @property
    def name(self) -> str:
        return self.method.name

    @property
    def setting(self) -> str:
        """Setting of a recipe that names the entry."""
        return next(setting for setting, kind in SETTINGS.items() if kind == self.method.kind)

    @property
    def needs(self) -> frozenset[str]:
        return self.method.needs

    @property
    def current(self) -> frozenset[str]:
        """Fields of the current policy that the function reads."""
        return self.needs & CURRENT

    @property
    def old(self) -> frozenset[str]:
        """Fields of the policy that wrote the rollout that the function reads."""
        return self.needs & OLD

    @property
    def moment(self) -> str:
        """Moment of the run at which the function is called, of `MOMENTS`.

        A function of the stage `loss` that does not read the current policy is called before the step is planned, at
        the moment `sequence`. The selection of tokens then sees its advantages.
        """
        if self.method.stage != "loss":
            return self.method.stage
        return "loss" if self.current else "sequence"

    @property
    def values(self) -> dict[str, Any]:
        """Values of all parameters."""
        known = self.method.parameters.items()
        return {name: p.default for name, p in known if p.default is not p.empty} | self.params

    def record(self) -> dict[str, Any]:
        """Return the entry in JSON types, with the values of all parameters, for the files of the run."""
        schedule = {} if self.schedule == Schedule() else {"schedule": self.schedule._asdict()}
        return (
            {"name": self.name, "parameters": self.values, "stage": self.method.stage}
            | {"denominator": self.method.denominator, "paper": self.method.paper, "source_sha256": self.digest}
            | schedule
        )


def _adapter(method: Method, parameter: inspect.Parameter) -> pydantic.TypeAdapter:
    """Return the check of a parameter's type: that of its annotation, or else that of its default."""
    hints = [OF_DEFAULT.get(type(parameter.default), Any)]
    if parameter.annotation is not parameter.empty:
        function = inspect.unwrap(called(method.function))
        names = getattr(function, "__globals__", None) or vars(sys.modules[function.__module__])
        alone = SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
        # A user's annotation may be any expression, also with a name that is imported for type checkers alone.
        with contextlib.suppress(Exception):
            hints = [*typing.get_type_hints(alone, names, include_extras=True).values(), *hints]
    for hint in hints[:-1]:
        with contextlib.suppress(pydantic.PydanticUserError, NameError):  # a type of values that no recipe can write
            return pydantic.TypeAdapter(hint)
    return pydantic.TypeAdapter(hints[-1])


def _check_params(setting: str, method: Method, params: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters in the types of the function's signature.

    Raises:
        ValueError: a parameter is unknown, missing, or of another type.
    """
    known = method.parameters
    checked = {}
    for name, value in params.items():
        if not method.takes(name):
            choices = ", ".join([*known, *SCHEDULE])
            raise ValueError(
                f"{setting}: {method.name} has no parameter {name} (value {value!r}).{nearest(name, known)} Choose "
                f"among {choices}."
            )
        if name not in known:
            checked[name] = value
            continue
        try:
            checked[name] = _adapter(method, known[name]).validate_python(value, strict=True)
        except pydantic.ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Input ").removeprefix("Value error, ")
            raise ValueError(f"{setting}: {name} of {method.name} is {value!r}, which {reason}.") from error
    missing = [name for name, p in known.items() if p.default is p.empty and name not in params]
    if missing:
        raise ValueError(f"{setting}: {method.name} needs {', '.join(missing)}: add {missing[0]} to the entry.")
    return checked


def _own_method(setting: str, name: str) -> tuple[Method, str]:
    """Return a user's own function as a method, and the digest of its file."""
    function = import_function(setting, name)
    try:
        inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{setting} names {name!r}, whose signature cannot be read: write a function that calls it."
        ) from error
    inner = called(function)
    declared = getattr(inner, "method", None)
    if isinstance(declared, Method):
        method = replace(declared, name=name, function=function)
    else:
        method = Method(name, SETTINGS[setting], "step", frozenset(FREE), function)
    try:
        source = inspect.getsourcefile(inspect.unwrap(inner))
    except TypeError:
        source = None
    digest = hashlib.sha256(Path(source).read_bytes()).hexdigest() if source and Path(source).is_file() else ""
    return method, digest


def _method(setting: str, name: Any) -> tuple[Method, str]:
    """Return the method of a name, and the digest of its file if it is a user's own."""
    kind = SETTINGS[setting]
    if isinstance(name, str) and ":" in name:
        method, digest = _own_method(setting, name)
    elif name in REGISTERED:
        method, digest = REGISTERED[name], ""
    else:
        names = sorted(known for known, method in REGISTERED.items() if method.kind == kind)
        raise ValueError(
            f"{setting} names {name!r}, which does not exist.{nearest(str(name), names)} Choose among "
            f"{', '.join(names)}, or name a function of your own as module:function."
        )
    if method.kind != kind:
        other = next(key for key, value in SETTINGS.items() if value == method.kind)
        raise ValueError(f"{setting} names {name!r}, which is of the kind {method.kind}: name it in {other}.")
    return method, digest


def _schedule(setting: str, name: str, given: dict[str, Any]) -> Schedule:
    """Return the schedule of an entry, whose values are optimiser steps.

    Raises:
        ValueError: a value is invalid, or contradicts another.
    """
    for key, value in given.items():
        lowest = 1 if key == "plateau_steps" else 0
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < lowest):
            raise ValueError(f"{setting}: {key} of {name} is {value!r}: it must be {lowest} or more optimiser steps.")
    schedule = Schedule(**given)
    if schedule.plateau_steps is not None and len(given) > 1:
        raise ValueError(f"{setting}: plateau_steps of {name} replaces start and end: leave start and end out.")
    if schedule.end is not None and schedule.end <= schedule.start:
        raise ValueError(
            f"{setting}: start of {name} is {schedule.start} and end is {schedule.end}: set the end to a later step."
        )
    return schedule


def split(setting: str, given: Any) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return the name, the parameters and the schedule of an entry as the recipe gives them.

    Raises:
        ValueError: the entry is neither a name nor a mapping with a name.
    """
    values = {"name": given} if isinstance(given, str) else dict(given) if isinstance(given, Mapping) else {}
    name = values.pop("name", None)
    if not isinstance(name, str):
        raise ValueError(f"{setting} has the entry {given!r} without a name: write NAME, or {{name: NAME, ...}}.")
    schedule = {key: values.pop(key) for key in SCHEDULE if key in values}
    return name, values, schedule


def parse(setting: str, given: Sequence[Any]) -> tuple[Entry, ...]:
    """Return the entries of `advantages` or `token_weights`.

    Raises:
        ValueError: a name, a parameter or the order is invalid. The message names the setting and the entry.
    """
    entries = []
    for one in given:
        name, params, schedule = split(setting, one)
        method, digest = _method(setting, name)
        params = _check_params(setting, method, params)
        entries.append(Entry(method, params, _schedule(setting, name, schedule), digest))
    names = [entry.name for entry in entries]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{setting} names {name!r} twice: remove one of the two.")
    if setting == "advantages":
        for first, second in itertools.pairwise(entries):
            if MOMENTS.index(first.moment) > MOMENTS.index(second.moment):
                raise ValueError(
                    f"{setting}: {second.name} follows {first.name} but runs before it (stages {second.method.stage} "
                    f"and {first.method.stage}): name {second.name} first."
                )
    return tuple(entries)


def _short_entries(args: Any) -> dict[str, Entry]:
    """Return the entries of the short forms `ppl_shaping_*` and `position_shaping_*`, by name."""
    entries = {}
    if args.ppl_shaping_alpha is not None:
        entries["ppl"] = Entry(REGISTERED["ppl"], {"alpha": args.ppl_shaping_alpha}, args.ppl_schedule)
    if args.position_shaping_gamma is not None:
        params = {name: getattr(args, f"position_shaping_{name}") for name in ("gamma", *"dmn", "cap")}
        entries["position"] = Entry(REGISTERED["position"], params, args.position_schedule)
    return entries


def entries_of(args: Any) -> tuple[tuple[Entry, ...], tuple[Entry, ...]]:
    """Return the advantages and the token weights of a run's settings, in the order in which they run.

    The short forms run after the named advantages of their moment, unless the list has their names in another order.

    Raises:
        ValueError: an entry is invalid.
    """
    short = _short_entries(args)
    advantages = [short.pop(entry.name, entry) for entry in parse("advantages", args.advantages)]
    advantages += short.values()
    advantages.sort(key=lambda entry: MOMENTS.index(entry.moment))
    return tuple(advantages), parse("token_weights", args.token_weights)
