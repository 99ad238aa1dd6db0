"""Data sets of every kind that needs no network: what is loaded, how it is split, and what is refused."""

import itertools
import json
import re
from functools import partial

import datasets
import numpy as np
import pandas
import pytest
import yaml
from datasets import Dataset
from transformers import AutoTokenizer

from entropy_grpo import EntropyForkGRPOConfig
from entropy_grpo.config.run import RunConfig
from entropy_grpo.data import hub
from entropy_grpo.data.problems import check_size
from entropy_grpo.evaluation import questions
from entropy_grpo.grading.pool import Grader
from entropy_grpo.models.load import check_conversations, count_tokens, load_tokenizer
from entropy_grpo.rewards.registry import get_rewards
from entropy_grpo.tasks import number_walk
from entropy_grpo.tasks.number_walk import Problem

from .conftest import REPOSITORY
from .loading import load

ROWS = [{"prompt": f"What is {i} + {i}?", "solution": str(2 * i), "level": i % 3} for i in range(11)]

WALK = "embedded:number_walk"


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
    problems = load(embedded(), seed=0)
    assert [len(part) for part in (problems.train, problems.dev, problems.test)] == [40, 9, 13]
    rows = pairs(problems.train, problems.dev, problems.test)
    assert len(set(rows)) == 62
    assert all(Problem.from_prompt(prompt).target == int(solution) for prompt, solution in rows)


def test_embedded_held_out_problems_are_the_same_for_every_seed():
    one, other = load(embedded(), seed=0), load(embedded(), seed=5)
    assert one.dev.to_list() == other.dev.to_list()
    assert one.test.to_list() == other.test.to_list()
    assert one.train.to_list() != other.train.to_list()
    assert one.train.to_list() == load(embedded(), seed=0).train.to_list()


def test_embedded_held_out_problems_are_none_unless_asked_for():
    problems = load(embedded(num_dev_problems=0, num_test_problems=0), seed=0)
    assert problems.dev is None and problems.test is None


def test_embedded_without_problems_is_refused():
    with pytest.raises(ValueError, match="num_train_problems is 0"):
        load(embedded(num_train_problems=0), seed=0)


def test_an_unknown_embedded_data_set_is_refused():
    with pytest.raises(ValueError, match=r"embedded:number_wlak.*embedded:number_walk"):
        load(RunConfig(dataset_name="embedded:number_wlak"), seed=0)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_a_file_is_split_into_parts_that_are_disjoint_and_complete(tmp_path, suffix):
    config = RunConfig(dataset_name=write(tmp_path, suffix), num_dev_problems=2, num_test_problems=3)
    problems = load(config, seed=0)
    assert [len(part) for part in (problems.train, problems.dev, problems.test)] == [6, 2, 3]
    assert pairs(problems.train, problems.dev, problems.test) == pairs(ROWS)  # the prompts differ: no row is twice


def test_a_file_without_held_out_problems_is_all_for_training(tmp_path):
    problems = load(RunConfig(dataset_name=write(tmp_path, ".jsonl")), seed=0)
    assert pairs(problems.train) == pairs(ROWS)
    assert problems.dev is None and problems.test is None


def test_a_file_is_split_the_same_way_again(tmp_path):
    config = RunConfig(dataset_name=write(tmp_path, ".jsonl"), num_dev_problems=4, num_test_problems=4)
    one, again = load(config, seed=3), load(config, seed=3)
    for part in ("train", "dev", "test"):
        assert getattr(one, part).to_list() == getattr(again, part).to_list()


def test_text_of_a_file_arrives_as_it_is(tmp_path):
    rows = [{"prompt": "Größe von π²\u2028 \\frac{1}{2}\n", "solution": "½ \U0001f600"}]
    config = RunConfig(dataset_name=write(tmp_path, ".jsonl", rows), rewards=["my_rewards:says_something"])
    assert pairs(load(config, seed=0).train) == pairs(rows)


def test_solutions_that_are_numbers_can_be_graded(tmp_path):
    # A natural way to write the file, and the rewards take text.
    rows = [{"prompt": f"What is {i} + {i}?", "solution": 2 * i} for i in range(3)]
    config = RunConfig(dataset_name=write(tmp_path, ".jsonl", rows))
    train = load(config, seed=0).train
    completions = [f"\\boxed{{{row['solution']}}}" for row in train]
    (accuracy,) = get_rewards(["accuracy"], Grader(1, seconds=20, total_seconds=60), 48)
    assert accuracy(completions=completions, solution=train["solution"]) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("kind", ["float16", "float32"])
def test_references_in_half_and_single_precision_have_their_shortest_text(tmp_path, monkeypatch, kind):
    """In double precision the number 0.1 of a float32 is 0.10000000149011612, which no answer equals."""
    table = pandas.DataFrame({"prompt": ["a?", "b?", "c?"], "solution": np.array([0.1, 2.5, 3.0], kind)})
    path = tmp_path / "problems.parquet"
    table.to_parquet(path)
    train = load(RunConfig(dataset_name=str(path)), seed=0).train
    assert sorted(train["solution"]) == ["0.1", "2.5", "3"]
    on_the_hub = datasets.Dataset.from_pandas(table)
    assert on_the_hub.features["solution"].dtype == kind
    monkeypatch.setattr(hub, "load_dataset", lambda *name, **options: on_the_hub)
    train = load(RunConfig(dataset_name="someone/numbers"), seed=0).train
    assert sorted(train["solution"]) == ["0.1", "2.5", "3"]


def test_missing_columns_are_named(tmp_path):
    path = write(tmp_path, ".jsonl", [{"question": "1 + 1?", "answer": "2"}])
    with pytest.raises(ValueError) as refusal:
        load(RunConfig(dataset_name=path), seed=0)
    message = str(refusal.value)
    assert path in message and "question, answer" in message and "prompt or solution" in message


def test_one_missing_column_is_named_alone(tmp_path):
    path = write(tmp_path, ".parquet", [{"prompt": "1 + 1?", "answer": "2"}])
    with pytest.raises(ValueError, match="no column solution"):
        load(RunConfig(dataset_name=path), seed=0)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_a_missing_file_is_refused_by_name(tmp_path, suffix):
    path = str(tmp_path / f"absent{suffix}")
    with pytest.raises(ValueError, match="there is no such file") as refusal:
        load(RunConfig(dataset_name=path), seed=0)
    assert path in str(refusal.value)


def test_something_must_be_left_to_train_on(tmp_path):
    path = write(tmp_path, ".jsonl")
    with pytest.raises(ValueError) as refusal:
        load(RunConfig(dataset_name=path, num_dev_problems=5, num_test_problems=6), seed=0)
    assert "num_dev_problems plus num_test_problems is 11" in str(refusal.value)
    assert "11 problems" in str(refusal.value)
    config = RunConfig(dataset_name=path, num_dev_problems=5, num_test_problems=5)
    assert len(load(config, seed=0).train) == 1


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
    assert "11 problems" in message and "needs 12" in message
    assert "generation_batch_size / num_generations" in message


def test_a_recipe_that_counts_prompts_is_told_a_number_of_prompts_that_fits(tmp_path):
    """It refuses or replaces TRL's sizes of batches."""

    def config(prompts):
        sizes = {"num_generations": 4, "prompts_per_rollout": prompts, "steps_per_rollout": 1}
        return EntropyForkGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, per_device_train_batch_size=4, **sizes)

    train, asked = Dataset.from_list(ROWS), config(16)
    with pytest.raises(ValueError, match="11 problems, but one rollout needs 16") as refusal:
        check_size(train, asked.rollout_groups, asked.prompts_per_rollout)
    assert "batch_size" not in str(refusal.value) and "accumulation" not in str(refusal.value)
    advised = re.search(r"lower prompts_per_rollout to (\d+) or fewer", str(refusal.value))
    lower = config(int(advised[1]))
    check_size(train, lower.rollout_groups, lower.prompts_per_rollout)


def test_embedded_problems_are_the_tasks_own_in_its_order():
    problems = load(embedded(), seed=3)
    for part, split, seed in ((problems.train, "train", 3), (problems.dev, "dev", 0), (problems.test, "test", 0)):
        own = itertools.islice(number_walk.problems(split, seed), len(part))
        assert part.to_list() == [{"prompt": p.prompt, "solution": str(p.target)} for p in own]
    assert problems.origin == {"dataset": "embedded:number_walk", "train": 40, "dev": 9, "test": 13}


# One row of each kind: what it is left out for, or None.
MIXED = [
    ({"prompt": "What is $1 + 1$?", "solution": "2"}, None),
    ({"prompt": "what is 1+1?", "solution": " 2 "}, "repeated"),
    ({"prompt": "Name a root of 4.", "solution": "2"}, "different answers"),
    ({"prompt": "Name a root of  4.", "solution": "-2"}, "different answers"),
    ({"prompt": "Name a root of 4.", "solution": "2"}, "different answers"),
    ({"prompt": "Nothing?", "solution": ""}, "no answer"),
    ({"prompt": "Null?", "solution": None}, "no answer"),
    ({"prompt": "A broken formula?", "solution": "\\frac{3"}, "unreadable reference"),
    ({"prompt": "Another?", "solution": "???"}, "unreadable reference"),
    ({"prompt": "Half?", "solution": "\\frac{1}{2}"}, None),
    ({"prompt": "Held $out$?", "solution": "7"}, "in {held}"),
    ({"prompt": "How long is this {question}? " * 6, "solution": "8"}, "over 40 tokens"),
    ({"prompt": "Last, with {braces}?", "solution": "9"}, None),
]


def mixed_config(folder, **changes):
    held = folder / "held.jsonl"
    held.write_text(json.dumps({"question": "HELD out?", "answer": "7"}) + "\n", encoding="utf-8")
    settings = {"prompt_template": "boxed", "max_prompt_length": 40, "decontaminate_against": [str(held)]}
    return RunConfig(dataset_name=write(folder, ".jsonl", [row for row, _ in MIXED]), **(settings | changes))


def words_of(prompts):
    return [len(prompt.split()) for prompt in prompts]


def test_problems_are_left_out_for_their_reasons_and_counted(tmp_path, capsys):
    config = mixed_config(tmp_path)
    problems = load(config, seed=0, prompt_lengths=words_of)
    reasons = [reason and reason.format(held=config.decontaminate_against[0]) for _, reason in MIXED]
    assert problems.origin["rows"] == len(MIXED)
    assert problems.origin["left_out"] == {r: reasons.count(r) for r in reasons if r is not None}
    assert problems.origin["unreadable_references"] == ["\\frac{3", "???"]
    wanted = [(f"User:\n{row['prompt']}\nPlease reason step by step, and put your final answer within \\boxed{{}}."
               "\n\nAssistant:\n", row["solution"]) for row, reason in MIXED if reason is None]  # fmt: skip
    assert pairs(problems.train) == sorted(wanted)
    said = capsys.readouterr().out
    assert "3 of 13 problems are used" in said and "3 different answers" in said and "1 over 40 tokens" in said
    assert repr("\\frac{3") in said


def test_references_are_read_from_worked_solutions_and_broken_ones_are_counted(tmp_path):
    solutions = {
        "Factoring, $(x-1)(x+2)=0$. Since $x>0$ we get $\\boxed{1}$.": "1",
        "Let $x$ be the number. Then $2x = 4$, so $x = \\fbox{2}$.": "2",
        "2 + 1 = 3\n#### 3": "3",
        "São Paulo": "São Paulo",
        "是": "是",
        "\\frac{1}{2}": "\\frac{1}{2}",
        "\x0crac{1}{2}": None,
        "Then $2x = 4$. So we get that $x = 2$.": None,
        "We see $\\boxed{2$.": None,
    }
    path = write(tmp_path, ".jsonl", [{"prompt": f"{i}?", "solution": text} for i, text in enumerate(solutions)])
    problems = load(RunConfig(dataset_name=path), seed=0)
    assert sorted(problems.train["solution"]) == sorted(answer for answer in solutions.values() if answer)
    assert problems.origin["left_out"] == {"unreadable reference": 3} and problems.origin["worked_solutions"] == 3
    own = load(RunConfig(dataset_name=path, rewards=["mine:reward"]), seed=0)
    assert sorted(own.train["solution"]) == sorted(solutions) and own.origin["worked_solutions"] == 0


@pytest.mark.parametrize(("second", "value"), [("accuracy", 1.0), ("dapo_accuracy", 1.0), ("inverted", 0.0)])
def test_a_reward_by_name_behind_an_own_one_finds_the_final_answers(tmp_path, second, value):
    solutions = ["9 + 63 = 72\n#### 72", "So $x = \\boxed{5}$."]
    path = write(tmp_path, ".jsonl", [{"prompt": f"{i}?", "solution": text} for i, text in enumerate(solutions)])
    loaded = load(RunConfig(dataset_name=path, rewards=["mine:reward", second]))
    assert sorted(loaded.train["solution"]) == ["5", "72"] and loaded.origin["worked_solutions"] == 2
    (reward,) = get_rewards([second], Grader(1, 20, 60), 48)
    answers = [f"\\boxed{{{n}}}\nAnswer: {n}" for n in loaded.train["solution"]]
    assert reward(prompts=["?"] * 2, completions=answers, solution=loaded.train["solution"][:]) == [value] * 2


def test_held_out_problems_come_from_those_that_are_kept(tmp_path):
    config = mixed_config(tmp_path, num_dev_problems=1, num_test_problems=1)
    problems = load(config, seed=0, prompt_lengths=words_of)
    all_kept = load(mixed_config(tmp_path), seed=0, prompt_lengths=words_of).train
    assert pairs(problems.train, problems.dev, problems.test) == pairs(all_kept)
    assert [problems.origin[part] for part in ("train", "dev", "test")] == [1, 1, 1]


def test_with_a_reward_of_the_users_own_references_may_be_anything(tmp_path):
    config = mixed_config(tmp_path, rewards=["mine:reward"])
    problems = load(config, seed=0, prompt_lengths=words_of)
    assert {"\\frac{3", "???"} <= set(problems.train["solution"])
    assert problems.origin["unreadable_references"] == []


def test_when_nothing_is_left_the_reasons_are_said(tmp_path):
    path = write(tmp_path, ".jsonl", [{"prompt": "1?", "solution": "1"}, {"prompt": "1?", "solution": "2"}])
    with pytest.raises(ValueError, match=r"all its 2 problems are left out \(2 different answers\)"):
        load(RunConfig(dataset_name=path), seed=0)


def test_other_columns_are_mapped(tmp_path):
    rows = [
        {"question": f"{i}?", "answer": i, "prompt": [{"role": "user", "content": "wrapped"}], "level": i % 2}
        for i in range(4)
    ]
    config = RunConfig(
        dataset_name=write(tmp_path, ".parquet", rows),
        prompt_column="question",
        solution_column="answer",
        rewards=["accuracy", "mine:reward"],
    )
    train = load(config, seed=0).train
    assert pairs(train) == [(f"{i}?", str(i)) for i in range(4)]
    assert all(int(row["solution"]) % 2 == row["level"] for row in train)  # a reward may ask for it


def test_mapped_columns_that_are_missing_are_named(tmp_path):
    path = write(tmp_path, ".jsonl")
    with pytest.raises(ValueError, match=r"columns prompt, solution, level.*no column question.*prompt_column"):
        load(RunConfig(dataset_name=path, prompt_column="question"), seed=0)


def test_references_that_are_no_text_are_refused(tmp_path):
    path = write(tmp_path, ".jsonl", [{"prompt": "1?", "solution": ["1", "2"]}])
    with pytest.raises(ValueError, match=r"line 1 of .*solution is \['1', '2'\] where text or a number"):
        load(RunConfig(dataset_name=path), seed=0)


def messages(text):
    return [{"role": "system", "content": "Think."}, {"role": "user", "content": text}]


def test_conversations_pass_and_take_no_template(tmp_path):
    rows = [{"prompt": messages(text), "solution": "2"} for text in ("1 + 1?", "1+1?", "4 / 2?")]
    path = write(tmp_path, ".jsonl", rows)
    problems = load(RunConfig(dataset_name=path), seed=0)
    assert problems.origin["left_out"] == {"repeated": 1}
    assert sorted(row["prompt"][1]["content"] for row in problems.train) == ["1 + 1?", "4 / 2?"]
    with pytest.raises(ValueError, match="prompt_template is 'boxed', but the prompts of"):
        load(RunConfig(dataset_name=path, prompt_template="boxed"), seed=0)


@pytest.mark.parametrize("prompt", [7, None, [], [{"role": "user", "content": None}], [{"role": "user"}]])
def test_a_prompt_that_is_no_text_is_refused_with_its_row(tmp_path, prompt):
    path = write(tmp_path, ".jsonl", [{"prompt": prompt, "solution": "1"}])
    with pytest.raises(
        ValueError, match=r"line 1 of .*problems.jsonl has an unexpected form: prompt is .* where text or messages"
    ):
        load(RunConfig(dataset_name=path), seed=0)


@pytest.mark.parametrize("limit", [15, 30, 45])
def test_prompts_are_measured_by_the_models_tokenizer(tiny_model, tmp_path, limit):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    rows = [{"prompt": "go 15 to 8 need -7 " * i, "solution": str(i)} for i in range(1, 9)]
    config = RunConfig(dataset_name=write(tmp_path, ".jsonl", rows), max_prompt_length=limit)
    lengths = partial(count_tokens, load_tokenizer(tiny_model), path=tiny_model)
    kept = [row["solution"] for row in rows if len(tokenizer.encode(row["prompt"])) <= limit]
    assert 0 < len(kept) < len(rows)
    assert sorted(load(config, seed=0, prompt_lengths=lengths).train["solution"]) == kept


def test_messages_are_measured_as_the_chat_template_writes_them(tiny_model, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}need need{% endif %}"
    )
    tokenizer.save_pretrained(tmp_path)
    found = count_tokens(load_tokenizer(str(tmp_path)), [messages("go 15 to 8"), messages("go")], "x")
    assert found == [len(tokenizer.encode(f"Think.\n{text}\nneed need")) for text in ("go 15 to 8", "go")]
    tokenizer.chat_template += "{% if more %}{{ more }}{% endif %}"
    tokenizer.save_pretrained(tmp_path)
    longer = count_tokens(load_tokenizer(str(tmp_path)), [messages("go 15 to 8")], "x", more="take take take")
    assert longer == [len(tokenizer.encode("Think.\ngo 15 to 8\nneed needtake take take"))] != found[:1]


def test_conversations_that_the_chat_template_refuses_are_refused_in_a_sentence(tiny_model, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    with pytest.raises(ValueError, match=r"'x', whose tokenizer has no chat template, but the prompts are messages"):
        check_conversations(tokenizer, [messages("go")], "x")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{{ m['content'] }}{% endfor %}"
    )
    check_conversations(tokenizer, ["go", messages("go")[1:]], "x")
    with pytest.raises(ValueError, match=r"with the roles system, user: System role not supported\."):
        check_conversations(tokenizer, [messages("go")[1:], messages("go")], "x")


def test_an_evaluation_file_without_problems_is_refused(tmp_path):
    path = write(tmp_path, ".jsonl")
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"text": "1?"}) + "\n")
    with pytest.raises(ValueError, match=r"other.jsonl', whose columns are text: rename the column"):
        load(RunConfig(dataset_name=path, decontaminate_against=[str(other)]), seed=0)
    with pytest.raises(ValueError, match=r"decontaminate_against names '.*absent.jsonl': there is no such file"):
        load(RunConfig(dataset_name=path, decontaminate_against=[str(tmp_path / "absent.jsonl")]), seed=0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"prompt_template": "bxoed"}, "prompt_template is 'bxoed': choose one of boxed, code, answer_line, or null"),
        ({"prompt_template": "null"}, "prompt_template is 'null'"),
        ({"max_prompt_length": 0}, "max_prompt_length is 0: it must be 1 or more, or null"),
        ({"decontaminate_against": ["math_500"]}, "'math_500': choose among aime24, aime25, aime26, amc23, math500"),
        ({"dataset_file": "copy.jsonl"}, "dataset_file is 'copy.jsonl' but dataset_name is 'problems.jsonl'"),
        ({"dataset_name": "math", "dataset_file": "copy.tsv"}, "dataset_file is 'copy.tsv': it must end in .jsonl"),
        ({"dataset_name": "math", "dataset_config": "algebra"}, "dataset_config is 'algebra' but dataset_name 'math'"),
        ({"dataset_name": "math", "dataset_train_split": "test"}, "dataset_train_split is 'test' but"),
        ({"num_train_problems": 500}, "num_train_problems is 500, which nothing reads unless dataset_name is a task"),
        ({"dataset_name": "math", "num_train_problems": 500}, "num_train_problems is 500, which nothing reads"),
        ({"dataset_name": "who/what", "num_train_problems": 500}, "num_train_problems is 500, which nothing reads"),
        ({"dataset_name": WALK, "dataset_train_split": "test"}, "dataset_train_split is 'test' but dataset_name"),
        ({"dataset_name": WALK, "dataset_revision": "abc"}, "dataset_revision is 'abc' but dataset_name"),
        ({"dataset_name": WALK, "dataset_config": "main"}, "dataset_config is 'main' but dataset_name"),
        ({"dataset_name": "math", "prompt_column": "problem"}, "prompt_column is 'problem' but"),
        ({"dataset_name": "math", "solution_column": "answer"}, "solution_column is 'answer' but"),
        ({"dataset_name": "embedded:number_walk", "prompt_template": "boxed"}, "prompt_template is 'boxed' but"),
        ({"dataset_name": "embedded:number_walk", "max_prompt_length": 9}, "max_prompt_length is 9 but"),
        ({"dataset_name": "embedded:number_walk", "prompt_column": "q"}, "prompt_column is 'q' but"),
        ({"dataset_name": "embedded:number_walk", "decontaminate_against": ["aime24"]}, "decontaminate_against is ["),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_sentence(settings, said):
    with pytest.raises(ValueError) as refusal:
        RunConfig(**({"dataset_name": "problems.jsonl"} | settings))
    assert said in str(refusal.value) and "\n" not in str(refusal.value)


def test_the_file_of_the_page_is_read_by_training_and_by_evaluation(tmp_path):
    page = (REPOSITORY / "docs" / "data.md").read_text()
    line, recipe = re.search(r"^```\n(\{.*\})\n```\n\n```yaml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE).groups()
    row, settings = json.loads(line) | {"budget": 24}, yaml.safe_load(recipe)
    path = write(tmp_path, ".jsonl", [row])
    columns = {name: settings[name] for name in ("prompt_column", "solution_column") if name in settings}
    problems = load(RunConfig(dataset_name=path, rewards=["my_rewards:right"], **columns))
    assert problems.train.to_list() == [{"prompt": "What is 7 times 8?", "solution": "56", "budget": 24}]
    (question,) = questions.load(path)[1]
    assert (question.text, question.reference) == ("What is 7 times 8?", "56")
