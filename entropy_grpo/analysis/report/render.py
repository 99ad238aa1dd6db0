"""Rendering of a report's sections as Markdown and as one self-contained HTML page.

Tokens and names are untrusted text. The template escapes HTML and the page runs no script. In Markdown every special
character is escaped.
"""

import base64
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
class Section:
    """Section of a view. `pictures` are (path, caption), `links` are names of files in the report's folder."""

    title: str
    text: str = ""
    pictures: Sequence[tuple[Path, str]] = field(default_factory=list)
    tables: Sequence[Table] = field(default_factory=list)
    links: Sequence[str] = field(default_factory=list)


def _data_url(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def markdown(title: str, sections: Sequence[Section]) -> str:
    """Render the report in Markdown, with its pictures in `figures/` beside it."""
    lines = [f"# {cell(title)}"]
    for section in sections:
        lines += ["", f"## {cell(section.title)}"]
        if section.text:
            lines += ["", cell(section.text)]
        for path, caption in section.pictures:
            lines += ["", f"![{cell(caption)}](figures/{path.name})"]
        for table in section.tables:
            lines += ["", _markdown_table(table)]
        lines += ["", *(f"- [{cell(link)}](<{link}>)" for link in section.links)] if section.links else []
    return "\n".join(lines) + "\n"


def _markdown_table(table: Table) -> str:
    shown = tables.table([table.header, *table.rows])
    return f"<details><summary>{cell(table.folded)}</summary>\n\n{shown}\n\n</details>" if table.folded else shown


def page(title: str, sections: Sequence[Section]) -> str:
    """Render the report in HTML, with embedded pictures."""
    return pages.render("report.html", title=title, sections=sections, data_url=_data_url)
