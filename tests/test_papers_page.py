"""docs/papers.md: every command parses, every recipe in it resolves to its paper's figures, and none is left out."""

import json
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks import papers
from entropy_grpo import cli
from entropy_grpo.config import recipe
from entropy_grpo.config.offline import resolve
from entropy_grpo.config.recipe import overrides

from .conftest import REPOSITORY
from .test_paper_recipes import FIGURES, METHODS, ONE_GPU

PLANS = json.loads(papers.RESULTS.read_text())["plans"]
ROWS = [row for rows in papers.SECTIONS.values() for row in rows]
COMMANDS = sorted({command for row in ROWS for command in row.commands})
# Recipes that no paper has: smaller models, adapters, and forking tokens in the setting of the second paper. Those of
# single values of rho are variants of the sweep in a row.
OWN = {*ONE_GPU, "qwen25_7b_forking", "qwen25_math_7b_forking", *(f"qwen3_8b_top{share}" for share in (15, 25, 30))}


def test_the_page_has_the_rows():
    _, block, _ = papers.measure.block(papers.COMMAND)
    assert block == papers.tables(PLANS), f"run {papers.COMMAND}"


def check_options(command):
    """The checks that a command makes before it does anything else."""
    options = command.view if isinstance(command, cli.Analyze) else command
    if isinstance(options, cli.Unchecked):
        kind = next(base for base in type(options).__mro__ if base.__name__.endswith("Options"))
        try:
            cli.checked(options, kind)
        except ValueError as error:
            # The run is still to be made.
            assert str(error).endswith(("name a run folder.", "there is no such file."))


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse_and_recipes_resolve(command, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    program, *words = shlex.split(command)
    if program == "python":
        assert find_spec(words[1]) is not None
    elif words[0] == "launch":
        resolve(words[1], words[2:])
    elif words[0] == "sweep":
        cli.main([*words, "--print"])
        runs = papers.runs_of(command) * len(papers.recipes_of(command))
        assert len(capsys.readouterr().out.splitlines()) == runs
    else:
        assert program == "entropy-grpo"
        parsed, left = cli.parse(words)
        assert not left
        check_options(parsed)


@pytest.mark.parametrize("command", [command for command in COMMANDS if papers.recipes_of(command)])
def test_recipes_have_the_figures_of_their_paper(command):
    for name in papers.recipes_of(command):
        check_figures(command, name)


def check_figures(command, name):
    if name.startswith("demo_cpu"):
        return
    words = shlex.split(command)[3:] if " launch " in command else []
    changed = overrides(words)
    values = {key: setting.value for key, setting in (recipe.load(name) | changed).items()}
    for key, expected in FIGURES[name].items():
        assert key in changed or values[key] == expected, key
    assert name in PLANS and PLANS[name]["verdict"].startswith("fits")


def outputs(command):
    """The folders that a command writes."""
    words = shlex.split(command)
    named = [words[words.index("--output") + 1]] if "--output" in words else []
    return named + [f"runs/{name}" for name in papers.recipes_of(command)]


def run_inputs(name):
    """The files of other runs that a recipe reads."""
    settings = recipe.load(name)
    keys = ("dataset_name", "model_name_or_path", "decontaminate_against")
    values = [settings[key].value for key in keys if key in settings]
    texts = [text for value in values for text in (value if isinstance(value, list) else [value])]
    return [text for text in texts if text.startswith("runs/")]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.item)
def test_the_files_that_a_recipe_reads_are_made_by_earlier_commands_of_its_row(row):
    made = []
    for command in row.commands:
        for name in papers.recipes_of(command):
            missing = [file for file in run_inputs(name) if not any(Path(file).is_relative_to(one) for one in made)]
            assert not missing, f"{name} reads {missing}"
        made += outputs(command)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.item)
def test_a_row_that_evaluates_one_of_its_runs_evaluates_all(row):
    trained = {name for command in row.commands for name in papers.recipes_of(command)}
    words = [shlex.split(command) for command in row.commands if " eval " in command]
    models = {Path(one[one.index("--model") + 1]) for one in words}
    evaluated = {model.parts[1] for model in models if model.parts[0] == "runs"}
    assert not evaluated & trained or evaluated == trained, trained - evaluated


def test_every_recipe_of_a_paper_has_a_row():
    assert FIGURES.keys() - METHODS.keys() - set(papers.all_recipes()) == OWN  # the methods are of other papers


def test_a_row_of_several_runs_needs_the_hours_of_all():
    plans = {"a": {"gpus": 8, "hours": 2.0}, "b": {"gpus": 16, "hours": 3.0}}
    commands = ["entropy-grpo launch a", "entropy-grpo sweep b --set beta=0,1 --seeds 3"]
    assert papers.needs(papers.Row("x", commands, ""), plans) == "7 runs on 8 or 16 GPUs, 304 GPU hours"
    assert papers.needs(papers.Row("x", ["entropy-grpo analyze report x"], "", "one GPU"), plans) == "one GPU"
    row = papers.Row("x", commands[:1], "", "a teacher")
    assert papers.needs(row, plans) == "1 run on 8 GPUs, 16 GPU hours; a teacher"
