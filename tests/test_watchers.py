"""Each watcher on a planted fault, none on a healthy run; and what a warning and a stop do to a real one."""

import random
from pathlib import Path

import pytest

from benchmarks.fixtures import fixed_rollout
from entropy_grpo import EntropyForkGRPOConfig
from entropy_grpo.evaluation.callback import FAILURES, BenchmarkCallback
from entropy_grpo.monitoring.watchers import BOXED, WATCHERS, Log
from entropy_grpo.rewards.registry import CONTROLS, GRADED
from entropy_grpo.runs import files
from entropy_grpo.runs.folder import RunFolder
from entropy_grpo.tasks.registry import by_reward

STEPS = 60


def healthy(step, rng):
    """A row as a run logs it that learns as it should."""
    progress = step / STEPS
    noise = rng.uniform(0.9, 1.1)
    row = {
        "step": step,
        "reward": 0.2 + 0.4 * progress * noise,
        "rewards/accuracy/mean": 0.2 + 0.4 * progress * noise,
        "entropy/mean": 0.5 * (1 - 0.5 * progress) * noise,
        "entropy/p95": 2.0 * (1 - 0.4 * progress) * noise,
        "completions/mean_length": 300 * (1 + 0.5 * progress) * noise,
        "completions/clipped_ratio": 0.05 * noise,
        "clip_ratio/kept_low": 0.002 * noise,
        "clip_ratio/kept_high": 0.01 * noise,
        "selection/kept_fraction": 0.2 * rng.uniform(0.8, 1.2),
        "sampling/sampling_logp_difference/mean": 0.01 * noise,
        "quality/no_box": 0.3 * (1 - progress),
        "quality/format_entropy": 0.9 * (1 - 0.4 * progress) * noise,
        "grading/timeouts": 0.001,
        "groups/all_wrong": 0.4 * (1 - progress),
        "groups/all_right": 0.2 * progress,
        "groups/one_right": 0.2 * noise,
    }
    return row | ({"eval_accuracy": 0.2 + 0.3 * progress * noise} if step % 10 == 0 else {})


# By watcher, what a fault does to a row from the middle of the run on.
FAULTS = {
    "entropy_collapse": lambda row: {"entropy/p95": 0.2, "entropy/mean": 0.05},
    "entropy_explosion": lambda row: {"entropy/mean": 3.0, "entropy/p95": 9.0},
    "length_collapse": lambda row: {"completions/mean_length": 40.0},
    "length_runaway": lambda row: {"completions/clipped_ratio": 0.7, "completions/mean_length": 2000.0},
    "reward_hacking": lambda row: {"reward": 0.9} | ({"eval_accuracy": 0.1} if "eval_accuracy" in row else {}),
    "clip_rate": lambda row: {"clip_ratio/kept_high": 0.4},
    "kept_fraction": lambda row: {"selection/kept_fraction": 0.05},
    "sampler_gap": lambda row: {"sampling/sampling_logp_difference/mean": 0.8},
    "format_collapse": lambda row: {"quality/format_entropy": 0.01},
    "verifier_timeouts": lambda row: {"grading/timeouts": 0.3},
    "lucky_hits": lambda row: {"groups/all_wrong": 0.9, "groups/one_right": 0.09, "groups/all_right": 0.0},
}


def rows_of(seed, fault=None, until=STEPS):
    rng = random.Random(seed)
    rows = [healthy(step, rng) for step in range(1, until + 1)]
    return [row | (FAULTS[fault](row) if fault and row["step"] > STEPS // 2 else {}) for row in rows]


def fired(rows, kept_share=0.2):
    """By watcher that ever speaks, the step at which it does."""
    found = {}
    for end in range(1, len(rows) + 1):
        log = Log(rows[:end], kept_share)
        for name, rule in WATCHERS.items():
            if name not in found and rule(log) is not None:
                found[name] = rows[end - 1]["step"]
    return found


@pytest.mark.parametrize("name", WATCHERS)
def test_a_watcher_finds_its_fault_and_no_other(name):
    found = fired(rows_of(1, name))
    assert list(found) == [name]
    assert STEPS // 2 < found[name] <= STEPS
    sentence = WATCHERS[name](Log(rows_of(1, name), 0.2))
    assert "nan" not in sentence and sentence.endswith(".")


def test_boxes_that_are_unlearned_are_found():
    rows = [row | {"quality/no_box": 0.1 if row["step"] < 30 else 0.8} for row in rows_of(1)]
    assert list(fired(rows)) == ["format_collapse"]


def test_boxes_that_no_reward_reads_may_go():
    """TRL's metrics name the rewards. The spread of formats counts for any of them."""
    boxless = [row | {"quality/no_box": 0.1 if row["step"] < 30 else 0.8} for row in rows_of(1)]
    uniform = [row | {"quality/format_entropy": 0.01 if row["step"] > 30 else 0.9} for row in rows_of(1)]
    for name, reads in (("dapo_accuracy", False), ("my_reward", False), ("gym_accuracy", True), ("format_only", True)):
        for rows, expected in ((boxless, reads), (uniform, True)):
            renamed = [{key.replace("/accuracy/", f"/{name}/"): value for key, value in row.items()} for row in rows]
            assert (list(fired(renamed)) == ["format_collapse"]) is expected


def test_rewards_that_read_a_box_are_those_that_find_an_answer_in_one():
    """A walk's answer has to use the moves of its prompt."""
    prompt, response = "go 2 to 5 need +3 with -4 -3 +6\n", r"\boxed{2+6-3}"
    columns = {"prompts": [prompt], "completions": [response]}
    for name, task in by_reward().items():
        assert (name in BOXED) == (task.answer(prompt, response) is not None), name
    for name, answers in GRADED.items():
        assert (name in BOXED) == (answers(**columns) != [None]), name
    for name, judge in CONTROLS.items():
        assert (name in BOXED) == (judge(**columns) == [1.0] and name != "random"), name


# By watcher, metrics as (mean at the start, recent mean): at the limit, where nothing is said, and just beyond it.
LIMITS = [
    ("entropy_collapse", {"step_entropy/p95": (2.0, 0.61)}, {"step_entropy/p95": (2.0, 0.59)}),
    ("entropy_explosion", {"step_entropy/mean": (0.5, 1.1)}, {"step_entropy/mean": (0.5, 1.11)}),
    ("entropy_collapse", {"entropy/p95": (2.0, 0.61)}, {"entropy/p95": (2.0, 0.59)}),
    ("entropy_explosion", {"entropy/mean": (0.5, 1.1)}, {"entropy/mean": (0.5, 1.11)}),
    ("length_collapse", {"completions/mean_length": (300, 120)}, {"completions/mean_length": (300, 119)}),
    ("length_runaway", {"completions/clipped_ratio": (0.1, 0.3)}, {"completions/clipped_ratio": (0.1, 0.31)}),
    ("length_runaway", {"completions/clipped_ratio": (0.25, 0.5)}, {"completions/clipped_ratio": (0.25, 0.51)}),
    (
        "clip_rate",
        {"clip_ratio/kept_low": (0, 0.125), "clip_ratio/kept_high": (0, 0.0625)},
        {"clip_ratio/kept_low": (0, 0.125), "clip_ratio/kept_high": (0, 0.08)},
    ),
    ("kept_fraction", {"selection/kept_fraction": (0.2, 0.265)}, {"selection/kept_fraction": (0.2, 0.275)}),
    ("kept_fraction", {"selection/kept_fraction": (0.2, 0.135)}, {"selection/kept_fraction": (0.2, 0.125)}),
    (
        "sampler_gap",
        {"sampling/sampling_logp_difference/mean": (0, 0.095)},
        {"sampling/sampling_logp_difference/mean": (0, 0.105)},
    ),
    ("format_collapse", {"quality/no_box": (0.25, 0.5)}, {"quality/no_box": (0.25, 0.51)}),
    ("format_collapse", {"quality/format_entropy": (0.8, 0.125)}, {"quality/format_entropy": (0.8, 0.115)}),
    ("format_collapse", {"quality/format_entropy": (0.29, 0)}, {"quality/format_entropy": (0.31, 0)}),
    ("verifier_timeouts", {"grading/timeouts": (0, 0.0195)}, {"grading/timeouts": (0, 0.0205)}),
    (
        "lucky_hits",
        {"groups/all_wrong": (0, 0.5), "groups/all_right": (0, 0), "groups/one_right": (0, 0.5)},
        {"groups/all_wrong": (0, 0.51), "groups/all_right": (0, 0), "groups/one_right": (0, 0.49)},
    ),
    (
        "lucky_hits",
        {"groups/all_wrong": (0, 0.75), "groups/all_right": (0, 0.125), "groups/one_right": (0, 0.085)},
        {"groups/all_wrong": (0, 0.75), "groups/all_right": (0, 0.125), "groups/one_right": (0, 0.09)},
    ),
    (
        "reward_hacking",
        {"eval_accuracy": (0.5, 0.46), "reward": (0.3, 0.4)},
        {"eval_accuracy": (0.5, 0.44), "reward": (0.3, 0.4)},
    ),
    (
        "reward_hacking",
        {"eval_accuracy": (0.5, 0.4), "reward": (0.3, 0.3)},
        {"eval_accuracy": (0.5, 0.4), "reward": (0.3, 0.31)},
    ),
]


@pytest.mark.parametrize(("name", "within", "beyond"), LIMITS)
def test_a_watcher_speaks_beyond_its_limit_and_not_before(name, within, beyond):
    """The first ten values are compared with the last ten, and what lies between does not count."""

    def log(metrics):
        halves = [{m: ends[end] for m, ends in metrics.items()} | {"rewards/accuracy/mean": 0.5} for end in (0, 1)]
        first = [{"step": step} | halves[0] for step in range(1, 11)]
        if name == "reward_hacking":  # the best is at the last step of the first half
            first = [{**row, "eval_accuracy": halves[0]["eval_accuracy"] - 0.01 * (10 - row["step"])} for row in first]
            return Log(first + [{"step": step} | halves[1] for step in range(11, 21)], 0.2)
        between = [{"step": 10 + i} | dict.fromkeys(metrics, 1000 * (-1) ** i) for i in (1, 2)]
        return Log(first + between + [{"step": step} | halves[1] for step in range(13, 23)], 0.2)

    assert WATCHERS[name](log(within)) is None
    assert WATCHERS[name](log(beyond)) is not None


@pytest.mark.parametrize("seed", range(5))
def test_none_speaks_of_a_healthy_run(seed):
    assert fired(rows_of(seed)) == {}


def test_nothing_is_said_of_what_is_not_logged():
    assert fired([{"step": step, "loss": 0.1, "entropy/mean": None} for step in range(40)]) == {}
    assert fired([{"step": step, "selection/kept_fraction": 1.0} for step in range(40)], kept_share=1.0) == {}


def test_refusals(tmp_path):
    for watch, words in (
        ({"entropy": "warn"}, "a name in watch is 'entropy': choose one of entropy_collapse, "),
        ({"clip_rate": "raise"}, "watch: clip_rate is 'raise': choose one of off, warn, stop"),
    ):
        with pytest.raises(ValueError, match=words):
            EntropyForkGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, watch=watch)


def slow_verifier(completion_ids, log_metric, trainer_state, **kwargs):
    """Right as ever, and half of the answers take too long from the fourth step on."""
    log_metric("grading/timeouts", 0.5 if trainer_state.global_step > 2 else 0.0)
    return fixed_rollout.coins(completion_ids)


SETTINGS = {"max_steps": 14, "learning_rate": 0.0, "reward": slow_verifier, "data": fixed_rollout.prompts(4)}


@pytest.mark.parametrize("action", ["off", "warn", "stop"])
def test_what_a_watcher_does_to_a_run(tiny_model, tmp_path, action):
    watch = {"verifier_timeouts": action}
    trainer = fixed_rollout.train(tiny_model, tmp_path, watch=watch, **SETTINGS)
    warnings = list(files.read_jsonl(RunFolder(tmp_path).warnings))
    if action == "off":
        assert warnings == [] and trainer.state.global_step == 14
        return
    assert [(row["watcher"], row["action"], row["step"]) for row in warnings] == [("verifier_timeouts", action, 10)]
    assert warnings[0]["sentence"].startswith("35.0% of the answers take too long")
    saved = [path.parent.name for path in Path(tmp_path).glob("checkpoint-*/complete.json")]
    if action == "warn":
        assert trainer.state.global_step == 14 and saved == []
        return
    assert trainer.state.global_step == 10 and saved == ["checkpoint-10"]
    # It has been said; whoever goes on from there means to.
    again = fixed_rollout.make_trainer(tiny_model, tmp_path, watch=watch, **SETTINGS)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    assert again.state.global_step == 14
    assert len(files.read_steps(RunFolder(tmp_path).warnings)) == 1


def test_a_watcher_that_speaks_at_once_stops_the_first_step(tiny_model, tmp_path, monkeypatch):
    """And not in the evaluation before, where it would have been said for nothing."""
    monkeypatch.setitem(WATCHERS, "hasty", lambda log: "It is over.")
    trainer = fixed_rollout.make_trainer(tiny_model, tmp_path, sampled=True, **SETTINGS | {"watch": {"hasty": "stop"}})
    assert trainer.answer(fixed_rollout.prompts(1), metric_key_prefix="test_before")
    assert not RunFolder(tmp_path).warnings.exists()
    trainer.train()
    assert trainer.state.global_step == 1
    assert [row["step"] for row in files.read_jsonl(RunFolder(tmp_path).warnings)] == [1]


def test_a_watcher_of_benchmarks_stops_the_run(tiny_model, tmp_path, monkeypatch):
    def second(log):
        return "It is the second evaluation." if len(log.values(FAILURES)) == 2 else None

    monkeypatch.setitem(WATCHERS, "second", second)
    trainer = fixed_rollout.make_trainer(tiny_model, tmp_path, **SETTINGS | {"watch": {"second": "stop"}})
    absent = str(tmp_path / "absent.jsonl")  # an evaluation that fails is logged, too
    trainer.add_callback(BenchmarkCallback(trainer, [absent], 2, {}, RunFolder(tmp_path), 1.0))
    trainer.train()
    assert trainer.state.global_step == 2 and (tmp_path / "checkpoint-2" / "complete.json").exists()
    assert [row["step"] for row in trainer.state.log_history if "loss" in row] == [1, 2]


def test_reward_hacking_is_seen_on_benchmarks_of_a_run_without_held_out_problems():
    rows = [{"step": step, "reward": step / 60} for step in range(60)]
    for step, accuracy in ((10, 0.5), (20, 0.3), (30, 0.2)):
        rows[step] |= {"eval_aime24/acc@16": accuracy, "eval_aime25/acc@16": accuracy - 0.1}
    assert "held-out accuracy has fallen" in WATCHERS["reward_hacking"](Log(rows[:45], 0.2))
    for row in rows:
        row.pop("eval_aime24/acc@16", None), row.pop("eval_aime25/acc@16", None)
    assert WATCHERS["reward_hacking"](Log(rows[:45], 0.2)) is None
