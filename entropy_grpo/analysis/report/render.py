"""A report's sections as Markdown and as one HTML page that needs nothing but itself.

Tokens and names are text of anybody's making: HTML is escaped by the template and no script may run in it; in Markdown
every sign that could mean something is escaped.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .. import pages

# What Markdown, and GitHub's in particular, reads as more than text within a line.
_MARKUP = {"&": "&amp;", "<": "&lt;", ">": "&gt;"} | {c: f"\\{c}" for c in "\\`*_{}[]|#~$@!:"}


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


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it is, in a table, too."""
    text = " ".join(text.split("\n"))
    return "".join(_MARKUP.get(c, c) for c in text)


def _data_url(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def markdown(title: str, sections: Sequence[Section]) -> str:
    """The report in Markdown, its pictures beside it in `figures/`."""
    lines = [f"# {markdown_text(title)}"]
    for section in sections:
        lines += ["", f"## {markdown_text(section.title)}"]
        if section.text:
            lines += ["", markdown_text(section.text)]
        for path, caption in section.pictures:
            lines += ["", f"![{markdown_text(caption)}](figures/{path.name})"]
        for table in section.tables:
            lines += ["", *_markdown_table(table)]
        lines += ["", *(f"- [{markdown_text(link)}](<{link}>)" for link in section.links)] if section.links else []
    return "\n".join(lines) + "\n"


def _markdown_table(table: Table) -> list[str]:
    lines = [f"<details><summary>{markdown_text(table.folded)}</summary>", ""] if table.folded else []
    for i, row in enumerate([table.header, *table.rows]):
        lines.append(f"| {' | '.join(map(markdown_text, row))} |")
        if i == 0:
            lines.append("|---" * len(row) + "|")
    return [*lines, "", "</details>"] if table.folded else lines


def page(title: str, sections: Sequence[Section]) -> str:
    """The report in HTML, with its pictures inside."""
    return pages.render("report.html", title=title, sections=sections, data_url=_data_url)
