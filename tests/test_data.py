"""Data sets of every kind that needs no network: what is loaded, how it is split, and what is refused."""

import json

import datasets
import pandas
import pytest
from datasets import Dataset

from entropy_grpo.config import RunConfig
from entropy_grpo.data import check_size, load_problems
from entropy_grpo.embedded.number_walk import Problem
from entropy_grpo.grader import Grader
from entropy_grpo.rewards import get_rewards

ROWS = [{"prompt": f"What is {i} + {i}?", "solution": str(2 * i), "level": i % 3} for i in range(11)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(folder, suffix, rows=ROWS):
    path = folder / f"problems{suffix}"
    if suffix == ".parquet":
        pandas.DataFrame(rows).to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def pairs(*parts):
    return sorted((row["prompt"], row["solution"]) for part in parts if part is not None for row in part)


def embedded(**changes):
    sizes = {"num_train_problems": 40, "num_dev_problems": 9, "num_test_problems": 13} | changes
    return RunConfig(dataset_name="embedded:number_walk", **sizes)


def test_embedded_problems_have_the_asked_sizes_and_their_own_targets():
    problems = load_problems(embedded(), seed=0)
    assert [len(part) for part in (problems.train, problems.dev, problems.test)] == [40, 9, 13]
    rows = pairs(problems.train, problems.dev, problems.test)
    assert len(set(rows)) == 62
    assert all(Problem.from_prompt(prompt).target == int(solution) for prompt, solution in rows)


def test_embedded_held_out_problems_are_the_same_for_every_seed():
    one, other = load_problems(embedded(), seed=0), load_problems(embedded(), seed=5)
    assert one.dev.to_list() == other.dev.to_list()
    assert one.test.to_list() == other.test.to_list()
    assert one.train.to_list() != other.train.to_list()
    assert one.train.to_list() == load_problems(embedded(), seed=0).train.to_list()


def test_embedded_held_out_problems_are_none_unless_asked_for():
    problems = load_problems(embedded(num_dev_problems=0, num_test_problems=0), seed=0)
    assert problems.dev is None and problems.test is None


def test_embedded_without_problems_is_refused():
    with pytest.raises(ValueError, match="num_train_problems is 0"):
        load_problems(embedded(num_train_problems=0), seed=0)


def test_an_unknown_embedded_data_set_is_refused():
    with pytest.raises(ValueError, match=r"embedded:number_wlak.*embedded:number_walk"):
        load_problems(RunConfig(dataset_name="embedded:number_wlak"), seed=0)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_a_file_is_split_into_parts_that_are_disjoint_and_complete(tmp_path, suffix):
    config = RunConfig(dataset_name=write(tmp_path, suffix), num_dev_problems=2, num_test_problems=3)
    problems = load_problems(config, seed=0)
    assert [len(part) for part in (problems.train, problems.dev, problems.test)] == [6, 2, 3]
    assert pairs(problems.train, problems.dev, problems.test) == pairs(ROWS)  # the prompts differ: no row is twice


def test_a_file_without_held_out_problems_is_all_for_training(tmp_path):
    problems = load_problems(RunConfig(dataset_name=write(tmp_path, ".jsonl")), seed=0)
    assert pairs(problems.train) == pairs(ROWS)
    assert problems.dev is None and problems.test is None


def test_a_file_is_split_the_same_way_again(tmp_path):
    config = RunConfig(dataset_name=write(tmp_path, ".jsonl"), num_dev_problems=4, num_test_problems=4)
    one, again = load_problems(config, seed=3), load_problems(config, seed=3)
    for part in ("train", "dev", "test"):
        assert getattr(one, part).to_list() == getattr(again, part).to_list()


def test_text_of_a_file_arrives_as_it_is(tmp_path):
    rows = [{"prompt": "Größe von π²\u2028 \\frac{1}{2}\n", "solution": "½ \U0001f600"}]
    assert pairs(load_problems(RunConfig(dataset_name=write(tmp_path, ".jsonl", rows)), seed=0).train) == pairs(rows)


def test_solutions_that_are_numbers_can_be_graded_or_are_refused(tmp_path):
    # A natural way to write the file, and the rewards take text.
    rows = [{"prompt": f"What is {i} + {i}?", "solution": 2 * i} for i in range(3)]
    config = RunConfig(dataset_name=write(tmp_path, ".jsonl", rows))
    try:
        train = load_problems(config, seed=0).train
    except ValueError as refusal:
        assert "solution" in str(refusal)
    else:
        completions = [f"\\boxed{{{row['solution']}}}" for row in train]
        (accuracy,) = get_rewards(["accuracy"], Grader(1, seconds=20, total_seconds=60), 48)
        assert accuracy(completions=completions, solution=train["solution"]) == [1.0, 1.0, 1.0]


def test_missing_columns_are_named(tmp_path):
    path = write(tmp_path, ".jsonl", [{"question": "1 + 1?", "answer": "2"}])
    with pytest.raises(ValueError) as refusal:
        load_problems(RunConfig(dataset_name=path), seed=0)
    message = str(refusal.value)
    assert path in message and "question, answer" in message and "prompt and solution" in message


def test_one_missing_column_is_named_alone(tmp_path):
    path = write(tmp_path, ".parquet", [{"prompt": "1 + 1?", "answer": "2"}])
    with pytest.raises(ValueError, match="has solution"):
        load_problems(RunConfig(dataset_name=path), seed=0)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_a_missing_file_is_refused_by_name(tmp_path, suffix):
    path = str(tmp_path / f"absent{suffix}")
    with pytest.raises(ValueError, match="there is no such file") as refusal:
        load_problems(RunConfig(dataset_name=path), seed=0)
    assert path in str(refusal.value)


def test_something_must_be_left_to_train_on(tmp_path):
    path = write(tmp_path, ".jsonl")
    with pytest.raises(ValueError) as refusal:
        load_problems(RunConfig(dataset_name=path, num_dev_problems=5, num_test_problems=6), seed=0)
    assert "num_dev_problems + num_test_problems is 11" in str(refusal.value) and "11 problems" in str(refusal.value)
    config = RunConfig(dataset_name=path, num_dev_problems=5, num_test_problems=5)
    assert len(load_problems(config, seed=0).train) == 1


@pytest.mark.parametrize("name", ["num_train_problems", "num_dev_problems", "num_test_problems"])
def test_negative_sizes_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} is -1"):
        embedded(**{name: -1})


def test_a_data_set_has_to_be_named():
    with pytest.raises(ValueError, match="dataset_name is missing"):
        RunConfig()


def test_a_data_set_smaller_than_one_rollout_is_refused():
    train = Dataset.from_list(ROWS)
    check_size(train, 11)
    with pytest.raises(ValueError) as refusal:
        check_size(train, 12)
    message = str(refusal.value)
    assert "11 problems" in message and "takes 12" in message
    assert "generation_batch_size / num_generations" in message
