"""Rendering of a report's sections as Markdown and as one self-contained HTML page.

Tokens and names are untrusted text. The template escapes HTML and the page runs no script. In Markdown every special
character is escaped.
"""

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...metrics import tables
from ...metrics.tables import cell
from .. import pages


@dataclass(frozen=True)
class Table:
    """Table of text cells. A table with a `folded` caption opens on a click."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: str = ""


@dataclass(frozen=True)
class Coloured:
    """Response whose tokens are coloured by entropy.

    Attributes:
        title, prompt: texts without invisible characters.
        tokens: (text, shade from 0 to 15, whether the token was trained on, hint of a pointer) of each token.
        more: sentence on tokens that are left out, or empty.
    """

    title: str
    prompt: str
    tokens: Sequence[tuple[str, int, bool, str]]
    more: str = ""


@dataclass(frozen=True)
class Section:
    """Section of a page.

    `pictures` are (path, caption), and `links` are names of files in the folder of the page. Only HTML shows coloured
    responses.
    """

    title: str
    text: str = ""
    pictures: Sequence[tuple[Path, str]] = field(default_factory=list)
    tables: Sequence[Table] = field(default_factory=list)
    links: Sequence[str] = field(default_factory=list)
    responses: Sequence[Coloured] = field(default_factory=list)


def _data_url(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def markdown(title: str, sections: Sequence[Section], folder: Path) -> str:
    """Render the report in Markdown for a folder, with links to its pictures."""
    lines = [f"# {cell(title)}"]
    for section in sections:
        lines += ["", f"## {cell(section.title)}"]
        if section.text:
            lines += ["", cell(section.text)]
        for path, caption in section.pictures:
            lines += ["", f"![{cell(caption)}]({Path(os.path.relpath(path, folder)).as_posix()})"]
        for table in section.tables:
            lines += ["", _markdown_table(table)]
        lines += ["", *(f"- [{cell(link)}](<{link}>)" for link in section.links)] if section.links else []
    return "\n".join(lines) + "\n"


def _markdown_table(table: Table) -> str:
    shown = tables.table([table.header, *table.rows])
    return f"<details><summary>{cell(table.folded)}</summary>\n\n{shown}\n\n</details>" if table.folded else shown


def page(title: str, sections: Sequence[Section]) -> str:
    """Render the report in HTML, with embedded pictures."""
    shades = pages.source("shades.css")
    return pages.render("report.html", title=title, sections=sections, data_url=_data_url, shades=shades)
