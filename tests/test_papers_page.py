"""docs/papers.md: every command parses, every recipe in it resolves to its paper's figures, and none is left out."""

import argparse
import json
import re
import shlex
import sys
from importlib import import_module
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


class Parsed(Exception):
    """The command line of a module was read."""


@pytest.fixture
def parse_module(monkeypatch):
    """Function that reads the command line of `python -m MODULE ARGUMENTS` with the module's own parser."""
    read = argparse.ArgumentParser.parse_args

    def parse_args(parser, *args, **kwargs):
        read(parser, *args, **kwargs)
        raise Parsed

    def parse(command):
        python, option, module, *words = shlex.split(command)
        assert (python, option) == ("python", "-m")
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        monkeypatch.setattr(sys, "argv", [module, *words])
        with pytest.raises(Parsed):
            import_module(module).main()

    return parse


@pytest.mark.parametrize("words", ["--nothing", "--sizes 5M", "number_walks"])
def test_a_module_refuses_arguments_that_it_has_not(parse_module, words):
    with pytest.raises(SystemExit):
        parse_module(f"python -m benchmarks.model_sizes {words}")


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse_and_recipes_resolve(command, parse_module, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    program, *words = shlex.split(command)
    if program == "python":
        parse_module(command)
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
    return named + papers.folders_of(command)


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


def trained_in(row):
    """The run folders of the launches of a row."""
    return {folder for command in row.commands for folder in papers.folders_of(command)}


def starts_of(row):
    """The runs of a row that another of its runs begins with."""
    read = [file for command in row.commands for name in papers.recipes_of(command) for file in run_inputs(name)]
    return {folder for folder in trained_in(row) if folder in read}


@pytest.mark.parametrize(
    "row", papers.SECTIONS["arXiv 2506.01939, high-entropy minority tokens"], ids=lambda r: r.item
)
def test_a_row_with_several_curves_draws_them_together(row):
    """A sweep compares its own runs. Of a cold start and the runs from it, the runs are compared."""
    compared = [set(shlex.split(c)[2:]) for c in row.commands if c.startswith("entropy-grpo compare ")]
    trained = trained_in(row) - {folder for folder in starts_of(row) if folder.endswith("cold_start")}
    assert len(trained) < 2 or any(trained <= words for words in compared)


def numbers(items, word):
    """The numbers that follow a word such as `Fig.` in texts, as in `Fig. 1a and 2` and `Fig. 12 to 17`."""
    found = set()
    for first, joined, last in re.findall(rf"{word} (\d+)[ab]?(?: (and|to) (\d+)[ab]?)?", " ".join(items)):
        found |= (
            set(range(int(first), int(last) + 1)) if joined == "to" else {int(one) for one in (first, last) if one}
        )
    return found


def test_every_table_figure_and_equation_of_the_first_paper_has_a_row():
    items = [row.item for row in papers.SECTIONS["arXiv 2506.01939, high-entropy minority tokens"]]
    counts = {"Table": 2, "Fig.": 17, "Eq.": 6}
    assert {word: numbers(items, re.escape(word)) for word in counts} == {
        word: set(range(1, count + 1)) for word, count in counts.items()
    }


def row_of(item):
    """The row whose name begins with a text."""
    (row,) = [row for row in ROWS if row.item.startswith(item)]
    return row


def test_table_1_scores_every_kept_model_of_the_baseline_with_the_last_answers_to_the_six_benchmarks():
    row = row_of("Table 1")
    (collect,) = [shlex.split(command) for command in row.commands if " collect " in command]
    parsed, _ = cli.parse(collect[1:])
    options = cli.checked(parsed.view, type(parsed.view))
    names = [one.partition("=")[0] for one in options.against]
    assert names == [str(step) for step in FIGURES["qwen3_14b_dapo"]["keep_weights"]]
    assert options.answered_by == "1360" and options.model == "base=Qwen/Qwen3-14B-Base"
    assert all(one.partition("=")[2].startswith("runs/qwen3_14b_dapo/weights/") for one in options.against)
    assert ",".join(options.benchmarks) == "aime24,aime25,amc23,math500,minerva,olympiadbench"


def test_fig_9_trains_the_largest_model_on_a_tenth_a_fifth_and_all_tokens():
    arms = {}
    for command in row_of("Fig. 9").commands:
        for name in papers.recipes_of(command):
            changed = {key: one.value for key, one in overrides(shlex.split(command)[3:]).items()}
            settings = {key: one.value for key, one in recipe.load(name).items()} | changed
            arms[settings["top_entropy_quantile"]] = settings["model_name_or_path"]
    assert arms == {0.1: "Qwen/Qwen3-32B", 0.2: "Qwen/Qwen3-32B", 1.0: "Qwen/Qwen3-32B"}


def test_fig_7_has_three_sizes():
    trained = [name for command in row_of("Fig. 7").commands for name in papers.recipes_of(command)]
    assert {"qwen3_8b_dapo", "qwen3_8b_bottom80", "qwen3_14b", "qwen3_32b"} <= set(trained)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.item)
def test_a_row_that_evaluates_one_of_its_runs_evaluates_all(row):
    trained = {Path(folder).name for folder in trained_in(row)}
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
    assert (
        papers.needs(papers.Row("x", ["entropy-grpo analyze report x"], "", "one GPU"), plans)
        == "one GPU; hours not planned"
    )
    row = papers.Row("x", commands[:1], "", "a teacher")
    assert papers.needs(row, plans) == "1 run on 8 GPUs, 16 GPU hours; a teacher"
