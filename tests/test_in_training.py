"""A run that answers benchmarks while it trains, one of which fails."""

import json
from types import SimpleNamespace

import pytest
from trl import GRPOTrainer

from entropy_grpo import launch
from entropy_grpo.config.run import RunConfig
from entropy_grpo.evaluation import callback, results
from entropy_grpo.runs import files
from entropy_grpo.runs.folder import RunFolder

from .conftest import REPOSITORY

SETTINGS = {
    "num_train_problems": 16,
    "num_dev_problems": 0,
    "num_test_problems": 0,
    "eval_strategy": "no",
    "save_strategy": "no",
    "num_generations": 4,
    "num_generations_eval": 2,
    "per_device_train_batch_size": 8,
    "steps_per_generation": 1,
    "max_completion_length": 12,
    "max_steps": 3,
    "disable_tqdm": "true",
    "rewards": "[accuracy]",
}


def train(model: str, run: RunFolder, **more) -> None:
    words = {"model_name_or_path": model, "output_dir": run.path, **SETTINGS, **more}
    launch.run(
        str(REPOSITORY / "recipes" / "demo_cpu.yaml"), [w for k, v in words.items() for w in (f"--{k}", str(v))]
    )


@pytest.mark.slow
def test_a_benchmark_that_fails_does_not_stop_the_run(tiny_model, tmp_path):
    benchmark = tmp_path / "walks.jsonl"
    rows = [json.dumps({"problem": f"go {n} to 8 need {8 - n:+d} with +7 -4 -1\n", "answer": 8}) for n in range(1, 6)]
    benchmark.write_text("\n".join(rows) + "\n")
    run = RunFolder(tmp_path / "run")
    names = f"[{benchmark}, {tmp_path / 'nowhere.jsonl'}]"
    train(tiny_model, run, eval_benchmarks=names, eval_benchmark_steps=2)
    logged = list(files.read_jsonl(run.metrics))
    assert [row["step"] for row in logged if "loss" in row] == [1, 2, 3]
    [evaluated] = [row for row in logged if "eval_failures" in row]
    assert (evaluated["step"], evaluated["eval_failures"]) == (2, 1)
    assert not any("reward" in row for row in logged if "eval_failures" in row)
    samples, figures = results.read(run.benchmarks / "step-2", "walks")
    table = samples.to_pylist()
    assert [(row["question"], row["sample"]) for row in table] == [(str(q), n) for q in range(5) for n in range(2)]
    assert evaluated["eval_walks/acc@2"] == sum(row["verdict"] == "right" for row in table) / 10
    assert evaluated["eval_walks/len@2"] == sum(row["tokens"] for row in table) / 10
    assert {row["finish"] for row in table if row["tokens"] == 12} <= {"length"}
    assert figures["settings"]["max_tokens"] == 12 and figures["step"] == 2
    assert results.names_in(run.benchmarks / "step-2") == ["walks"]

    without = RunFolder(tmp_path / "without")
    train(tiny_model, without)
    assert list(files.read_jsonl(run.samples)) == list(files.read_jsonl(without.samples))


@pytest.mark.slow
def test_generation_that_fails_ends_the_run(tiny_model, tmp_path, monkeypatch):
    """The next rollout would fail alike, or the other processes wait in the middle of it."""
    benchmark = tmp_path / "walks.jsonl"
    benchmark.write_text(json.dumps({"problem": "go 3 to 8 need +5 with +7 -4 -1\n", "answer": 8}) + "\n")
    generate = GRPOTrainer._generate_single_turn

    def fail_in_evaluation(self, *args, **kwargs):
        if not self.model.training:
            raise RuntimeError("out of memory")
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", fail_in_evaluation)
    with pytest.raises(RuntimeError, match="out of memory"):
        train(tiny_model, RunFolder(tmp_path / "run"), eval_benchmarks=f"[{benchmark}]", eval_benchmark_steps=2)


def test_answers_become_samples_of_their_questions():
    asked = [SimpleNamespace(id="a", prompt="1?"), SimpleNamespace(id="b", prompt="2?")]
    answers = [
        {"prompt": p, "completion": c, "length": n} for p, c, n in [("2?", "x", 3), ("1?", "y", 5), ("2?", "z", 4)]
    ]
    rows = callback.sample_rows(asked, answers, 5, 0.25)
    assert [(row["question"], row["sample"], row["text"], row["finish"]) for row in rows] == [
        ("a", 0, "y", "length"),
        ("b", 0, "x", "stop"),
        ("b", 1, "z", "stop"),
    ]


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"eval_benchmarks": ["aime24"]}, "eval_benchmark_steps is None and eval_benchmarks is"),
        ({"eval_benchmark_steps": 3}, "eval_benchmark_steps is 3 and eval_benchmarks is"),
        ({"eval_benchmarks": ["aime24"], "eval_benchmark_steps": 0}, "eval_benchmark_steps is 0"),
        (
            {"eval_benchmarks": ["aime"], "eval_benchmark_steps": 1},
            "eval_benchmarks names 'aime': choose among aime24",
        ),
        (
            {"eval_benchmarks": ["humaneval"], "eval_benchmark_steps": 1},
            "eval_benchmarks names 'humaneval', whose pro",
        ),
    ],
)
def test_wrong_settings_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        RunConfig(dataset_name="gsm8k", **settings)
