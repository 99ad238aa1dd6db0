"""Sections of the report on changed probabilities: by token and by response (arXiv 2508.02260, Fig. 2 to 4)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...monitoring.pieces import visible
from ...runs.plots import plain
from . import figures, update_figures
from .render import Section, Table

HEADER = ("", "tokens", "mean change", "mean size", "size below 0.06", "raised")


def _rows_of(name: str, one: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            f"{name}, {group} responses",
            f"{row['tokens']:,}",
            f"{row['change']:+.4f}",
            f"{row['size']:.4f}",
            f"{row['below_0.06']:.2%}",
            f"{row['raised']:.2%}",
        )
        for group, row in one["by_correctness"].items()
    ]


def _words(found: Mapping[str, Any]) -> list[Table]:
    """Make a table of the most raised and lowered tokens of each group of responses, and one of each category."""
    made = []
    for group, sides in found["words"].items():
        for side, rows in sides.items():
            cells = [(visible(r["text"]), str(r["token"]), f"{r['count']:,}", f"{r['change']:+.4f}") for r in rows]
            caption = f"{len(cells)} tokens whose probability was {side} most, {group} responses"
            made.append(Table(("token", "id", "seen", "mean change"), cells, caption))
    for kind, one in found["categories"].items():
        cells = [(visible(r["text"]), str(r["token"]), f"{r['seen']:,}", f"{r['count']:,}") for r in one["words"]]
        caption = f"most frequent tokens among the largest changes, {kind}"
        made.append(Table(("token", "id", "seen", "among the largest changes"), cells, caption))
    return made


def token_section(found: Mapping[str, Any], first: str, folder: Path) -> Section:
    """Make the section of Fig. 2 and 3. `found` is by the name of the later checkpoint."""
    last, own = list(found.items())[-1]
    drawn = figures.save(update_figures.changes(own, first, last), folder / "updates.png")
    kinds = figures.save(
        update_figures.shares(own["categories"], f"Categories of tokens, {plain(first)} to {plain(last)}"),
        folder / "update-categories.png",
    )
    table = Table(HEADER, [row for name, one in found.items() for row in _rows_of(name, one)])
    categories = [
        (kind, f"{one['tokens']:,}", f"{one['share']:.2%}", f"{one['top_share']:.2%}")
        for kind, one in own["categories"].items()
    ]
    header = ("category", "tokens", "share of all tokens", "share of the 20% with the largest changes")
    text = (
        f"Change of the written token's probability from {first} to a later checkpoint, for right and wrong responses "
        "(arXiv 2508.02260, Fig. 2 and 3). The gradient norm is that of the LM head, without the coefficient of "
        f"Eq. 4. Pictures and lists are those of {last}."
    )
    pictures = [(drawn, "changes of probability, and gradient norm by entropy"), (kinds, "categories of updates")]
    return Section("Updates of tokens", text, pictures, [table, Table(header, categories), *_words(own)])


def response_section(found: Mapping[str, Any], first: str, folder: Path) -> Section:
    """Make the section of Fig. 4's perplexities, for the last checkpoint."""
    last, own = list(found.items())[-1]
    rows = own["perplexity"]
    labels = {f"{i}: {row['from']:.3f} to {row['to']:.3f}": row for i, row in enumerate(rows, start=1)}
    title = f"Responses by perplexity under {plain(first)}"
    picture = figures.save(update_figures.shares(labels, title), folder / "update-perplexity.png")
    cells = [
        (
            label,
            str(row["responses"]),
            f"{row['tokens']:,}",
            f"{row['right']:.2%}",
            f"{row['share']:.2%}",
            f"{row['top_share']:.2%}",
            f"{row['top']:.2%}",
            f"{row['size']:.4f}",
        )
        for label, row in labels.items()
    ]
    header = (
        f"perplexity under {first}",
        "responses",
        "tokens",
        "right",
        "share of all tokens",
        "share of the 20% with the largest changes",
        "part of the group among them",
        "mean size of a change",
    )
    text = (
        f"Perplexity of the responses in which the largest changes from {first} to {last} lie (arXiv 2508.02260, "
        "Fig. 4). The groups have equal numbers of responses."
    )
    return Section("Updates by perplexity", text, [(picture, "updates by perplexity")], [Table(header, cells)])


def sections(found: Mapping[str, Any], first: str, folder: Path) -> list[Section]:
    """Make both sections."""
    return [token_section(found, first, folder), response_section(found, first, folder)]
