"""A report's sections as Markdown and as one HTML page that needs nothing but itself.

Tokens and names are text of anybody's making: HTML is escaped by the template and no script may run in it; in Markdown
every sign that would mean something is escaped.
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
    """Text cells; a `folded` table opens on a click."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: str = ""


@dataclass(frozen=True)
class Section:
    """What a view shows: pictures are `(path, what it shows)`, links go to files beside the report."""

    title: str
    text: str = ""
    pictures: Sequence[tuple[Path, str]] = field(default_factory=list)
    tables: Sequence[Table] = field(default_factory=list)
    links: Sequence[str] = field(default_factory=list)


def _data_url(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def markdown(title: str, sections: Sequence[Section]) -> str:
    """The report in Markdown, its pictures beside it in `figures/`."""
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
    """The report in HTML, with its pictures inside."""
    return pages.render("report.html", title=title, sections=sections, data_url=_data_url)
