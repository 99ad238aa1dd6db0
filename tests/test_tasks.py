"""Tasks by their interface: one that no module knows is trained, evaluated, planned and described like any other."""

import dataclasses
import itertools
import json
import os
import random
import re
import subprocess
from pathlib import Path

import numpy
import pyarrow.parquet as pq
import pytest
import torch

import entropy_grpo
from entropy_grpo import cli
from entropy_grpo.cards.card import write_card
from entropy_grpo.config.run import RunConfig
from entropy_grpo.evaluation import questions
from entropy_grpo.grading.pool import Grader
from entropy_grpo.models.load import resolve
from entropy_grpo.planning import plan
from entropy_grpo.planning.options import PlanOptions
from entropy_grpo.rewards.registry import get_rewards
from entropy_grpo.tasks import cold_start, registry

from .conftest import DEMO, REPOSITORY, TINY_DEMO
from .loading import load
from .tiny_task import NAME, TASK

PACKAGE = Path(entropy_grpo.__file__).parent
WALK = "embedded:number_walk"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def pairs(models, monkeypatch):
    monkeypatch.setenv("TINY_TASK_MODELS", str(models))
    monkeypatch.setitem(registry.TASKS, NAME, TASK)


def is_right(prompt, response):
    """Whether the last number of a response is one of the prompt's, by hand."""
    numbers = re.sub(r"\D+", " ", response).split()
    return bool(numbers) and numbers[-1] in prompt.split()


def test_no_module_but_the_tasks_own_knows_one_by_name():
    words = re.compile(r"number_?walk|NUMBER_WALK|walk_accuracy|embedded:[a-z]")
    paths = [path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".md", ".html", ".js")]
    naming = {str(path.relative_to(PACKAGE)) for path in paths if words.search(path.read_text(encoding="utf-8"))}
    assert naming == {"tasks/number_walk.py", "tasks/cold_start.py", "tasks/walk.py", "tasks/registry.py"}


def test_problems_of_any_task_become_data(pairs):
    config = RunConfig(dataset_name=NAME, num_train_problems=70, num_dev_problems=2, num_test_problems=3)
    problems = load(config, seed=7)
    assert problems.train[0] == {"prompt": "go 0 to 7\n", "solution": "0 or 7"}
    assert problems.train[69] == {"prompt": "go 1 to 16\n", "solution": "1 or 16"}
    assert problems.dev["prompt"][:] == ["go 20 to 0\n", "go 20 to 1\n"]  # the same for every seed
    assert problems.origin == {"dataset": NAME, "train": 70, "dev": 2, "test": 3}
    with pytest.raises(ValueError, match="prompt_template is 'boxed' but dataset_name 'embedded:pairs' does not read"):
        RunConfig(dataset_name=NAME, prompt_template="boxed")


@pytest.mark.parametrize("chat", [False, True])
def test_only_a_score_of_one_is_right(pairs, chat):
    prompts, completions = ["go 3 to 8\n"] * 5, ["3", "so 8", "take 4", "take 5", "none"]
    if chat:
        prompts, completions = ([[{"role": "user", "content": x}] for x in texts] for texts in (prompts, completions))
    (reward,) = get_rewards(["pair_accuracy"], Grader(1, 5, 5), 8, scale="+-1")
    given = {"prompts": prompts, "completions": completions, "solution": ["3 or 8"] * 5}
    assert reward(**given, log_metric=None, trainer_state=None) == [1.0, 1.0, -1.0, -1.0, -1.0]
    assert reward.__name__ == "pair_accuracy"


def test_without_a_score_the_grader_compares_answers_with_solutions(pairs, monkeypatch):
    monkeypatch.setitem(registry.TASKS, NAME, dataclasses.replace(TASK, score=None))
    (reward,) = get_rewards(["pair_accuracy"], Grader(1, 20, 60), 8)
    given = {"prompts": ["go 3 to 8\n"] * 3, "completions": ["so 3", "so 8", "none"]}
    assert reward(**given, solution=["3.0", "3", "3"]) == [1.0, 0.0, 0.0]


def test_models_have_names_of_any_kind(pairs, tmp_path, monkeypatch):
    for name in ("Qwen/Qwen3-8B", str(tmp_path), "C:model"):
        assert resolve(name) == name
    folder = resolve(NAME, seed=3)
    assert (Path(folder).name, resolve(NAME, seed=3)) == ("seed-3", folder) and resolve(NAME) != folder
    with pytest.raises(ValueError, match=f"^model_name_or_path is missing: .* a folder or {WALK} or {NAME}.$"):
        resolve(None, setting="model_name_or_path")
    monkeypatch.setitem(registry.TASKS, NAME, dataclasses.replace(TASK, model=None))
    with pytest.raises(ValueError, match="model is 'embedded:pairs', a task without a model of its own: name"):
        resolve(NAME)


def test_unknown_tasks_are_refused_with_the_known_names(pairs):
    asks = {
        "dataset_name": lambda name: RunConfig(dataset_name=name),
        "model": resolve,
        "benchmark": questions.load,
        "task": registry.load,
    }
    for setting, ask in asks.items():
        with pytest.raises(ValueError, match=f"^{setting} is 'embedded:pears': choose {WALK} or {NAME}.$"):
            ask("embedded:pears")


@pytest.mark.parametrize("graded", [False, True])
def test_the_model_of_any_task_answers_its_benchmark(pairs, tmp_path, monkeypatch, graded):
    if graded:  # only the first number of a pair is the solution, in a form that is no answer's
        problems = lambda *args: (p._replace(solution=p.prompt.split()[1] + ".0") for p in TASK.problems(*args))  # noqa: E731
        monkeypatch.setitem(registry.TASKS, NAME, dataclasses.replace(TASK, score=None, problems=problems))
    words = ["eval", "--model", NAME, "--benchmarks", NAME, "--samples", "1", "--backend", "transformers"]
    cli.main([*words, "--dtype", "float32", "--batch-size", "400", "--output", str(tmp_path)])
    rows = pq.read_table(tmp_path / "pairs.parquet").to_pylist()
    assert [row["prompt"] for row in rows[:2]] == ["go 40 to 0\n", "go 40 to 1\n"] and len(rows) == 400
    prompts = [row["prompt"].rpartition("to")[0] if graded else row["prompt"] for row in rows]
    expected = [is_right(prompt, row["response"]) for prompt, row in zip(prompts, rows, strict=True)]
    assert [row["verdict"] == "right" for row in rows] == expected and any(expected)
    assert all(row["tokens"] <= 8 for row in rows)


@pytest.mark.slow
def test_any_task_is_trained_and_described(pairs, models, tmp_path, preloaded):
    words = ["--dataset_name", NAME, "--model_name_or_path", NAME, "--rewards", "pair_accuracy"]
    words += [*TINY_DEMO, "--max_completion_length", "8", "--output_dir", str(tmp_path / "run")]
    command = [preloaded, "-m", "tests.tiny_task", DEMO, *words]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "run" / "data.json").read_text())["dataset"] == NAME
    answers = [json.loads(line) for line in open(tmp_path / "run" / "answers" / "after.jsonl")]
    assert len(answers) == 8 * 4
    rewards = [row["rewards"]["pair_accuracy"] for row in answers]
    assert rewards == [float(is_right(row["prompt"], row["completion"])) for row in answers]
    after = json.loads((tmp_path / "run" / "evaluation.json").read_text())["after"]
    texts = " ".join(re.sub(r"\D+", " ", row["completion"]) for row in answers).split()
    even = sum(text[-1] in "02468" for text in texts) / len(texts)
    assert after["good_choices"]["value"] == pytest.approx(even)
    card = write_card(tmp_path / "run", draws=False).read_text()
    assert "embedded:pairs, trained by reinforcement learning with verifiable rewards on embedded:pairs" in card
    assert "Data set and base model are not on the Hub: `entropy-grpo` makes both locally." in card
    assert "parameters and solves one small task" in card and "Training problems that occur in" not in card


def test_the_card_tells_generated_data_from_a_model_of_the_hub(pairs, tmp_path):
    (tmp_path / "recipe.yaml").write_text(f"model_name_or_path: Qwen/Qwen3-8B\ndataset_name: {NAME}\n")
    card = write_card(tmp_path, draws=False).read_text()
    assert "The data set is not on the Hub: `entropy-grpo` makes it locally." in card
    assert "base_model: Qwen/Qwen3-8B" in card and "datasets:" not in card and "one small task" not in card


def test_any_task_is_planned(pairs):
    words = ["--dataset_name", NAME, "--model_name_or_path", NAME, "--rewards", "pair_accuracy"]
    job = plan.resolve(PlanOptions(str(REPOSITORY / DEMO)), words)
    assert job.lengths.prompt == 5 and job.problems == 4096


def test_the_number_walk_says_what_its_model_is_without_making_it():
    task = registry.load(WALK)
    for seed_generator in (random.seed, numpy.random.seed, torch.manual_seed):
        seed_generator(12345)  # another seed than that of the model
    before = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    config = task.model_config()
    assert (random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
    tokenizer = cold_start.build_tokenizer()
    assert config.to_dict() == cold_start.build_model(tokenizer, 0).config.to_dict()
    prompts = [problem.prompt for problem in itertools.islice(task.problems("train", 0), 500)]
    assert max(map(len, tokenizer(prompts)["input_ids"])) <= task.longest_prompt


def test_the_cold_start_is_announced_once_before_it_is_trained(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ENTROPY_GRPO_CACHE", str(tmp_path))
    monkeypatch.setattr(cold_start.subprocess, "run", lambda command, **options: os.mkdir(command[-1]))
    folder = resolve(WALK, seed=5)
    assert folder == str(cold_start.checkpoint_path(5)) == resolve(WALK, seed=5)
    assert capsys.readouterr().out == "training the cold start for seed 5 once, which takes a few minutes\n"
