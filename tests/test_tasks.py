"""Tasks by their interface: one that no module knows is trained, evaluated, planned and described like any other."""

import dataclasses
import itertools
import json
import os
import random
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

import entropy_grpo
from entropy_grpo import cli
from entropy_grpo.analysis.divergence import run as divergence_run
from entropy_grpo.cards.card import write_card
from entropy_grpo.config.run import RunConfig
from entropy_grpo.data.benchmarks import BENCHMARKS
from entropy_grpo.data.benchmarks.benchmark import Question
from entropy_grpo.evaluation import questions
from entropy_grpo.grading.pool import Grader
from entropy_grpo.models.load import load_tokenizer, resolve
from entropy_grpo.planning import plan
from entropy_grpo.planning.options import PlanOptions
from entropy_grpo.rewards.registry import get_rewards
from entropy_grpo.tasks import cold_start, registry, sized, stories, taught, word_stories

from .conftest import DEMO, REPOSITORY, TINY_DEMO
from .loading import load
from .tiny_task import NAME, TASK

PACKAGE = Path(entropy_grpo.__file__).parent
WALK, STORIES = "embedded:number_walk", "embedded:word_stories"
SHIPPED = f"{WALK} or {STORIES}"


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
    words = re.compile(r"number_?walk|NUMBER_WALK|walk_accuracy|word_?stor|WORD_STOR|story_accuracy|embedded:[a-z]")
    paths = [path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".md", ".html", ".js")]
    naming = {str(path.relative_to(PACKAGE)) for path in paths if words.search(path.read_text(encoding="utf-8"))}
    own = {"number_walk", "cold_start", "walk", "word_stories", "stories", "registry"}
    assert naming == {f"tasks/{name}.py" for name in own}


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
    (tmp_path / "config.json").touch()
    for name in ("Qwen/Qwen3-8B", str(tmp_path), "C:model"):
        assert resolve(name) == name
    folder = resolve(NAME, seed=3)
    assert (Path(folder).name, resolve(NAME, seed=3)) == ("seed-3", folder) and resolve(NAME) != folder
    with pytest.raises(ValueError, match=f"^model_name_or_path is missing: .* a folder or {SHIPPED} or {NAME}.$"):
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
    known = f"choose {SHIPPED} or {NAME}; a file of this name is ./embedded:pears"
    for setting, ask in asks.items():
        with pytest.raises(ValueError, match=f"^{setting} is 'embedded:pears': {known}.$"):
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
    assert done.returncode == 0, done.stderr
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


STORY = "tom has 8 coins . ben gives him 4 . he sees 3 . how many coins has tom ?\n"
RESPONSES = {"\\boxed{12}": True, "\\boxed{11}": False, "\\boxed{12.0}": False, "12": False}


def test_the_word_stories_become_data_a_reward_and_a_plan():
    data = load(
        RunConfig(dataset_name=STORIES, num_train_problems=40, num_dev_problems=9, num_test_problems=13), seed=1
    )
    for split, rows in {"train": data.train, "dev": data.dev, "test": data.test}.items():
        seed = 1 if split == "train" else 0
        made = itertools.islice(registry.load(STORIES).problems(split, seed), len(rows))
        assert list(rows) == [{"prompt": p.prompt, "solution": p.solution} for p in made]
    (reward,) = get_rewards(["story_accuracy"], Grader(1, 5, 5), 80)
    given = {"prompts": [STORY] * 4, "completions": list(RESPONSES), "solution": ["12"] * 4}
    assert reward(**given, log_metric=None, trainer_state=None) == list(map(float, RESPONSES.values()))
    job = plan.resolve(PlanOptions(str(REPOSITORY / "recipes" / "demo_words.yaml")), [])
    assert (job.lengths.prompt, job.lengths.completion, job.problems) == (28, 80, 4096)


def test_the_word_stories_are_a_benchmark_for_answers_and_for_forks():
    asked = questions.load(STORIES)[1]
    assert len(asked) == 400 and asked == questions.load("word_stories")[1]
    assert {word_stories.split_of(word_stories.Problem.from_prompt(q.prompt)) for q in asked} == {"test"}
    given = divergence_run.Given(([0], [0]), BENCHMARKS["word_stories"], Question("0", STORY, STORY, "12"))
    found = divergence_run.Grading([given])(0, list(RESPONSES))
    assert [right for _, right in found] == list(RESPONSES.values())


def test_the_card_of_the_word_stories_says_where_data_and_model_come_from(tmp_path):
    (tmp_path / "recipe.yaml").write_text(f"model_name_or_path: {STORIES}\ndataset_name: {STORIES}\n")
    card = write_card(tmp_path, draws=False).read_text()
    assert f"{STORIES}, trained by reinforcement learning with verifiable rewards on {STORIES}" in card
    assert "Data set and base model are not on the Hub: `entropy-grpo` makes both locally." in card


@pytest.mark.parametrize(
    ("name", "build_tokenizer"),
    [(WALK, cold_start.build_tokenizer), (STORIES, lambda: taught.build_tokenizer(stories.COLD_START))],
)
def test_a_task_says_what_its_model_is_without_making_it(name, build_tokenizer):
    task = registry.load(name)
    for seed_generator in (random.seed, numpy.random.seed, torch.manual_seed):
        seed_generator(12345)  # another seed than that of the model
    before = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    config = task.model_config()
    assert (random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
    tokenizer = build_tokenizer()
    assert config.to_dict() == cold_start.build_model(tokenizer, 0).config.to_dict()
    prompts = [problem.prompt for problem in itertools.islice(task.problems("train", 0), 500)]
    assert max(map(len, tokenizer(prompts)["input_ids"])) <= task.longest_prompt


@pytest.mark.parametrize(
    ("name", "path"),
    [(WALK, cold_start.checkpoint_path), (STORIES, partial(taught.checkpoint_path, stories.COLD_START))],
)
def test_the_cold_start_is_announced_once_before_it_is_trained(name, path, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ENTROPY_GRPO_CACHE", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", lambda command, **options: os.mkdir(command[-1]))
    folder = resolve(name, seed=5)
    assert folder == str(path(5)) == resolve(name, seed=5)
    assert capsys.readouterr().out == "training the cold start for seed 5 once, which takes a few minutes\n"


def test_a_cold_start_is_trained_in_a_process_of_its_own_and_kept(tmp_path, monkeypatch):
    """The command of `ensure`, two steps in place of all: its module and arguments, without a launcher's variables."""
    seen = []

    def trained(command, env, check):
        module, arguments = command[2], command[3:]
        seen.append((module, env.keys() & {"RANK", "MASTER_PORT"}))
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        taught.main(dataclasses.replace(stories.COLD_START, steps=2))

    monkeypatch.setenv("ENTROPY_GRPO_CACHE", str(tmp_path))
    for name in ("RANK", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setattr(subprocess, "run", trained)
    folder = resolve(STORIES, seed=2)
    assert seen == [("entropy_grpo.tasks.stories", set())] and resolve(STORIES, seed=2) == folder and len(seen) == 1
    tokenizer, model = load_tokenizer(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert len(tokenizer) == model.config.vocab_size == model.get_input_embeddings().num_embeddings
    cost = json.loads((Path(folder) / taught.COST).read_text())
    assert cost["steps"] == 2 and cost["processor_seconds"] > 0 and cost["mean_loss"] == pytest.approx(4.7, abs=0.4)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert Path(folder).parent == tmp_path


def test_the_name_of_a_cold_start_changes_with_its_seed_and_with_the_text_of_its_task(tmp_path):
    source = tmp_path / "task.py"
    lessons, paths = dataclasses.replace(stories.COLD_START, sources=(str(source),)), set()
    for text in ("RIGHT = 0.5", "RIGHT = 0.4"):
        source.write_text(text)
        paths |= {taught.checkpoint_path(lessons, seed) for seed in (0, 0, 1)}
    assert len(paths) == 4 and all(path.name.startswith("word_stories-seed") for path in paths)


@pytest.mark.parametrize("name", registry.LESSONS)
def test_a_size_is_part_of_a_models_name(name):
    """Sizes share problems, tokenizer and demonstrations with the task, and have as many parameters as they say."""
    task, lessons = registry.load(name), registry.LESSONS[name]
    own = task.model_config()
    for size, (width, layers) in sized.SIZES.items():
        other = registry.load(f"{name}:{size}")
        assert dataclasses.replace(other, model=task.model, model_config=task.model_config) == task
        found = other.model_config()
        with torch.device("meta"):
            count = sum(p.numel() for p in sized.build_model(found, 0).parameters())
        assert (found.hidden_size, found.num_hidden_layers, len(found.layer_types)) == (width, layers, layers)
        assert f"{count / 1e6:.{1 if count < 1e7 else 2}g}M" == size
        same = ("vocab_size", "head_dim", "tie_word_embeddings", "max_position_embeddings", "eos_token_id")
        assert all(getattr(found, key) == getattr(own, key) for key in same)
        assert taught.checkpoint_path(sized.lessons_of(lessons, size), 0).name.startswith(
            f"{lessons.name}-{size}-seed0-"
        )
    with pytest.raises(
        ValueError, match=f"^model is '{name}:3M': choose the size 0.3M or 2M or 6M or 21M, or leave it out.$"
    ):
        resolve(f"{name}:3M")
    with pytest.raises(ValueError, match=f"^dataset_name is '{name}:2M': a size is part of a model's name, so write"):
        RunConfig(dataset_name=f"{name}:2M")
    with pytest.raises(ValueError, match=f"^benchmark is '{name}:2M': a size is part of a model's name, so write"):
        questions.load(f"{name}:2M")


def test_lessons_of_the_number_walk_have_the_tokenizer_of_its_cold_start():
    """The module that makes it may not change, so that its regular expression is stated twice."""
    lessons = registry.LESSONS[WALK]
    own, again = cold_start.build_tokenizer(), taught.build_tokenizer(lessons)
    assert own.backend_tokenizer.to_str() == again.backend_tokenizer.to_str()
    assert (own.pad_token, own.eos_token, own.padding_side) == (again.pad_token, again.eos_token, again.padding_side)


def test_the_cold_start_of_a_size_is_trained(tmp_path, monkeypatch):
    """Two steps, because the first has a learning rate of 0; in this process, where a run starts another."""
    monkeypatch.setattr(taught, "build_model", taught.build_model)  # which the command replaces
    monkeypatch.setitem(sized.LESSONS, "word_stories", dataclasses.replace(stories.COLD_START, steps=2))
    words = ["sized", "word_stories", "0.3M", "--seed", "3", "--output", str(tmp_path / "model")]
    monkeypatch.setattr(sys, "argv", words)
    sized.main()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    shape = registry.load(f"{STORIES}:0.3M").model_config()
    assert (model.config.hidden_size, model.config.num_hidden_layers) == (shape.hidden_size, shape.num_hidden_layers)
    assert json.loads((tmp_path / "model" / taught.COST).read_text())["steps"] == 2
    first = sized.build_model(shape, 3).state_dict()["model.embed_tokens.weight"]
    moved = (model.state_dict()["model.embed_tokens.weight"] - first).abs()
    assert 0 < moved.max() < 0.01  # the weights of the seed, a step on
    assert load_tokenizer(str(tmp_path / "model"), None).eos_token == "<|endoftext|>"
