"""`analyze divergence` with continuations of a real vLLM, against those of transformers."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from entropy_grpo import cli
from entropy_grpo.runs import files
from tests.test_divergence_run import RESPONSES, K, command, save_tiny, write_rows

from .conftest import run_python

pytestmark = pytest.mark.timeout(600)

# The command as it is, without compilation, which takes minutes on a processor.
PROGRAM = """
import functools, sys
import vllm
from entropy_grpo import cli

if __name__ == "__main__":
    vllm.LLM = functools.partial(vllm.LLM, enforce_eager=True)
    cli.main(sys.argv[1:])
"""
# 4.5 standard errors, at most, of the difference of two figures that are each a difference of two means of k values in
# [0, 1].
TOLERANCE = 4.5 * 0.5 * (4 / K) ** 0.5
SAMPLED = ("accuracy", "other_accuracy", "intervention")
SAMPLED += tuple(f"{kind}_{pair}" for kind in ("distance", "changed") for pair in ("between", "within"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    # vLLM's attention on a processor has kernels for heads of 32 and more.
    return save_tiny(tmp_path_factory.mktemp("tiny_vocabulary"), head_dim=32)


def forks_in(row):
    return {key: value for key, value in row.items() if key not in SAMPLED}


def by_vllm(tiny, folder, **changed):
    (folder / "program.py").write_text(PROGRAM)
    given = command(tiny, folder, backend="vllm", batch_size=None, dtype="float32", **changed)
    run_python(str(folder / "program.py"), "analyze", "divergence", *given)
    return list(files.read_jsonl(folder / "divergence" / "tiny" / "forks.jsonl"))


def by_transformers(tiny, folder, **changed):
    given = command(tiny, folder, backend="transformers", dtype="float32", **changed)
    cli.main(["analyze", "divergence", *given])
    return list(files.read_jsonl(folder / "divergence" / "tiny" / "forks.jsonl"))


def test_rows_are_those_of_transformers_up_to_chance(tiny, tmp_path):
    """The forks are the same ones; means over k continuations differ by what k draws differ."""
    made = {}
    for name, write in (("vllm", by_vllm), ("transformers", by_transformers)):
        (tmp_path / name).mkdir()
        made[name] = write(tiny, tmp_path / name)
        settings = files.read_json(tmp_path / name / "divergence" / "tiny" / "divergence.json")["settings"]
        assert settings["backend"] == name
    assert len(made["vllm"]) == len(made["transformers"]) > 8
    for ours, theirs in zip(made["vllm"], made["transformers"], strict=True):
        assert list(ours) == list(theirs)
        assert forks_in(ours) == forks_in(theirs)
        for key in SAMPLED:
            assert ours[key] == pytest.approx(theirs[key], abs=TOLERANCE), (key, ours, theirs)
    for key in SAMPLED:
        ours, theirs = (sum(row[key] for row in rows) / len(rows) for rows in made.values())
        assert ours == pytest.approx(theirs, abs=TOLERANCE / len(made["vllm"]) ** 0.5), key
    assert {row["response"] for row in made["vllm"]} == set(range(len(RESPONSES)))
    assert any(ours["accuracy"] != theirs["accuracy"] for ours, theirs in zip(*made.values(), strict=True))


def test_the_model_answers_benchmarks_by_vllm_too(model, tmp_path):
    """Beside the same command on these answers by transformers, which finds the same forks."""
    problems = [{"problem": f"go {i} to 9 need +2 with +3 -2 +1\n", "answer": "9"} for i in range(3)]
    few = write_rows(tmp_path / "few.jsonl", problems)
    for name in ("vllm", "transformers"):
        (tmp_path / name).mkdir()
    common = {"continuations": 2, "max_tokens": 9}
    ours = by_vllm(Path(model), tmp_path / "vllm", responses=None, benchmarks=few, **common)
    answers = tmp_path / "vllm" / "divergence" / "tiny" / "responses" / "few.parquet"
    theirs = by_transformers(Path(model), tmp_path / "transformers", responses=answers, **common)
    assert files.read_json(answers.with_suffix(".json"))["settings"]["backend"] == "vllm"
    assert pq.read_table(answers)["problem"].to_pylist() == [row["problem"] for row in problems]
    assert len(ours) > 6 and [forks_in(row) for row in ours] == [forks_in(row) for row in theirs]
