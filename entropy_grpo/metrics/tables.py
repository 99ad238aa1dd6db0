"""Text from a run's files in Markdown: what a model or a stranger wrote stays text."""

import html
import re
from collections.abc import Sequence
from typing import Any

# Emphasis, strikethrough, formulas, the second half of links and pictures; underscores inside words are none of these.
MARKUP = re.compile(r"[\\*~$|]|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_])")


def cell(value: Any) -> str:
    """Any value as the text of a table's cell, on one line, that neither ends the cell nor is read as markup."""
    line = html.escape(" ".join(str(value).split()), quote=False).replace("`", "'")
    return MARKUP.sub(r"\\\g<0>", line)


def table(rows: Sequence[Sequence[Any]]) -> str:
    """A table of rows, the first being the header."""
    lines = ["| " + " | ".join(map(cell, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
