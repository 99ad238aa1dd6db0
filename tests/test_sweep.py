"""Sweeps: which runs there are, that each runs once, and that a sweep which was cut short goes on."""

import json
import shlex
import sys

import pytest

from entropy_grpo import cli
from entropy_grpo.compare import sweep
from entropy_grpo.compare.sweep import trials, variants

from .conftest import DEMO, REPOSITORY

# Stands for a launch: notes how it was called, fails where it is told to.
SCRIPT = """
import pathlib, sys
words = sys.argv[1:]
folder = pathlib.Path(words[words.index("--output_dir") + 1])
with open(pathlib.Path(__file__).parent / "calls.txt", "a") as calls:
    calls.write(" ".join(words) + "\\n")
sys.exit(3 if "--rate" in words and words[words.index("--rate") + 1] == "bad" else 0)
"""


def test_variants_are_all_combinations_and_the_named_ones():
    assert variants(["a=1,2", "b=x,y"], [["a=3", "c=[1,2]"]]) == [
        ("--a", "1", "--b", "x"),
        ("--a", "1", "--b", "y"),
        ("--a", "2", "--b", "x"),
        ("--a", "2", "--b", "y"),
        ("--a", "3", "--c", "[1,2]"),
    ]
    assert variants([], []) == [()]
    assert variants(["rewards=[accuracy,overlong]"], []) == [("--rewards", "[accuracy,overlong]")]
    with pytest.raises(ValueError, match="'lr' sets nothing"):
        variants(["lr"], [])


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("{a: 1, b: 2}", ["{a: 1, b: 2}"]),
        ("{a: {b: [1, 2]}, c: 3},{},x", ["{a: {b: [1, 2]}, c: 3}", "{}", "x"]),
        ("[{name: stapo, q: 0.25}, cov],[],[a, [b, c]]", ["[{name: stapo, q: 0.25}, cov]", "[]", "[a, [b, c]]"]),
        ('x:y=["+", "-"]:z=1,w', ['x:y=["+", "-"]:z=1', "w"]),
    ],
)
def test_a_list_or_mapping_is_not_cut(text, values):
    assert variants([f"key={text}"], []) == [("--key", value) for value in values]


def test_every_variant_has_every_seed_and_a_folder_of_its_own(tmp_path):
    planned = trials(variants(["a=1,2"], []), 3, tmp_path)
    assert len({trial.folder for trial in planned}) == len(planned) == 6
    assert [trial.seed for trial in planned] == [0, 0, 1, 1, 2, 2]
    with pytest.raises(ValueError, match="seeds is 0"):
        trials([()], 0, tmp_path)
    with pytest.raises(ValueError, match="the same folder"):
        trials([("--a", "1/2"), ("--a", "1:2")], 1, tmp_path)


def calls(tmp_path):
    return (tmp_path / "calls.txt").read_text().splitlines()


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_is_done_is_not_repeated_and_what_failed_is(tmp_path, capsys, jobs):
    script, folder = tmp_path / "launch.py", tmp_path / "sweep"
    script.write_text(SCRIPT)
    planned = trials(variants(["rate=bad,good"], []), 2, folder)
    failed = sweep.run(str(script), planned, folder, [sys.executable, str(script)], jobs)
    assert [trial.words[1] for trial in failed] == ["bad", "bad"]
    assert len(calls(tmp_path)) == 4 and "exit status 3" in capsys.readouterr().err
    for trial, call in zip(sorted(planned, key=str), sorted(calls(tmp_path)), strict=True):
        assert call == (
            f"--rate {trial.words[1]} --seed {trial.seed} --output_dir {trial.folder} --resume_from_checkpoint auto"
        )
    assert len(json.loads((folder / "sweep.json").read_text())["done"]) == 2
    sweep.run(str(script), planned, folder, [sys.executable, str(script)], jobs)
    assert len(calls(tmp_path)) == 6  # the two that failed
    with pytest.raises(ValueError, match=r"holds a sweep of .*launch\.py"):
        sweep.run("other.yaml", planned, folder, [sys.executable, str(script)], jobs)


def printed(capsys, *words):
    cli.main(["sweep", *words, "--print"])
    return [shlex.split(line) for line in capsys.readouterr().out.splitlines()]


def test_commands_are_those_that_a_shell_takes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    words = ["--set", "top_entropy_quantile=0.1,0.2", "--variant", "beta=0.1", "--seeds", "2", "--max_steps", "4"]
    found = printed(capsys, DEMO, *words, "--output", str(tmp_path))
    assert len(found) == 6 and len(set(map(tuple, found))) == 6
    for command in found:
        assert command[:5] == ["accelerate", "launch", DEMO, "--max_steps", "4"]
    plain = tmp_path / "mine.yaml"
    plain.write_text(f"base: {REPOSITORY / DEMO}\n")
    (command,) = printed(capsys, str(plain), "--seeds", "1")
    assert command[:5] == ["accelerate", "launch", "-m", "entropy_grpo.launch", str(plain)]


def test_a_sweep_over_generated_problems(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    settings = ["dataset_options={max_numbers: 3, min_numbers: 3},{max_numbers: 5, min_numbers: 4}"]
    settings += ['dataset_name=reasoning_gym:countdown,reasoning_gym:countdown:operators=["+","-"]']
    found = printed(
        capsys, "recipes/qwen3_0_6b_countdown.yaml", "--set", *settings, "--seeds", "1", "--output", str(tmp_path)
    )
    given = [
        {key: command[command.index(key) + 1] for key in ("--dataset_options", "--dataset_name")} for command in found
    ]
    assert [tuple(one.values()) for one in given] == [
        (options, name)
        for options in ("{max_numbers: 3, min_numbers: 3}", "{max_numbers: 5, min_numbers: 4}")
        for name in ("reasoning_gym:countdown", 'reasoning_gym:countdown:operators=["+","-"]')
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "learning_rat=1,2"], "there is no setting learning_rat (value 1). Did you mean learning_rate?"),
        (["--set", "top_entropy_quantile=0.2,2.0"], "top_entropy_quantile is 2.0: the kept share"),
        (["--variant", "loss_type=grpo"], "entropy_denominator is 'kept'"),
        (["--max_steps", "many"], "max_steps is 'many'"),
        (["--seed", "3"], "--seed is given twice"),
        (["--set", "beta=0.1", "--baseline", "beta=0.2"], "--baseline is beta=0.2, which is not among"),
        (["--jobs", "0"], "--jobs is 0"),
    ],
)
def test_every_variant_is_checked_before_any_runs(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(SystemExit) as end:
        cli.main(["sweep", DEMO, *words, "--output", str(tmp_path / "sweep"), "--launcher", "false"])
    message = capsys.readouterr().err
    assert end.value.code == 2 and message.startswith("error: ") and message.count("\n") == 1
    assert said in message and not (tmp_path / "sweep").exists()


def test_a_sweep_file_gives_the_commands_of_every_recipe(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "recipes: [recipes/demo_cpu.yaml, recipes/demo_cpu_ppl.yaml]\nset: {beta: [0.5, 1]}\n"
        "variants:\n  - {rewards: [walk_accuracy, random], reward_weights: [0, 1]}\nbaseline: {beta: 1}\n"
    )
    found = printed(capsys, str(file), "--seeds", "2", "--output", str(tmp_path / "out"), "--max_steps", "4")
    words = ["--set", "beta=0.5,1", "--variant", 'rewards=["walk_accuracy", "random"]', "reward_weights=[0, 1]"]
    words += ["--baseline", "beta=1", "--seeds", "2", "--max_steps", "4"]
    expected = []
    for name in ("demo_cpu", "demo_cpu_ppl"):
        expected += printed(capsys, f"recipes/{name}.yaml", *words, "--output", str(tmp_path / "out" / name))
    assert len(found) == 12 and found == expected


def test_the_shipped_sweep_runs_in_any_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found = printed(capsys, "recipes/sweeps/rho.yaml", "--seeds", "1")
    recipes = [next(word for word in command if word.startswith("qwen3_")) for command in found]
    assert recipes == ["qwen3_14b"] * 5 + ["qwen3_32b"] * 5


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("recipes: [a.yaml]\nseeds: 3", "has the key 'seeds': a sweep file has recipes, set, variants, baseline"),
        ("recipes: a.yaml", "recipes is 'a.yaml', but it must be a list"),
        ("recipes: [a.yaml]\nset: {beta: 1}", "set has beta: 1, but it must be a list of numbers or texts"),
        ("recipes: [a.yaml]\nset: {rewards: [[a]]}", "must be a list of numbers or texts"),
    ],
)
def test_a_wrong_sweep_file_is_refused(tmp_path, capsys, text, sentence):
    (tmp_path / "sweep.yaml").write_text(text)
    with pytest.raises(SystemExit):
        cli.main(["sweep", str(tmp_path / "sweep.yaml"), "--print"])
    assert sentence in capsys.readouterr().err


def test_a_sweep_file_names_its_variants_itself(tmp_path, capsys):
    (tmp_path / "sweep.yaml").write_text("recipes: [a.yaml]\nset: {beta: [1]}")
    with pytest.raises(SystemExit):
        cli.main(["sweep", str(tmp_path / "sweep.yaml"), "--set", "beta=2", "--print"])
    assert "leave out --set and --variant" in capsys.readouterr().err
