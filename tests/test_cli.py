"""The command line: every flag reaches its option, help is light, and what is wrong ends with status 2."""

import os
import re
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from entropy_grpo import cli
from entropy_grpo.data.benchmarks import BENCHMARKS
from entropy_grpo.evaluation.options import names_in

from .test_imports import loaded

PATHS = [Path("a"), Path("b")]
COMMANDS = ["train", "plan", "eval", "card", "merge", "compare", "sweep"]
COMMANDS += [f"analyze {name}" for name in ("collect", "decoding", "divergence", "report", "text")]


def parsed(line):
    command, overrides = cli.parse(line.split())
    return (command.view if isinstance(command, cli.Analyze) else command), overrides


@pytest.mark.parametrize(
    ("line", "expected", "overrides"),
    [
        ("train r.yaml --max_steps 4 --rewards a b", cli.Train("r.yaml"), ["--max_steps", "4", "--rewards", "a", "b"]),
        ("train r.yaml --run_name plan --learning_rate=1e-6", cli.Train("r.yaml"), None),
        (
            "plan r.yaml --gpus 8 --max_steps 4 --nodes 2 --gpu-memory 24 --json --beta -0.5",
            cli.Plan("r.yaml", gpus=8, nodes=2, gpu_memory=24.0, json=True),
            ["--max_steps", "4", "--beta", "-0.5"],
        ),
        ("plan r.yaml --model-config x --problems 10", cli.Plan("r.yaml", model_config="x", problems=10), []),
        (
            "eval --model m --benchmarks aime24,x.jsonl --top-p .9 --compare a b --contamination --output o",
            cli.Eval("m", ["aime24,x.jsonl"], output=Path("o"), top_p=0.9, compare=PATHS, contamination=True),
            [],
        ),
        (
            "eval --model=m --benchmarks=b --preset=shaping --t-high 1.2 --t-low 1 --entropy-threshold 0.672",
            cli.Eval("m", ["b"], preset="shaping", t_high=1.2, t_low=1.0, entropy_threshold=0.672),
            [],
        ),
        (
            "analyze collect --model base=m --against a=b c --output o --benchmarks x --batch-tokens 53",
            cli.Collect("base=m", Path("o"), against=["a=b", "c"], benchmarks=["x"], batch_tokens=53),
            [],
        ),
        (
            "analyze divergence --model m --output o --responses r.jsonl --rho 0.3 --limit 9 --max-tokens 7",
            cli.Divergence(model="m", output=Path("o"), responses=Path("r.jsonl"), rho=0.3, limit=9, max_tokens=7),
            [],
        ),
        ("analyze report runs/x", cli.Report(Path("runs/x")), []),
        ("analyze text runs/x --checkpoints a b=c --rho 0.1", cli.Text(Path("runs/x"), ["a", "b=c"], rho=0.1), []),
        ("card runs/x --push me/x --dry-run", cli.Card("runs/x", "me/x", True), []),
        ("merge runs/x --output y --revision z", cli.Merge("runs/x", "y", "z"), []),
        (
            "compare a b --baseline b --group-by beta --json --output o",
            cli.Compare(("a", "b"), "b", "beta", Path("o"), json=True),
            [],
        ),
        (
            "sweep r.yaml --set a=1,2 b=[1,2] --variant a=3 b=4 --variant c=5 --seeds 2 --baseline a=1 b=[1,2] "
            "--jobs 2 --launcher python --print --max_steps 4",
            cli.Sweep("r.yaml", ("a=1,2", "b=[1,2]"), (("a=3", "b=4"), ("c=5",)), 2, ("a=1", "b=[1,2]"), None, 2,
                      "python", True),
            ["--max_steps", "4"],
        ),
    ],
)  # fmt: skip
def test_flags_reach_their_options(line, expected, overrides):
    command, rest = parsed(line)
    assert type(command) is type(expected)
    for field in fields(expected):
        value, wanted = getattr(command, field.name), getattr(expected, field.name)
        assert (list(value) if isinstance(wanted, list) else value) == wanted, field.name
    assert rest == (line.split()[2:] if overrides is None else overrides)


def test_names_are_separated_by_commas_or_spaces():
    assert names_in(["a, b", "c"]) == names_in(["a,b,c,"]) == ["a", "b", "c"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_option_and_its_default(command, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([*command.split(), "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert end.value.code == 0
    kind = {"analyze": getattr(cli, command.split()[-1].capitalize())}.get(command.split()[0])
    kind = kind or getattr(cli, command.capitalize())
    assert is_dataclass(kind)
    renamed = {"products": "set", "others": "variant", "only_print": "print"}
    for field in fields(kind):
        positional = field.name in ("recipe", "run", "runs", "folder", "checkpoint")
        name = renamed.get(field.name, field.name) if command == "sweep" else field.name
        assert positional or f"--{name.replace('_', '-')}" in text
        if isinstance(field.default, (int, float)) and not isinstance(field.default, bool):
            assert f"(default: {field.default})" in text


def test_help_loads_nothing_heavy():
    lines = "; ".join(f"show({command.split()!r})" for command in COMMANDS)
    script = f"""
from entropy_grpo import cli
import contextlib, io
def show(words):
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        cli.main([*words, "--help"])
{lines}"""
    assert not loaded(script)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "train, launch, recipes, plan, eval, analyze, card, merge, compare, sweep"),
        ("trian r.yaml", "trian"),
        ("train", "RECIPE"),
        ("plan", "RECIPE"),
        ("eval --model m", "--benchmarks"),
        ("eval --model m --benchmarks b --tempreature 1", "--temperature"),
        ("eval --model m --benchmarks b --preset forkin", "forking"),
        ("eval --model m --benchmarks b --samples many", "--samples"),
        ("merge runs/x", "--output"),
        ("analyze", "collect, decoding, divergence, irrelevant, report, text"),
    ],
)
def test_a_wrong_command_line_is_told_what_is_right(line, said, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(line.split())
    told = capsys.readouterr()
    assert end.value.code == 2 and told.out == ""
    assert said in " ".join(told.err.replace("│", " ").split()) and "Traceback" not in told.err


@pytest.mark.parametrize("command", [*COMMANDS, "analyze irrelevant", "recipes copy"])
def test_help_offers_no_word_for_an_unset_option(command, capsys):
    with pytest.raises(SystemExit):
        cli.main([*command.split(), "--help"])
    text = capsys.readouterr().out
    assert "{None" not in text and "default: None" not in text


def test_an_option_of_few_words_takes_them_alone(capsys):
    line = "eval --model m --benchmarks b --chat"
    assert parsed(line)[0].thinking is None
    assert parsed(f"{line} --thinking true")[0].thinking == "true"
    with pytest.raises(SystemExit):
        cli.main([*line.split(), "--thinking", "None"])
    assert "invalid choice 'None'" in capsys.readouterr().err


@pytest.mark.parametrize(("before", "after"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_wait_passively_unless_told_otherwise(before, after, monkeypatch):
    monkeypatch.setattr(os, "environ", {} if before is None else {"OMP_WAIT_POLICY": before})
    cli.main(["recipes"])
    assert os.environ["OMP_WAIT_POLICY"] == after


def test_benchmarks_are_listed_a_line_each(capsys):
    cli.main(["eval", "--list"])
    out = capsys.readouterr().out
    cli.main(["eval", "--model", "m", "--list"])
    assert capsys.readouterr().out == out
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == list(BENCHMARKS)
    assert all(len(line.split()) > 3 and line.endswith(".") for line in lines)


def test_version(capsys):
    cli.main(["--version"])
    assert capsys.readouterr().out.startswith("entropy-grpo 0.")


@pytest.mark.parametrize("command", ["eval", "analyze collect", "analyze decoding"])
def test_the_prompt_template_has_two_names(command, capsys):
    words = [*command.split(), "--model", "m", "--output", "o", "--benchmarks", "aime24"]
    found = [cli.parse([*words, name, "answer_line"])[0] for name in ("--prompt", "--template")]
    assert found[0] == found[1] and "answer_line" in repr(found[0])
    with pytest.raises(SystemExit, match="0"):
        cli.main([*command.split(), "--help"])
    assert "prompt template" in " ".join(re.sub(r"[│\s]+", " ", capsys.readouterr().out).split())
