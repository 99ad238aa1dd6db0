"""The prose rules that a program can check."""

import ast
from pathlib import Path

import entropy_grpo

PACKAGE = Path(entropy_grpo.__file__).parent
# A docstring opens with a noun or an imperative, never with one of these words.
OPENINGS = frozenset("what which how whether where of why when as whose who".split())
# The cache of trained cold starts is keyed by the text of these files, so they stay byte for byte.
KEYED = frozenset({"tasks/number_walk.py", "tasks/cold_start.py"})
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def openings(source):
    """(line, first word) of every docstring of a source text."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, DOCUMENTED) and (docstring := ast.get_docstring(node)):
            yield node.body[0].lineno, docstring.split()[0].strip(",:;.`*\"'")


def test_docstrings_open_with_a_noun_or_an_imperative():
    sources = {path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")}
    assert sources.keys() > KEYED
    wrong = [
        f"{name}:{line}: {word}"
        for name, path in sorted(sources.items())
        if name not in KEYED
        for line, word in openings(path.read_text(encoding="utf-8"))
        if word.lower() in OPENINGS
    ]
    assert not wrong, "\n".join(wrong)
