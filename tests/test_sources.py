"""Known data sets, on small files that have their columns: what is read of a row, and what is refused.

The rows are made by hand after the sets' public cards and loaders; none is copied from a set.
"""

import itertools
import json
from decimal import Decimal

import datasets
import huggingface_hub
import pandas
import pytest
from datasets import Dataset

from entropy_grpo.config.run import RunConfig
from entropy_grpo.data import hub
from entropy_grpo.data.benchmarks import PUBLISHED
from entropy_grpo.data.sources import TRAINING, last_box, reference_in

from .loading import load

STILL = (
    "A conversation between User and Assistant. The User asks, the Assistant thinks.\nUser: {}\nAssistant:\n<think>\n"
)
GURU_END = "'Please output the final answer within"
GURU = "{} Please output the final answer within \\boxed{{}}."


def verl(content, answer, **more):
    return {
        "data_source": "math_dapo",
        "prompt": [{"role": "user", "content": content}],
        "ability": "MATH",
        "reward_model": {"ground_truth": answer, "style": "rule"},
        "extra_info": {"index": "9a9b6eb4", "split": "train"},
        **more,
    }


def dapo(question, answer):
    wrapped = (
        f"Solve the following math problem step by step.\n\n{question}\n\nRemember to put your answer on its own line"
    )
    return verl(wrapped, answer, prompt=question, solution=answer, source_prompt=verl(wrapped, answer)["prompt"])


def guru(question, answer, rate=0.5):
    return verl(GURU.format(question), answer, **{"apply_chat_template": True, "qwen2.5_7b_pass_rate": rate})


def math(problem, solution):
    return {"problem": problem, "level": "Level 5", "type": "Algebra", "solution": solution}


# Name -> [(row, question, answer)]; an empty answer is one that the row does not have.
ROWS = {
    "dapo_math": [
        (dapo("What is $2^{5}$?", "32"), "What is $2^{5}$?", "32"),
        (dapo("What is 1 - 4?", "-3"), "What is 1 - 4?", "-3"),
        (dapo("8 的阶乘是多少?", "40320"), "8 的阶乘是多少?", "40320"),
    ],
    "guru_math": [
        (guru("Find $\\{x\\}$ for x = 2.5.", "0.5"), "Find $\\{x\\}$ for x = 2.5.", "0.5"),
        (guru("Half of one?", "\\frac{1}{2}", float("nan")), "Half of one?", "\\frac{1}{2}"),
        (verl(GURU.format("Two lines\nof text?") + "\n", "7"), "Two lines\nof text?", "7"),
    ],
    "still_3": [
        (verl(STILL.format("How many legs has a dog?"), "4"), "How many legs has a dog?", "4"),
        (verl(STILL.format("Two\n\nlines, a User and {braces}"), "\\pi"), "Two\n\nlines, a User and {braces}", "\\pi"),
    ],
    "math": [
        (math("1?", "First \\boxed{8}, no: $\\boxed{\\frac{1}{2}}$."), "1?", "\\frac{1}{2}"),
        (math("2?", "So $\\boxed 7$."), "2?", "7"),
        (math("3?", "So $\\fbox{12}$."), "3?", "12"),
        (math("4?", "So $\\boxed {\\{1, 2\\}}$."), "4?", "\\{1, 2\\}"),
        (math("5?", "So $\\boxed{}$."), "5?", ""),
        (math("6?", "It is easy."), "6?", ""),
        (math("7?", "It never closes: \\boxed{3"), "7?", ""),
    ],
    "deepscaler": [
        ({"problem": "A?", "answer": "\\frac{3}{4}", "solution": ""}, "A?", "\\frac{3}{4}"),
        ({"problem": "B?", "answer": "", "solution": "See \\boxed{4}."}, "B?", ""),
    ],
    "gsm8k": [
        ({"question": "C?", "answer": "48/2 = <<48/2=24>>24. It cost #### and ####\n#### 1,072"}, "C?", "1072"),
        ({"question": "D?", "answer": "5 - 6 = <<5-6=-1>>-1\n#### -1"}, "D?", "-1"),
    ],
}  # fmt: skip
ROWS["dapo_math_en"] = ROWS["dapo_math"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pandas.DataFrame(rows).to_parquet(path)
    elif path.suffix == ".json":  # one array
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def pairs(problems):
    return sorted((row["prompt"], row["solution"]) for row in problems.train)


@pytest.mark.parametrize(
    ("name", "suffix"), [*itertools.product(TRAINING, [".parquet", ".jsonl"]), ("deepscaler", ".json")]
)
def test_a_row_is_read_for_its_bare_question_and_its_answer(name, suffix, tmp_path):
    path = write(tmp_path / f"rows{suffix}", [row for row, _, _ in ROWS[name]])
    problems = load(RunConfig(dataset_name=name, dataset_file=path), seed=0)
    assert pairs(problems) == sorted((question, answer) for _, question, answer in ROWS[name] if answer)
    assert sorted(problems.train.column_names) == ["prompt", "solution"]
    empty = sum(not answer for _, _, answer in ROWS[name])
    assert problems.origin["left_out"] == ({"no answer": empty} if empty else {})


def without(row, key):
    return {name: value for name, value in row.items() if name != key}


BROKEN = {
    "dapo_math": [
        (without(dapo("1?", "1"), "solution"), "solution was expected and is missing"),
        (dapo("1?", "1") | {"solution": None}, "solution is None, but text was expected"),
        (dapo(" ", "1"), "the question is empty"),
    ],
    "guru_math": [
        (verl("1? Put it into \\boxed{}.", "1"), GURU_END),
        (guru("", "1"), "the question is empty"),
        (guru("1?", "1") | {"reward_model": {"style": "rule"}}, "reward_model.ground_truth"),
        (guru("1?", "1") | {"prompt": []}, "a list of one message was expected"),
        (guru("1?", "1") | {"prompt": guru("1?", "1")["prompt"] * 2}, "a list of one message was expected"),
    ],
    "still_3": [
        (verl("1?", "1"), "one 'User:'"),
        (verl(STILL.format("User: 1?"), "1"), "one 'User:'"),
        (verl("User: 1?", "1"), "a later 'Assistant:'"),
        (verl("Assistant: what? User: 1?", "1"), "a later 'Assistant:'"),
    ],
    "math": [({"problem": "1?", "answer": "1"}, "solution was expected and is missing")],
    "deepscaler": [({"problem": "1?", "answer": 4}, "answer is 4, but text was expected")],
    "gsm8k": [({"question": "1?", "answer": "It is 72."}, "'####' was expected")],
}


@pytest.mark.parametrize(("name", "row", "said"), [(n, row, said) for n, rows in BROKEN.items() for row, said in rows])
def test_a_row_of_another_form_is_named(name, row, said, tmp_path):
    path = write(tmp_path / "rows.jsonl", [row])
    with pytest.raises(ValueError) as refusal:
        load(RunConfig(dataset_name=name, dataset_file=path), seed=0)
    message = str(refusal.value)
    assert message.startswith(f"{name}: line 1 of {path} has") and said in message and "\n" not in message


def test_the_row_is_counted(tmp_path):
    rows = [math(f"{i}?", f"\\boxed{{{i}}}") for i in range(5)]
    rows[3]["problem"] = ""
    path = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(
        ValueError, match=r"math: line 4 of .*rows.jsonl has an unexpected form: the question is empty"
    ):
        load(RunConfig(dataset_name="math", dataset_file=path), seed=0)


@pytest.mark.parametrize("inner", ["3", "\\frac{1}{\\sqrt{2}}", "\\{a, {b}\\}", "x = \\text{ {y} }z", ""])
def test_braces_of_the_last_box_are_matched(inner):
    assert last_box(f"\\boxed{{0}} then {{ }} $\\fbox{{{inner}}}$ and {{more}}") == inner


def fake_hub(monkeypatch, answer):
    """Both ways to the Hub end in `answer(id, what, revision)`; local files load as they do."""
    real = datasets.load_dataset

    def load(id, *words, **more):
        return real(id, **more) if "data_files" in more else answer(id, (*words, more["split"]), more["revision"])

    monkeypatch.setattr(hub, "load_dataset", load)
    monkeypatch.setattr(
        hub, "hf_hub_download", lambda id, file, repo_type, revision: answer(id, (repo_type, file), revision)
    )


# What data sets' public loaders pin; None where there is nothing to pin.
PINNED = {
    "dapo_math": ("open-r1/DAPO-Math-17k-Processed", ("all", "train"), "31dd309567e3da778038cc87d868b6097a3ccf68"),
    "dapo_math_en": ("open-r1/DAPO-Math-17k-Processed", ("en", "train"), "31dd309567e3da778038cc87d868b6097a3ccf68"),
    "guru_math": (
        "LLM360/guru-RL-92k",
        ("dataset", "train/math__combined_54.4k.parquet"),
        "2e2790a962a3c099bfb5ea61389cbf98a5ea439b",
    ),
    "still_3": ("RUC-AIBOX/STILL-3-RL-90K", (None, "train"), None),
    "math": (
        "DigitalLearningGmbH/MATH-lighteval",
        ("default", "train"),
        "0530c78699ea5e8eb5530600900e1f328b48acad",
    ),
    "deepscaler": (
        "agentica-org/DeepScaleR-Preview-Dataset",
        ("dataset", "deepscaler.json"),
        "b6ae8c60f5c1f2b594e2140b91c49c9ad0949e29",
    ),
    "gsm8k": ("openai/gsm8k", ("main", "train"), "740312add88f781978c0658806c59bc2815b9866"),
}


@pytest.mark.parametrize("name", TRAINING)
def test_what_is_asked_of_the_hub_is_pinned(name, monkeypatch):
    asked = []

    def answer(*request):
        asked.append(request)
        raise ConnectionError("the Hub is away\nand more")

    fake_hub(monkeypatch, answer)
    with pytest.raises(ValueError) as refusal:
        load(RunConfig(dataset_name=name), seed=0)
    assert asked == [PINNED[name]]
    assert str(refusal.value) == f"dataset_name is {name!r}, which does not load: the Hub is away"
    with pytest.raises(ValueError):
        load(RunConfig(dataset_name=name, dataset_revision="abc"), seed=0)
    assert asked[1] == (*PINNED[name][:2], "abc")


EXPECTED_ROWS = {"dapo_math": 17398, "dapo_math_en": 14116, "guru_math": 54404, "math": 7500, "deepscaler": 40315,
                 "gsm8k": 7473}  # fmt: skip


@pytest.mark.parametrize("name", TRAINING)
def test_another_number_of_rows_is_refused_where_the_number_is_known(name, monkeypatch, tmp_path):
    rows = [row for row, _, _ in ROWS[name]]

    def answer(id, what, revision):
        return write(tmp_path / "rows.parquet", rows) if what[0] == "dataset" else Dataset.from_list(rows)

    fake_hub(monkeypatch, answer)
    if name not in EXPECTED_ROWS:
        assert len(load(RunConfig(dataset_name=name), seed=0).train) == len(rows)
    else:
        with pytest.raises(ValueError) as refusal:
            load(RunConfig(dataset_name=name), seed=0)
        message = str(refusal.value)
        assert f"{len(rows)} rows, but {EXPECTED_ROWS[name]} were expected" in message and name in message
        # A commit of the user's own has a number of rows of its own.
        problems = load(RunConfig(dataset_name=name, dataset_revision="abc"), seed=0)
        assert problems.origin["revision"] == "abc" and problems.origin["rows"] == len(rows)


EVALUATION_ROWS = {
    "aime24": [{"id": 60 + i, "problem": f"AIME {i}?", "solution": "long", "answer": f"{i:03d}"} for i in range(30)],
    "aime25": [{"problem": f"Newer {i}?", "answer": "70", "id": str(i)} for i in range(30)],
    "aime26": [{"id": i + 1, "problem": f"Newest {i}?", "answer": "277"} for i in range(30)],
    "amc23": [{"id": i, "question": f"AMC {i}?", "answer": 27.0, "url": "2023_AMC_12A"} for i in range(40)],
    "math500": [
        {"problem": f"Held {i}?", "solution": "\\boxed{1}", "answer": "1", "subject": "Algebra", "level": 5}
        for i in range(500)
    ],
    "minerva": [{"question": f"Atom {i}?", "answer": "4.5e33"} for i in range(272)],
    "olympiadbench": [{"id": i, "question": f"Olympiad {i}?", "final_answer": [f"${i}$"]} for i in range(674)],
}


@pytest.fixture
def cached_evaluation_sets(tmp_path, monkeypatch):
    """The Hub's own cache with the evaluation sets at their commits, read by the real client without a network."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    for name, rows in EVALUATION_ROWS.items():
        source = PUBLISHED[name].source
        folder = cache / f"datasets--{source.hub_id.replace('/', '--')}" / "snapshots" / source.revision
        write(folder / source.file, rows)
    return cache


def test_problems_of_evaluation_sets_are_left_out(cached_evaluation_sets, tmp_path):
    taken = [
        "AIME 3?",
        "aime 4 ?",
        "Newer 29?",
        "Newest 0?",
        "AMC 0?",
        "$\\text{held}$ 7?",
        "HELD 499?",
        "held 8?",
        "atom 1?",
        "Olympiad 2?",
    ]
    free = ["AIME 30?", "Newer?", "AMC 41?", "Held 500?"]
    rows = [{"prompt": question, "solution": str(i)} for i, question in enumerate(taken + free)]
    path = write(tmp_path / "train.jsonl", rows)
    config = RunConfig(dataset_name=path, decontaminate_against=list(PUBLISHED))
    problems = load(config, seed=0)
    assert problems.origin["left_out"] == {
        "in aime24": 2,
        "in aime25": 1,
        "in aime26": 1,
        "in amc23": 1,
        "in math500": 2,
        "in minerva": 1,
        "in olympiadbench": 1,
    }
    assert sorted(problems.train["prompt"]) == sorted([*free, "$\\text{held}$ 7?"])


def test_an_evaluation_set_with_other_rows_is_refused(cached_evaluation_sets, tmp_path):
    source = PUBLISHED["aime24"].source
    folder = cached_evaluation_sets / "datasets--HuggingFaceH4--aime_2024" / "snapshots" / source.revision
    write(folder / source.file, EVALUATION_ROWS["aime24"] * 32)
    path = write(tmp_path / "train.jsonl", [{"prompt": "1?", "solution": "1"}])
    with pytest.raises(ValueError, match=r"'aime24'.*has 960 rows, but 30 were expected"):
        load(RunConfig(dataset_name=path, decontaminate_against=["aime24"]), seed=0)


def test_an_evaluation_set_that_does_not_load_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    path = write(tmp_path / "train.jsonl", [{"prompt": "1?", "solution": "1"}])
    with pytest.raises(ValueError, match="decontaminate_against names 'math500', which does not load"):
        load(RunConfig(dataset_name=path, decontaminate_against=["math500"]), seed=0)


def test_a_whole_number_of_any_length_is_a_reference():
    """A float cannot hold it, and has no decimal point if it is whole itself."""
    assert reference_in({"s": 10**400}, "s") == "1" + 400 * "0"
    assert [reference_in({"s": value}, "s") for value in (7.0, 0.5, -3)] == ["7", "0.5", "-3"]
    for value in (float("inf"), Decimal("-Infinity")):
        with pytest.raises(ValueError, match=r"s is .* where text or a number was expected"):
            reference_in({"s": value}, "s")
