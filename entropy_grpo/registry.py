"""Check of settings that name one of several choices, shared by all folders."""

import difflib
from collections.abc import Iterable


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value that is not among the choices."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}: choose one of {', '.join(choices)}.")


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of a refusal: a question that offers the known name most like an unknown one, empty if none is near."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean {close[0]}?" if close else ""
