"""Hooks of the documentation's build: the reference pages come from the package's own docstrings and parsers.

Settings are read from the text of the configuration classes, so that no build imports torch. Formulas become MathML,
which browsers draw without a script.
"""

import ast
import contextlib
import functools
import html
import io
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

import jupytext
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from entropy_grpo import cli
from entropy_grpo.objective.share import RHO

CONSTANTS = {"RHO": RHO}  # names that modules have as defaults
KINDS = {"Steps": "int | str", "Share": "float | str"}  # names that modules have as types
PACKAGE = Path(cli.__file__).parent
# Title, module, classes: the settings of a recipe beside TRL's, in the order of the page.
SETTINGS = [
    ("The objective, rollouts and monitoring", "config/grpo.py", ("EntropyForkGRPOConfig",)),
    ("Advantage shaping", "config/shaping.py", ("ShapingConfig",)),
    ("Rewards, sharding, benchmarks", "config/run.py", ("RunConfig",)),
    ("Data", "data/config.py", ("SourceConfig", "DataConfig")),
    ("Grading", "grading/config.py", ("GradingConfig",)),
    ("The model", "models/config.py", ("CheckedModelConfig",)),
    ("Cold starts (`trainer: sft`)", "config/sft.py", ("SFTRunConfig", "TeacherSFTConfig")),
]
COMMANDS = (
    "train launch recipes+list recipes+copy plan eval card merge compare sweep analyze+collect "
    "analyze+divergence analyze+decoding analyze+irrelevant analyze+report analyze+text"
).split()
WIDTH = 76  # characters of a line of code on a page
PARAMETERS = re.compile(r"^Parameters\b.*:$")
ENTRY = re.compile(r"^    (\w+(?:, \w+)*): (.*)$")
FORMULA = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)


def parameters(docstring: str) -> dict[str, str]:
    """Return the text of every parameter of a class's docstring; parameters that share a text share it here."""
    lines = iter(docstring.splitlines())
    texts: dict[str, str] = {}
    names: list[str] = []
    for line in lines:
        if PARAMETERS.match(line):
            break
    for line in lines:
        if entry := ENTRY.match(line):
            names = entry[1].split(", ")
            texts |= dict.fromkeys(names, entry[2])
        elif line.startswith("        ") and names:
            texts |= {name: f"{texts[name]} {line.strip()}" for name in names}
        elif line.strip():
            break
    return texts


@dataclass(frozen=True)
class Field:
    """Field of a dataclass as its module spells it: type, default, and the help of its metadata, if it has one."""

    kind: str
    default: str
    help: str


def fields(node: ast.ClassDef) -> dict[str, Field]:
    """Return the fields of a dataclass that have a default."""
    found = {}
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and item.value is not None:
            value, text = item.value, ""
            if isinstance(value, ast.Call):  # field(default=..., default_factory=..., metadata={"help": ...})
                words = {word.arg: word.value for word in value.keywords}
                text = ast.literal_eval(words["metadata"])["help"] if "metadata" in words else ""
                value = words.get("default") or _made(words["default_factory"])
            kind = re.sub(r"\w+", lambda name: KINDS.get(name[0], name[0]), ast.unparse(item.annotation))
            found[item.target.id] = Field(kind, ast.unparse(value), text)
    return found


def _made(factory: ast.expr) -> ast.expr:
    """Return what a default factory makes: a lambda's body, an empty list or an empty dictionary."""
    if isinstance(factory, ast.Lambda):
        return factory.body
    return ast.List([]) if ast.unparse(factory) == "list" else ast.Dict([], [])


def settings() -> str:
    """Return a section per group of settings, as Markdown.

    Raises:
        ValueError: a setting has no text, or a text belongs to no setting.
    """
    parts = []
    for title, module, names in SETTINGS:
        rows, known = {}, {}  # of the group, in which a class may describe a setting of an earlier one again
        tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name in names:
                texts, own = parameters(ast.get_docstring(node) or ""), fields(node)
                texts = {name: field.help for name, field in own.items() if field.help} | texts
                # The documentation of TRL describes its own fields whose defaults a class changes.
                if not _extends_trl(node) and (bare := [name for name in own if name not in texts]):
                    raise ValueError(f"{module}: {node.name} says nothing of {', '.join(bare)}.")
                known |= own
                for name, text in texts.items():
                    code = (name, *((known[name].kind, known[name].default) if name in known else ("", "")))
                    cells = (*(_code(part) for part in code), text.replace("|", "&#124;"))
                    rows[name] = f"| {' | '.join(cells)} |"
        head = ["| setting | type | default | meaning |", "|---|---|---|---|"]
        parts.append(f"## {title}\n\n" + "\n".join([*head, *rows.values()]))
    return "\n\n".join(parts)


def _code(text: str) -> str:
    """Return text as code within a cell of a table, where a bar would end the cell."""
    text = str(CONSTANTS.get(text, text))
    return f"<code>{html.escape(text, quote=False).replace('|', '&#124;')}</code>" if text else ""


def _extends_trl(node: ast.ClassDef) -> bool:
    return any(ast.unparse(base) in ("GRPOConfig", "SFTConfig", "ModelConfig") for base in node.bases)


def commands() -> str:
    """Return the help of every command, as Markdown."""
    parts = []
    for command in COMMANDS:
        words = command.split("+")
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            cli.main([*words, "--help"])
        plain = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue()).rstrip()
        # The parser wraps the tables of options alone, which begin with a blank.
        text = "\n".join(line if line.startswith(" ") else textwrap.fill(line, WIDTH) for line in plain.split("\n"))
        parts.append(f"## entropy-grpo {' '.join(words)}\n\n```text\n{text}\n```")
    return "\n\n".join(parts)


def page(name: str) -> str:
    """Return a page of the repository's root with the links of a page of the documentation."""
    text = (PACKAGE.parent / name).read_text(encoding="utf-8")
    return text.replace("](docs/", "](").replace("](CONTRIBUTING.md)", "](contributing.md)")


PLACES = {
    "<!-- settings -->": settings,
    "<!-- commands -->": commands,
    "<!-- readme -->": functools.partial(page, "README.md"),
    "<!-- contributing -->": functools.partial(page, "CONTRIBUTING.md"),
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Turn every tutorial, a script with cells, into a page."""
    for script in sorted((Path(config.docs_dir) / "tutorials").glob("*.py")):
        cells = jupytext.read(script, fmt="py:percent").cells
        code = {"code": "```python\n{}\n```"}
        text = "\n\n".join(code.get(cell.cell_type, "{}").format(cell.source) for cell in cells)
        note = f"\n\n*This page is the script `docs/tutorials/{script.name}`.*\n"
        files.append(File.generated(config, f"tutorials/{script.stem}.md", content=text + note))
    return files


def on_page_markdown(markdown: str, **_) -> str:
    for place, write in PLACES.items():
        if place in markdown:
            markdown = markdown.replace(place, write())
    return FORMULA.sub(formula, markdown)


def formula(match: re.Match) -> str:
    """Return MathML that scrolls within a narrow window."""
    return f'<div class="formula">{convert(match[1].strip(), display="block")}</div>'
