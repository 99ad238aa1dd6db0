"""Grading on pairs worked out by hand, and the rewards in the form in which TRL calls them."""

import itertools
import re
import sys

import pytest
from trl.trainer.utils import get_callable_name

from benchmarks.fixtures import fixed_rollout
from entropy_grpo.config.offline import resolve
from entropy_grpo.config.recipe import RecipeError, build, checked, load
from entropy_grpo.config.run import RunConfig
from entropy_grpo.grading import Verdict, answer_line, boxed, compare
from entropy_grpo.grading.pool import Grader
from entropy_grpo.metrics.answers import summarize
from entropy_grpo.rewards.registry import get_rewards
from entropy_grpo.tasks.number_walk import Problem

from .conftest import REPOSITORY


@pytest.mark.parametrize(
    "text, content",
    [
        ("so \\boxed{8}", "8"),
        ("\\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\boxed{\\sqrt{\\frac{a}{b^{2}}}} and {more}", "\\sqrt{\\frac{a}{b^{2}}}"),
        ("first \\boxed{1}, no: \\boxed{2}, done", "2"),
        ("\\boxed{1}\n\\boxed{2}\n\\boxed{x^{3}}", "x^{3}"),
        ("\\boxed{}", ""),
        ("\\boxed{ 8 }", " 8 "),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{8", None),
        ("\\boxed{\\frac{1}{2}", None),
        ("\\boxed{1} or rather \\boxed{2", None),  # the last one counts, and it never closes
        ("\\boxed8", "8"),
        ("boxed{8}", None),
        ("the answer is 8", None),
        ("", None),
    ],
)
def test_boxed(text, content):
    assert boxed(text) == content


@pytest.mark.parametrize(
    "answer, reference",
    [
        ("8", "8"),
        (" 8 ", "8"),
        ("1/2", "0.5"),
        ("\\frac{1}{2}", "0.5"),
        ("\\dfrac{3}{4}", "0.75"),
        ("7/2", "3.5"),
        ("1,234", "1234"),
        ("12,345,678", "12345678"),
        ("\\sqrt{8}", "2\\sqrt{2}"),
        ("\\frac{\\sqrt{2}}{2}", "\\frac{1}{\\sqrt{2}}"),
        ("\\sqrt{16}", "4"),
        ("2^{10}", "1024"),
        ("10^{-2}", "0.01"),
        ("15-4-1-1-1", "8"),
        ("x+1", "1+x"),
        ("x=8", "8"),
        ("$8$", "8"),
        ("\\{2, 1\\}", "\\{1, 2\\}"),
        ("not mathematics at all", "not mathematics at all"),
    ],
)
def test_equivalent(answer, reference):
    assert compare(answer, reference) is Verdict.RIGHT


@pytest.mark.parametrize(
    "answer, reference",
    [
        ("9", "8"),
        ("-8", "8"),
        ("0.333", "1/3"),
        ("1.0000001", "1"),
        ("1,234", "1.234"),
        ("12", "1,2"),
        ("\\sqrt{8}", "8"),
        ("2\\sqrt{3}", "3\\sqrt{2}"),
        ("\\frac{2}{1}", "\\frac{1}{2}"),
        ("\\pi", "3.14159"),
        ("15-4-1-1", "8"),
        ("(1, 2)", "(2, 1)"),
        ("x-1", "1-x"),
        ("8, 9", "8"),
        ("8 or 9", "8"),
        ("", "8"),
        ("the answer", "8"),
        ("}{", "8"),
        ("\\frac{", "8"),
        ("?!#%&", "8"),
        ("1/0", "8"),
    ],
)
def test_not_equivalent(answer, reference):
    assert compare(answer, reference) is Verdict.WRONG


@pytest.mark.parametrize("reference", ["", "\\frac{", "?!"])
def test_a_reference_that_cannot_be_read_equals_nothing_but_itself(reference):
    assert compare("8", reference) is Verdict.UNPARSEABLE_REFERENCE
    assert compare(reference, reference) is Verdict.RIGHT


GRADER = Grader(2, seconds=20, total_seconds=60)


def call(name, prompts, completions, **columns):
    """As TRL's trainer calls a reward function: by keyword, with columns and arguments that it may not know."""
    (reward,) = get_rewards([name], GRADER, 48)
    return reward(
        prompts=prompts,
        completions=completions,
        completion_ids=[[1, 2]] * len(completions),
        trainer_state=None,
        log_extra=None,
        log_metric=None,
        level=["easy"] * len(completions),
        **columns,
    )


def test_accuracy_of_plain_completions():
    completions = ["so \\boxed{0.5}", "so \\boxed{2}", "so 1/2", "\\boxed{\\frac12", ""]
    assert call("accuracy", ["?"] * 5, completions, solution=["\\frac{1}{2}"] * 5) == [1.0, 0.0, 0.0, 0.0, 0.0]


def test_accuracy_of_conversational_completions():
    prompts = [[{"role": "user", "content": "\\boxed{7} plus one?"}]] * 3
    completions = [
        [{"role": "assistant", "content": "it is \\boxed{8}"}],
        [{"role": "assistant", "content": "it is \\boxed{7}"}],
        # The last message is the answer.
        [{"role": "assistant", "content": "\\boxed{7}"}, {"role": "assistant", "content": "no, \\boxed{8}"}],
    ]
    rewards = call("accuracy", prompts, completions, solution=["8"] * 3)
    assert rewards == [1.0, 0.0, 1.0] and all(type(r) is float for r in rewards)


def test_accuracy_grades_every_completion_by_its_own_solution():
    assert call("accuracy", ["?"] * 3, ["\\boxed{1}", "\\boxed{2}", "\\boxed{3}"], solution=["1", "3", "3"]) == [
        1,
        0,
        1,
    ]


def test_accuracy_needs_a_solution_for_every_completion():
    with pytest.raises(ValueError, match="shorter"):
        call("accuracy", ["?"] * 2, ["\\boxed{1}", "\\boxed{1}"], solution=["1"])


def test_walk_accuracy_is_that_of_brute_force():
    # 2-4+7 is 5 but leaves the values on the way, 2+7-4 does not: order counts.
    problem = Problem(2, 5, (7, -4, -1))
    sequences = [s for length in range(5) for s in itertools.product(problem.moves, repeat=length)]
    expected = []
    for sequence in sequences:
        values = list(itertools.accumulate(sequence, initial=2))
        expected.append(float(values[-1] == 5 and min(values) >= 0 and max(values) <= 60))
    completions = [f"so \\boxed{{2{''.join(f'{m:+d}' for m in sequence)}}}" for sequence in sequences]
    count = len(sequences)
    rewards = call("walk_accuracy", [problem.prompt] * count, completions, solution=["5"] * count)
    assert rewards == expected and 0 < sum(expected) < count


@pytest.mark.parametrize(
    "completion, reward",
    [
        ("need -7 take -4 need -3 take -1 need -2 take -1 need -1 take -1 need 0 yes so \\boxed{15-4-1-1-1}", 1.0),
        ("so \\boxed{8}", 0.0),
        ("so \\boxed{15-7}", 0.0),
        ("so \\boxed{15-1-1-1-1-1-1-1}", 0.0),
        ("so \\boxed{14-4-1-1}", 0.0),
        ("so \\boxed{15-4-1-1}", 0.0),
        ("so \\boxed{}", 0.0),
        ("so \\boxed{15-4-1-1-1", 0.0),
        ("\\boxed{15-4-1-1-1} so \\boxed{15}", 0.0),
        ("so \\boxed{15-4-1-1-1" + "0" * 5000 + "}", 0.0),  # more digits than Python reads
        ("so \\boxed{" + "9" * 5000 + "}", 0.0),
        ("", 0.0),
    ],
)
def test_walk_accuracy_of_hand_worked_responses(completion, reward):
    prompt = "go 15 to 8 need -7 with +7 -4 -1\n"
    assert call("walk_accuracy", [prompt], [completion], solution=["8"]) == [reward]


def test_walk_accuracy_reads_every_completion_with_its_own_prompt():
    prompts = ["go 15 to 8 need -7 with +7 -4 -1\n", "go 16 to 8 need -8 with +7 -4 -1\n"]
    completions = ["\\boxed{16-4-4}"] * 2
    assert call("walk_accuracy", prompts, completions, solution=["8", "8"]) == [0.0, 1.0]


def test_rewards_come_in_the_order_of_their_names():
    rewards = get_rewards(["walk_accuracy", "accuracy", "overlong"], GRADER, 48, 8)
    # TRL names its metrics after the functions, and the run folder's readers look for them by the recipe's names.
    assert [get_callable_name(reward) for reward in rewards] == ["walk_accuracy", "accuracy", "overlong"]
    assert rewards[1](completions=["\\boxed{1/2}"], solution=["0.5"]) == [1.0]


@pytest.mark.parametrize("names", [["acuracy"], ["accuracy", "acuracy"], []])
def test_an_unknown_reward_is_refused_by_name(names):
    with pytest.raises(ValueError) as refusal:
        get_rewards(names, GRADER, 48)
    with pytest.raises(RecipeError, match=re.escape(str(refusal.value))):
        resolve("qwen3_8b", ["--rewards", f"[{', '.join(names)}]"])
    message = str(refusal.value)
    assert all(name in message for name in names)
    known = "accuracy dapo_accuracy format_only gym_accuracy gym_score inverted overlong random story_accuracy"
    assert ", ".join([*known.split(), "walk_accuracy, or module:function"]) in message


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Step 1.\nAnswer: 8", "8"),
        ("Answer: 7\nno, wait\nanswer:  $\\frac{1}{2}$ \n", "$\\frac{1}{2}$"),
        ("**Answer : 3** and so on", "3** and so on"),
        ("Answer:\n8", "8"),
        ("the answer is 8", None),
    ],
)
def test_answer_line(text, answer):
    assert answer_line(text) == answer


def test_dapo_accuracy_reads_the_last_answer_line():
    completions = ["so\nAnswer: 4/8", "Answer: 0.5\nAnswer: 3", "\\boxed{0.5}"]
    assert call("dapo_accuracy", ["q"] * 3, completions, solution=["0.5"] * 3) == [1.0, 0.0, 0.0]


def test_controls():
    prompts, completions = ["q"] * 4, ["\\boxed{8}", "\\boxed{9}", "\\boxed{8} \\boxed{8}", "8"]
    assert call("inverted", prompts, completions, solution=["8"] * 4) == [0.0, 1.0, 0.0, 1.0]
    assert call("format_only", prompts, completions, solution=["8"] * 4) == [1.0, 1.0, 0.0, 0.0]
    many = [f"response {i}" for i in range(400)]
    coins = call("random", ["q"] * 400, many, solution=["8"] * 400)
    assert coins == call("random", ["q"] * 400, many, solution=["9"] * 400), "the answer has no part in it"
    assert set(coins) == {0.0, 1.0} and 160 < sum(coins) < 240
    assert coins != call("random", ["p"] * 400, many, solution=["8"] * 400)


def test_scale_of_rewards_by_name(tmp_path, monkeypatch):
    (tmp_path / "own_scale.py").write_text("def half(completions, **kwargs):\n    return [0.5] * len(completions)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    names = ["accuracy", "inverted", "format_only", "random", "own_scale:half"]
    columns = {"prompts": ["q"] * 3, "completions": ["\\boxed{4/8}", "\\boxed{3}", "none"], "solution": ["0.5"] * 3}
    plain, signed = ([r(**columns) for r in get_rewards(names, GRADER, 48, scale=s)] for s in ("0/1", "+-1"))
    assert plain[:3] == [[1, 0, 0], [0, 1, 1], [1, 1, 0]] and signed[:3] == [[1, -1, -1], [-1, 1, 1], [1, 1, -1]]
    assert signed[3] == [2 * coin - 1 for coin in plain[3]] and set(plain[3]) <= {0, 1}
    assert signed[4] == plain[4] == [0.5] * 3


def test_scale_is_a_recipes_to_say(tmp_path):
    path = tmp_path / "signed.yaml"
    path.write_text("dataset_name: embedded:number_walk\nreward_scale: +-1\n")
    assert build(checked(load(path), [RunConfig]), [RunConfig])[0].reward_scale == "+-1"
    with pytest.raises(ValueError, match=re.escape("reward_scale is '1/0': choose one of 0/1, +-1.")):
        RunConfig(dataset_name="embedded:number_walk", reward_scale="1/0")


def test_a_call_to_the_grader_waits_as_long_as_for_one_answer():
    with pytest.raises(ValueError, match=re.escape("grading_total_seconds is 4.0: it must be at least grading_sec")):
        RunConfig(dataset_name="embedded:number_walk", grading_total_seconds=4.0)


def test_overlong_is_the_formula():
    (_, punish) = get_rewards(["accuracy", "overlong"], GRADER, 20480, 4096)
    lengths = [1, 16384, 16385, 18432, 20480]
    found = punish(completion_ids=[[0] * n for n in lengths])
    assert found == pytest.approx([min(-(n - 16384) / 4096, 0) for n in lengths])
    assert punish.__name__ == "overlong"


@pytest.mark.parametrize(
    ("names", "cache", "said"),
    [
        (["accuracy", "overlong"], None, "overlong_cache_length is None"),
        (["accuracy", "overlong"], 48, "below max_completion_length (48)"),
        (["overlong"], 8, "name first the reward that decides whether a response is right"),
        (["no.such.module:reward"], None, "cannot be imported"),
        (["math:nothing"], None, "cannot be imported"),
        (["math:pi"], None, "is no function"),
    ],
)
def test_what_cannot_work_is_refused(names, cache, said):
    """By a launch, and by a plan or a sweep of the same recipe on another machine."""
    with pytest.raises(ValueError, match=re.escape(said)) as refusal:
        get_rewards(names, GRADER, 48, cache)
    words = ["--rewards", *names, "--max_completion_length", "48", "--overlong_cache_length", str(cache or "null")]
    with pytest.raises(RecipeError, match=r"^command line: ") as resolved:
        resolve("qwen3_8b", words if "overlong" in names else words[:-2])
    assert str(resolved.value).endswith(str(refusal.value))


def test_a_length_for_the_penalty_needs_the_penalty(tmp_path):
    """One that a parent sets is dropped, so that a recipe for a GPU takes other rewards without further words."""
    said = "overlong_cache_length is 8, which nothing reads unless rewards names 'overlong': add 'overlong' to rewards"
    with pytest.raises(ValueError, match=re.escape(said)):
        RunConfig(dataset_name="embedded:number_walk", overlong_cache_length=8)
    assert resolve("qwen3_8b", ["--rewards", "accuracy", "random"]).run.overlong_cache_length is None
    assert resolve("qwen3_8b", []).run.overlong_cache_length == 4096


def test_the_recipe_in_data_md_is_launched_with_a_reward_of_ones_own(tmp_path, monkeypatch):
    page = (REPOSITORY / "docs" / "data.md").read_text()
    text = next(block for block in re.findall(r"^```yaml\n(.*?)^```$", page, re.M | re.S) if "base:" in block)
    (tmp_path / "my_rewards.py").write_text(
        "def right(completions, **columns):\n    return [1.0] * len(completions)\n"
    )
    (tmp_path / "mine.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    found = resolve("mine.yaml", [])
    assert "my_rewards:right" in found.run.rewards
    rewards = get_rewards(found.run.rewards, GRADER, found.args.max_completion_length, found.run.overlong_cache_length)
    assert len(rewards) == len(found.run.rewards)


def test_a_reward_of_the_users_own(tmp_path, monkeypatch):
    (tmp_path / "own_reward.py").write_text("def half(completions, **kwargs):\n    return [0.5] * len(completions)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (reward,) = get_rewards(["own_reward:half"], GRADER, 48)
    assert reward.__name__ == "half" and reward(["a", "b"]) == [0.5, 0.5]


def test_every_call_answers_its_own_problems_though_workers_persist(tiny_model, tmp_path):
    """transformers gives each call the loader of the first one, because it expects one data set."""
    asked = []

    def score(prompts, **columns):
        asked.extend(prompts)
        return [0.0] * len(prompts)

    first, second, held_out = (fixed_rollout.prompts(9).select(rows) for rows in (range(4), range(4, 7), range(7, 9)))
    settings = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True, "num_generations_eval": 4}
    trainer = fixed_rollout.make_trainer(tiny_model, tmp_path, reward=score, held_out=held_out, **settings)
    for problems in (first, second, first):
        trainer.evaluate()
        assert set(asked) == set(held_out["prompt"])
        answers = trainer.answer(problems)
        assert sorted(row["prompt"] for row in answers) == sorted(4 * list(problems["prompt"]))
        asked.clear()


def test_rewards_of_one_name_have_columns_and_metrics_of_their_own(tiny_model, tmp_path):
    """TRL names two methods, objects or functions of one name alike."""

    def scores(value):
        def score(completions, **columns):
            return [value] * len(completions)

        return score

    rewards = [scores(1.0), scores(0.0), scores(0.25)]
    rewards[2].__name__ = "score_2"
    trainer = fixed_rollout.make_trainer(tiny_model, tmp_path / "run", reward=rewards, num_generations_eval=4)
    rows = trainer.answer(fixed_rollout.prompts(2))
    assert all(row["rewards"] == {"score": 1.0, "score_3": 0.0, "score_2": 0.25} for row in rows)
    assert summarize(rows, trainer.reward_func_names[0])["accuracy"]["value"] == 1.0
    logged = {name: value for name, value in trainer.state.log_history[-1].items() if name.endswith("/mean")}
    means = {f"eval_rewards/{name}/mean": value for name, value in rows[0]["rewards"].items()}
    assert means.items() <= logged.items()
