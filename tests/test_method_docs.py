"""The page of methods: its table is the registry's, and every method has a paragraph with its paper."""

import re

from entropy_grpo.objective.methods.registry import REGISTERED

from .conftest import REPOSITORY

PAGE = (REPOSITORY / "docs" / "methods.md").read_text()
BEGIN, END = "<!-- methods: tests/test_method_docs.py -->\n", "<!-- end of methods -->"


def row(method):
    parameters = method.parameters.values()
    shown = [p.name if p.default is p.empty else f"{p.name}: {p.default}" for p in parameters]
    divided = method.denominator if method.kind == "weight" else ""
    cells = method.stage, ", ".join(sorted(method.needs)), divided, "yes" * method.revives, ", ".join(shown)
    return f"| `{method.name}` | {method.kind} | {' | '.join(cells)} |"


def table():
    head = "| name | kind | stage | reads | divided by | trains A = 0 | parameters |\n|---|---|---|---|---|---|---|\n"
    methods = sorted(REGISTERED.values(), key=lambda method: (method.kind, method.name))
    return f"\n{head}" + "".join(f"{row(method)}\n" for method in methods) + "\n"


def test_the_table_is_the_registrys():
    shown = PAGE.partition(BEGIN)[2].partition(END)[0]
    assert shown == table(), f"put this between the marks:\n{table()}"


def test_every_method_has_a_paragraph_with_its_paper():
    text = PAGE.partition(END)[2]
    paragraphs = re.split(r"\n\n", text)
    for method in REGISTERED.values():
        mine = [p for p in paragraphs if f"**{method.name}**" in p or f"`{method.name}`" in p]
        assert mine, f"docs/methods.md has no paragraph on {method.name}"
        if method.paper and f"**{method.name}**" in text:
            assert method.paper in " ".join(mine) or "same paper" in mine[0], method.name
