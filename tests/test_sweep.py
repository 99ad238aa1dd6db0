"""Sweeps: which runs there are, that each runs once, and that a sweep which was cut short goes on."""

import json
import sys

import pytest

from entropy_grpo.compare import sweep
from entropy_grpo.compare.sweep import trials, variants

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


def test_every_variant_has_every_seed_and_a_folder_of_its_own(tmp_path):
    planned = trials(variants(["a=1,2"], []), 3, tmp_path)
    assert len({trial.folder for trial in planned}) == len(planned) == 6
    assert [trial.seed for trial in planned] == [0, 0, 1, 1, 2, 2]
    with pytest.raises(ValueError, match="seeds is 0"):
        trials([()], 0, tmp_path)
    with pytest.raises(ValueError, match="folders would be one"):
        trials([("--a", "1/2"), ("--a", "1:2")], 1, tmp_path)


def calls(tmp_path):
    return (tmp_path / "calls.txt").read_text().splitlines()


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_is_done_is_not_repeated_and_what_failed_is(tmp_path, capsys, jobs):
    script, folder = tmp_path / "launch.py", tmp_path / "sweep"
    script.write_text(SCRIPT)
    planned = trials(variants(["rate=bad,good"], []), 2, folder)
    failed = sweep.run(str(script), planned, folder, [sys.executable], jobs)
    assert [trial.words[1] for trial in failed] == ["bad", "bad"]
    assert len(calls(tmp_path)) == 4 and "exit status 3" in capsys.readouterr().err
    for trial, call in zip(sorted(planned, key=str), sorted(calls(tmp_path)), strict=True):
        assert call == (
            f"--rate {trial.words[1]} --seed {trial.seed} --output_dir {trial.folder} --resume_from_checkpoint auto"
        )
    assert len(json.loads((folder / "sweep.json").read_text())["done"]) == 2
    sweep.run(str(script), planned, folder, [sys.executable], jobs)
    assert len(calls(tmp_path)) == 6  # the two that failed
    with pytest.raises(ValueError, match=r"has a sweep of .*launch\.py"):
        sweep.run("other.yaml", planned, folder, [sys.executable], jobs)
