"""The prose rules that a program can check: openings, length of sentences, elliptical phrases, names in refusals."""

import ast
import io
import re
import tokenize
from functools import cache
from pathlib import Path

import pytest

import entropy_grpo

PACKAGE = Path(entropy_grpo.__file__).parent
REPOSITORY = PACKAGE.parent
# A docstring opens with a noun or an imperative, never with one of these words.
OPENINGS = frozenset("what which how whether where of why when as whose who".split())
# The cache of trained cold starts is keyed by the text of these files, so they stay byte for byte.
KEYED = frozenset({"tasks/number_walk.py", "tasks/cold_start.py"})
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
# The rule is 25 words. The limit leaves five words for names and brackets.
LONGEST_SENTENCE = 30
SECTION = re.compile(r"(Args|Attributes|Parameters|Returns|Raises)\b.*:")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`(*\"])|;\s")
# Phrases that name nothing, or that a reader with English from books has to guess.
ELLIPTICAL = re.compile(
    r"\b(whatever|in any case|for want of|under way|any more|as it were|put down to|asked for"
    r"|goes? on|those that|what (is|was)|once more|the one that|the others)\b"
)


@cache
def sources():
    """Source text of every module whose prose may change, by its path in the package."""
    paths = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
    assert paths.keys() > KEYED
    return {name: path.read_text(encoding="utf-8") for name, path in paths.items() if name not in KEYED}


@cache
def documented_sources():
    """Source texts of the package and of the benchmarks."""
    paths = sorted((REPOSITORY / "benchmarks").rglob("*.py"))
    assert paths
    return sources() | {path.relative_to(REPOSITORY).as_posix(): path.read_text(encoding="utf-8") for path in paths}


@cache
def nodes(source):
    return list(ast.walk(ast.parse(source)))


def docstrings(source):
    """(line, text) of every docstring of a source text."""
    for node in nodes(source):
        if isinstance(node, DOCUMENTED) and (docstring := ast.get_docstring(node)):
            yield node.body[0].lineno, docstring


def paragraphs(docstring):
    """Paragraphs of a docstring: an entry of a section is one, lines with columns (listings, formulas) are none."""
    parts, depth, in_section = [[]], 0, False
    for line in docstring.splitlines():
        text, indent = line.strip(), len(line) - len(line.lstrip())
        heads_section = bool(SECTION.fullmatch(text))
        is_entry = in_section and indent == depth
        if not text or "  " in text or heads_section or is_entry or text.startswith("- "):
            parts.append([])
        if heads_section:
            in_section, depth = True, indent + 4
        elif text and "  " not in text:
            parts[-1].append(text)
    return [" ".join(part) for part in parts if part]


def sentences(docstring):
    return [sentence for part in paragraphs(docstring) for sentence in SENTENCE_END.split(part)]


def words(text):
    """Number of words, without formulas, signs and numbers."""
    return sum(bool(re.search(r"[A-Za-z]{2}|\b[aA]\b", word)) for word in text.split())


def message(node):
    """Text of a string or an f-string, with placeholders as they are written; None for any other expression."""
    if isinstance(node, ast.JoinedStr):
        parts = (
            part.value if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}" for part in node.values
        )
        return "".join(parts)
    if isinstance(node, ast.BinOp):
        return message(node.left)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def prose(name, source):
    """(line, text) of every docstring and comment, and of the package's messages of more than three words."""
    yield from docstrings(source)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in nodes(source) if name in sources() else ():
        text = message(node)
        if text is not None and words(text) > 3:
            yield node.lineno, text


def test_docstrings_open_with_a_noun_or_an_imperative():
    wrong = [
        f"{name}:{line}: {text.split()[0]}"
        for name, source in documented_sources().items()
        for line, text in docstrings(source)
        if text.split()[0].strip(",:;.`*\"'").lower() in OPENINGS
    ]
    assert not wrong, "\n".join(wrong)


def test_sentences_of_docstrings_are_short():
    wrong = [
        f"{name}:{line}: {words(sentence)} words: {sentence}"
        for name, source in documented_sources().items()
        for line, text in docstrings(source)
        for sentence in sentences(text)
        if words(sentence) > LONGEST_SENTENCE
    ]
    assert not wrong, "\n".join(wrong)


def test_sections_are_read_entry_by_entry():
    docstring = (
        "Do a.\n\nArgs:\n    x: one. Two of\n        them.\n    y: three.\n\nLast\nand long.\n\n    DIR/a   list"
    )
    assert sentences(docstring) == ["Do a.", "x: one.", "Two of them.", "y: three.", "Last and long."]


def test_texts_name_things_instead_of_pointing_at_them():
    wrong = [
        f"{name}:{line}: {found[0]}: {' '.join(text.split())[:100]}"
        for name, source in documented_sources().items()
        for line, text in prose(name, source)
        if (found := ELLIPTICAL.search(text))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("pattern", ["recipes/*.yaml", "accelerate_configs/*", "Makefile"])
def test_comments_of_settings_name_things(pattern):
    paths = sorted(REPOSITORY.glob(pattern))
    assert paths
    texts = {path: " ".join(path.read_text(encoding="utf-8").replace("\n#", "").split()) for path in paths}
    wrong = [f"{path.name}: {found[0]}" for path, text in texts.items() if (found := ELLIPTICAL.search(text))]
    assert not wrong, "\n".join(wrong)


# Refusals: a message names the setting, the option or the file that it is about.

# Modules whose errors concern no setting.
NO_SETTING = {
    "__init__.py": "a missing attribute",
    "analysis/text/tokens.py": "arguments of a function",
    "analysis/views/distribution.py": "an argument of a function",
    "config/recipe.py": "a recipe file or the command line, which the message names first",
    "data/benchmarks/amc23.py": "the form of a published row; `sources.read_rows` adds data set and row",
    "data/benchmarks/livecodebench.py": "the form of a published file",
    "data/rows.py": "the subject with setting and file precedes the fault",
    "data/sources.py": "the form of a published row; `read_rows` adds data set and row",
    "evaluation/callback.py": "the log names eval_benchmarks and the benchmark before the reason",
    "evaluation/contamination.py": "an argument of a function",
    "grading/code/inside.py": "a program under test",
    "grading/code/jail.py": "a step of the sandbox that the kernel refuses",
    "grading/code/sandbox.py": "the sandbox as a whole",
    "grading/expressions.py": "an answer that is not read, which counts as wrong",
    "grading/pool.py": "the workers as a whole",
    "metrics/answers.py": "arrays of a caller",
    "objective/methods/planning.py": "a file of phrases; the name of the method and its parameter precede the reason",
    "objective/window.py": "a fault of the selection itself",
    "runs/yaml12.py": "text that is not YAML; the reader adds file and line",
    "runs/launched.py": "a run that was stopped from outside",
    "training/stop.py": "a run that was stopped from outside",
}
OPTIONS = re.compile(r"(Options|Config|Settings|Sampling)$")
# Names of options that are also words of ordinary sentences. They count at the beginning of a message only.
COMMON = ("model", "run", "recipe", "variant", "response", "runs")
# A setting or a variable in snake case, an option of the command line, or a placeholder for one of them or for a file.
NAMED = re.compile(
    r"\b[A-Za-z0-9]+(_[A-Za-z0-9]+)+\b(?![^{]*\})|--[a-z{]"
    r"|^\{[^}]*\b(name|setting|subject|answer|strength|method|source|key|where|given|path|folder|checkpoint)\b"
    rf"|^({'|'.join(COMMON)}) "
)


@cache
def option_names():
    """Names of the settings and options that the package's dataclasses define."""
    names = set()
    for source in sources().values():
        for node in nodes(source):
            if isinstance(node, ast.ClassDef) and OPTIONS.search(node.name):
                fields = [part.target for part in node.body if isinstance(part, ast.AnnAssign)]
                names |= {field.id for field in fields if isinstance(field, ast.Name)}
    return re.compile(rf"\b({'|'.join(sorted(names - set(COMMON)))})\b(?![^{{]*\}})")


def refusals(source):
    """(line, message) of every error that a source text raises with a message of its own."""
    for node in nodes(source):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            text = message(node.exc.args[0])
            if text is not None:
                yield node.lineno, text


def test_refusals_name_the_setting():
    found = [
        (f"{name}:{line}", text)
        for name, source in sources().items()
        if name not in NO_SETTING
        for line, text in refusals(source)
    ]
    assert len(found) > 150
    wrong = [f"{place}: {text}" for place, text in found if not NAMED.search(text) and not option_names().search(text)]
    assert not wrong, "\n".join(wrong)


def test_modules_without_settings_still_raise():
    for name in NO_SETTING:
        assert list(refusals(sources()[name])), f"{name} raises no message: remove it from NO_SETTING"
