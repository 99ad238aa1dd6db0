"""Tables and intervals as text, in columns for a terminal, or in Markdown that escapes text from files."""

import html
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

# Emphasis, strikethrough, formulas, code, the second half of links and pictures, GitHub's references, mentions and
# emoji, and addresses; underscores inside words are none of these.
MARKUP = re.compile(
    r"[\\`*~$|]|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_])|(?<!\w)[#@]|:(?=//|[\w+-]+:)",
)


def interval_text(interval: dict[str, float], digits: int = 3, sign: str = "") -> str:
    """A value with its interval. `sign` is `+` for a difference."""
    form = f"{sign}.{digits}f"
    return f"{interval['value']:{form}} [{interval['low']:{form}}, {interval['high']:{form}}]"


def p_text(p: float) -> str:
    """A p-value with three digits, or `< 0.001`."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def aligned(rows: Sequence[Sequence[str]], right: Collection[int] = (), indent: str = "") -> str:
    """Rows of text as columns for a terminal.

    Args:
        right: columns that are aligned on the right.
        indent: text before every row.
    """
    columns = [
        [text.rjust(width) if i in right else text.ljust(width) for text in column]
        for i, column in enumerate(zip(*rows, strict=True))
        for width in [max(map(len, column))]
    ]
    return "\n".join(f"{indent}{'  '.join(row)}".rstrip() for row in zip(*columns, strict=True))


def cell(value: Any) -> str:
    """Escape a value as one line of Markdown, which cannot end a table's cell and contains no markup."""
    line = html.escape(" ".join(str(value).split()), quote=False)
    return MARKUP.sub(r"\\\g<0>", line)


def table(rows: Sequence[Sequence[Any]], as_text: Callable[[Any], str] = cell) -> str:
    """A table in Markdown. The first row is the header.

    Args:
        as_text: function that writes a value in Markdown. By default no value is read as markup.
    """
    lines = ["| " + " | ".join(map(as_text, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def size_text(parameters: float) -> str:
    """Return a number of parameters as a reader writes it: 0.69M, 8.19B."""
    unit, letter = (1e9, "B") if parameters >= 1e9 else (1e6, "M")
    return f"{parameters / unit:.3g}{letter}"
