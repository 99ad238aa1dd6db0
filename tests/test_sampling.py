"""Dynamic sampling: the sampler against simulation, the trainer against runs on the informative problems alone."""

import copy
import heapq
import json
import math
import random
import subprocess

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.fixtures import fixed_rollout
from entropy_grpo import EntropyForkGRPOConfig
from entropy_grpo.metrics.quality import quality
from entropy_grpo.objective.sampling import DynamicSampler, Group, Response, accuracies, informative
from entropy_grpo.runs import state as checkpoint

from . import reference
from .conftest import REPOSITORY

GROUP = fixed_rollout.GENERATIONS


def make_sampler(**overrides):
    settings = {"size": 16, "problems": 100, "round_size": 48, "multiple": 1, "max_age": 1, "shuffle": True, "seed": 3}
    return DynamicSampler(**settings | overrides)


def group_of(row, born):
    response = Response(torch.tensor([1, 2], dtype=torch.int32), torch.tensor([3], dtype=torch.int32), "x")
    return Group(row, [response], torch.tensor([[1.0]]), born)


def simulate(sampler, rate, rollouts, seed=0):
    """Full rollouts of a policy that makes this share of groups informative: (drawn, taken, ages)."""
    rng = random.Random(seed)
    drawn, taken, ages = [], 0, []
    for _ in range(rollouts):
        sampler.begin()
        while sampler.missing:
            rows = sampler.draw()
            drawn += rows
            sampler.add([group_of(row, sampler.rollout) for row in rows if rng.random() < rate], len(rows))
        groups = sampler.take()
        assert len(groups) == sampler.size
        ages += [sampler.rollout - group.born for group in groups]
        taken += len(groups)
        sampler.drop_waiting()
    return drawn, taken, ages


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.8, 1.0])
def test_rollouts_are_full_and_little_is_wasted(rate):
    """Next to no more is drawn than the rate demands, where the released code, which draws three rollouts at a time
    and throws the surplus away, draws far more."""
    drawn, taken, ages = simulate(make_sampler(), rate, 200)
    assert len(drawn) * rate < 1.06 * taken
    assert min(ages) == 0 and max(ages) <= 1
    without, _, ages = simulate(make_sampler(max_age=0), rate, 200)
    assert max(ages) == 0
    assert len(drawn) < len(without) if rate < 1 else drawn == without
    rng, released = random.Random(0), 0
    for _ in range(200):
        found = 0
        while found < 16:
            found += sum(rng.random() < rate for _ in range(48))
            released += 48
    assert len(drawn) < released


def test_a_round_draws_what_should_fill_the_rollout():
    """A mean of one standard deviation above the need, worked out from the binomial distribution."""
    sampler = make_sampler(size=64, round_size=10**6)
    for _ in range(50):  # so that the rate is known
        sampler.begin()
        sampler.add([group_of(0, 0)] * 25, 100)
        sampler.waiting.clear()
    count, rate = len(sampler.draw()), 0.25
    assert sampler.pass_rate == pytest.approx(rate, abs=1e-2)
    assert count * rate - 64 == pytest.approx(math.sqrt(64 * (1 - rate)), rel=0.2)


@pytest.mark.parametrize(("unfinished", "drawn"), [(0, 32), (5, 27), (31, 1), (40, 0)])
def test_unfinished_groups_need_not_be_drawn_again(unfinished, drawn):
    """A rollout of 16 groups, all of which are informative so far, with two unfinished groups for each of them."""
    sampler = make_sampler()
    sampler.begin()
    assert len(sampler.draw(unfinished=unfinished, surplus=2.0)) == drawn


def test_the_pass_rate_forgets_a_fifth_with_every_rollout():
    """Half an informative group of half a problem is imagined, so that no rate is 0."""
    sampler = make_sampler()
    assert sampler.pass_rate == 1
    for drawn, kept in ((10, 5), (20, 5)):
        sampler.begin()
        sampler.add([group_of(0, sampler.rollout)] * kept, drawn)
    sampler.begin()
    assert sampler.pass_rate == pytest.approx((0.64 * 5 + 0.8 * 5 + 0.5) / (0.64 * 10 + 0.8 * 20 + 0.5))


@pytest.mark.parametrize("max_age", [0, 1, 3])
def test_groups_wait_as_long_as_they_may(max_age):
    sampler = make_sampler(max_age=max_age)
    sampler.begin()
    sampler.add([group_of(0, sampler.rollout)] * 2, 5)
    assert [sampler.begin() for _ in range(5)] == [0] * max_age + [2] + [0] * (4 - max_age)
    assert sampler.waiting == []


def test_the_oldest_groups_are_taken_first():
    sampler = make_sampler(size=3)
    sampler.begin()
    sampler.add([group_of(row, sampler.rollout) for row in range(5)], 9)
    assert sampler.missing == 0
    assert [group.row for group in sampler.take()] == [0, 1, 2]
    assert [group.row for group in sampler.waiting] == [3, 4] and sampler.missing == 1
    assert sampler.drop_waiting() == 0 and len(sampler.waiting) == 2
    sampler.max_age = 0  # then no group is kept for another rollout
    assert sampler.drop_waiting() == 2 and sampler.waiting == []


def test_problems_come_in_their_order_unless_shuffled():
    sampler = make_sampler(shuffle=False, problems=20)
    assert sampler.draw() + sampler.draw() == [*range(20), *range(12)]


@pytest.mark.parametrize("multiple", [1, 3, 7])
def test_every_problem_is_drawn_once_before_any_is_drawn_again(multiple):
    sampler = make_sampler(multiple=multiple, problems=61)
    drawn, _, _ = simulate(sampler, 0.3, 30)
    for epoch in range(len(drawn) // 61):
        assert sorted(drawn[epoch * 61 : (epoch + 1) * 61]) == list(range(61))
    assert drawn[:61] != drawn[61:122]
    for size in (1, 5, 48):  # sixteen are missing, and a round draws at least one multiple and at most `size`
        least, most = math.ceil(16 / multiple) * multiple, max(size // multiple, 1) * multiple
        assert len(make_sampler(multiple=multiple, round_size=size).draw()) == min(least, most)


@pytest.mark.parametrize("round_size", [7, 48])
def test_groups_of_the_next_round_are_foreseen(round_size):
    """Whatever is known of a round, they are the first of the next round, and all of them once all is known."""
    sampler, rng = make_sampler(round_size=round_size, multiple=2, problems=61), random.Random(0)
    early = 0
    for rollout in range(30):
        rate = (0.1, 0.5, 0.9)[rollout % 3]
        sampler.begin()
        while sampler.missing:
            rows = sampler.draw()
            good = [rng.random() < rate for _ in rows]
            before = sampler.state()
            foreseen = [sampler.foresee(len(rows), dropped) for dropped in range(good.count(False) + 1)]
            assert str(sampler.state()) == str(before)
            sampler.add([group_of(0, sampler.rollout)] * good.count(True), len(rows))
            following = copy.deepcopy(sampler).draw()
            assert all(found == following[: len(found)] for found in foreseen) and foreseen[-1] == following
            early += any(foreseen[:-1])
        sampler.take()
    assert early >= 10, "nothing is known before the end of a round"


def on_a_clock(rate, round_size, foresees):
    """(problems in the order of drawing, end) of rollouts whose groups a server writes, 8 at a time in order."""
    sampler, clock, drawn = make_sampler(round_size=round_size, problems=10**4, shuffle=False), 0.0, []

    def ask(rows, now, ends, free):
        for row in rows:
            if row not in ends:
                ends[row] = max(now, free[0]) + random.Random(row).lognormvariate(0, 1)
                heapq.heapreplace(free, ends[row])

    def is_good(row):
        return random.Random(f"good {row}").random() < rate

    for _ in range(30):
        sampler.begin()
        ends, free = {}, [clock] * 8  # when groups are written, and when the server's places are free
        while sampler.missing:
            rows, dropped = sampler.draw(), 0
            ask(rows, clock, ends, free)
            for row in sorted(rows, key=ends.get):
                clock = max(clock, ends[row])
                dropped += not is_good(row)
                if foresees:
                    ask(sampler.foresee(len(rows), dropped), clock, ends, free)
            sampler.add([group_of(row, sampler.rollout) for row in rows if is_good(row)], len(rows))
            drawn += rows
        sampler.take()
    return drawn, clock


@pytest.mark.parametrize(("rate", "round_size", "gain"), [(0.5, 48, 1.0), (0.2, 48, 1.05), (0.2, 16, 1.2)])
def test_rounds_that_begin_early_draw_the_same_and_end_earlier(rate, round_size, gain):
    (drawn, end), (others, later) = (on_a_clock(rate, round_size, foresees) for foresees in (True, False))
    assert drawn == others and later / end > gain


def test_a_sampler_goes_on_from_its_state(tmp_path):
    one, other = make_sampler(), make_sampler()
    simulate(one, 0.4, 7)
    checkpoint.save_state(tmp_path / "state.safetensors", one.state())
    other.restore(checkpoint.load_state(tmp_path / "state.safetensors"))
    assert other.waiting and [vars(g)["row"] for g in one.waiting] == [g.row for g in other.waiting]
    assert torch.equal(one.waiting[0].responses[0].prompt_ids, other.waiting[0].responses[0].prompt_ids)
    assert simulate(one, 0.4, 5, seed=1) == simulate(other, 0.4, 5, seed=1)


@pytest.mark.parametrize(
    ("rights", "bounds", "kept"),
    [
        (0, (None, None), False),
        (1, (None, None), True),
        (3, (None, None), True),
        (4, (None, None), False),
        (1, (0.25, 0.75), True),
        (1, (0.3, None), False),
        (3, (None, 0.7), False),
        (4, (0.5, 1.0), True),
    ],
)
def test_informative_by_the_share_of_right_responses(rights, bounds, kept):
    """Under both reward scales, whatever the other rewards and the next group are."""
    for wrong in (0.0, -1.0):
        rewards = torch.tensor([[1.0 if i < rights else wrong, -0.1 * i] for i in range(4)])
        share, others = accuracies(torch.cat([rewards, 1 - rewards])[:, 0], 4).tolist()
        assert informative(share, *bounds) == kept
        assert others == (1 - rewards[:, 0] > 0).sum().item() / 4


@pytest.mark.parametrize(
    ("rewards", "bounds", "kept"),
    [
        ((1, 1, 1, None), (None, None), False),
        ((0, -1, None, None), (None, None), False),
        ((1, 0, None, None), (None, None), True),
        ((1, None, None, None), (None, 0.9), False),
        ((1, 0, 0, None), (0.3, None), True),
        ((None, None, None, None), (0.0, 1.0), False),
    ],
)
def test_responses_without_a_reward_are_neither_right_nor_wrong(rewards, bounds, kept):
    (share,) = accuracies(torch.tensor([math.nan if r is None else r for r in rewards]), 4).tolist()
    assert informative(share, *bounds) == kept


def test_every_group_of_a_rollout_has_an_advantage_under_rewards_per_kind_of_problem(tiny_model, tmp_path):
    """TRL's pattern for several kinds of problems: the reward function of the other kind returns None."""
    scores = {0: (1.0, 1.0, 1.0, None), 2: (1.0, 0.0, None, None), 1: (0.0, None, 0.0, 0.0), 3: (None, 1.0, None, 0.0)}

    def of_kind(kind):
        def reward(number, **kwargs):
            return [scores[n % 4][i % 4] if n % 2 == kind else None for i, n in enumerate(number)]

        return reward

    data = fixed_rollout.prompts(8).add_column("number", list(range(8)))
    rewards = [of_kind(0), of_kind(1)]
    trainer = fixed_rollout.train(tiny_model, tmp_path, data=data, reward=rewards, dynamic_sampling=True)
    (batch,) = trainer._buffered_inputs
    signs = batch["advantages"][batch["sequence_index"].argsort()].sign().int().tolist()
    assert signs == [1, -1, 0, 0, 0, 1, 0, -1]
    row = trainer.state.log_history[0]
    # Of the first reward alone: of two groups in four it knows nothing.
    assert 0 < row["dynamic_sampling/all_right"] < 0.5 and row["dynamic_sampling/all_wrong"] == 0


class Watched:
    """A reward that can begin; keeps what it was asked."""

    __name__ = "watched"

    def __init__(self, events):
        self.events = events

    def begin(self, **columns):
        self.events.append(("begin", columns))

    def __call__(self, **columns):
        self.events.append(("call", columns))
        return fixed_rollout.coins(columns["completion_ids"])


@pytest.mark.parametrize("dynamic", [False, True])
def test_grading_begins_when_responses_are_written(tiny_model, tmp_path, monkeypatch, dynamic):
    """Before the pass that scores them, and, drawn in parts, before the next part is written."""
    events = []
    trainer_class = fixed_rollout.EntropyForkGRPOTrainer
    generate = fixed_rollout.fixed_completions

    def written(prompts, trainer):
        events.append(("write", {"prompts": prompts}))
        return generate(prompts, trainer) | {"note": ["x"] * len(prompts)}

    original = trainer_class._get_per_token_logps_and_entropies

    def scored(self, *args, **kwargs):
        events.append(("pass", {}))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(fixed_rollout, "fixed_completions", written)
    monkeypatch.setattr(trainer_class, "_get_per_token_logps_and_entropies", scored)
    data = fixed_rollout.prompts(16).add_column("solution", [str(i) for i in range(16)])
    fixed_rollout.train(
        tiny_model,
        tmp_path,
        data=data,
        reward=Watched(events),
        per_device_train_batch_size=4,
        steps_per_generation=2,
        entropy_scope="rollout",
        dynamic_sampling=dynamic,
    )
    names = [name for name, _ in events]
    if not dynamic:
        assert names == ["write", "begin", "pass", "call", "pass"]
    else:
        assert names.index("pass") > max(i for i, name in enumerate(names) if name == "call")
        rounds = "-".join(names[: names.index("pass")]).split("call")
        assert any(part.count("write-begin") > 1 for part in rounds), "no round was written in parts"
        assert all(part.count("write-begin") == part.count("write") for part in rounds)
    begun = [columns for name, columns in events if name == "begin"]
    asked = [columns for name, columns in events if name == "call"]
    for key in ("prompts", "completions", "solution", "note"):
        assert [x for c in begun for x in c[key]] == [x for c in asked for x in c[key]], key


SAMPLING = {"dynamic_sampling": True, "reward": "coins"}


def groups_by_hand(count):
    """Which of so many problems are informative, from the fixed completions."""
    rows = fixed_rollout.prompts(count)
    completions = fixed_rollout.fixed_completions([p for p in rows["prompt"] for _ in range(GROUP)], None)
    rights = fixed_rollout.coins(completions["completion_ids"])
    return [i for i in range(count) if 0 < sum(rights[i * GROUP : (i + 1) * GROUP]) < GROUP]


@pytest.mark.parametrize("dynamic", [False, True])
def test_extra_columns_are_those_of_the_logged_responses_or_none(tiny_model, tmp_path, caplog, dynamic):
    def told(completions, completion_ids, log_extra, **kwargs):
        log_extra("text", list(completions))
        return fixed_rollout.coins(completion_ids)

    settings = {"data": fixed_rollout.prompts(16), "reward": told, "dynamic_sampling": dynamic, "max_steps": 3}
    with caplog.at_level("WARNING"):
        logs = fixed_rollout.train(tiny_model, tmp_path, **settings)._logs
    assert list(logs["extra"].get("text", [])) == ([] if dynamic else list(logs["completion"]))
    assert caplog.text.count("log_extra: the columns") == dynamic


def test_an_evaluation_adds_no_extra_columns_to_the_table_of_other_responses(tiny_model, tmp_path):
    def told(completions, completion_ids, log_extra, **kwargs):
        log_extra("text", list(completions))
        return fixed_rollout.coins(completion_ids)

    settings = {"data": fixed_rollout.prompts(16), "reward": told, "dynamic_sampling": True, "max_steps": 2}
    evaluations = {"eval_strategy": "steps", "eval_steps": 1, "held_out": fixed_rollout.prompts(1)}
    fixed_rollout.train(
        tiny_model, tmp_path, log_completions=True, per_device_eval_batch_size=GROUP, **settings, **evaluations
    )
    tables = [pq.read_table(path) for path in sorted((tmp_path / "completions").glob("*.parquet"))]
    assert len(tables) == 2 and all("text" not in table.column_names for table in tables)


def nothing_is_right(completion_ids, **kwargs):
    return [0.0] * len(completion_ids)


@pytest.mark.parametrize(
    ("rho", "controlled"), [(1.0, {}), (0.2, {}), (0.2, {"reward_weights": [0.0, 1.0]})], ids=["all", "0.2", "control"]
)
def test_training_is_that_on_the_informative_problems_alone(tiny_model, tmp_path, rho, controlled):
    """Two rollouts of two groups, the second partly of groups that waited: weights equal bit for bit.

    Every rollout is one step, at rate 0, so that no policy is older than the current one but by name. A first reward
    of weight 0, by which nothing is right, changes nothing.
    """
    good = groups_by_hand(16)
    assert 4 <= len(good) < 16 and good[:4] != [0, 1, 2, 3]
    settings = {"max_steps": 2, "top_entropy_quantile": rho, "entropy_scope": "rollout", "reward": "coins"}
    mixed = fixed_rollout.train(
        tiny_model,
        tmp_path / "a",
        data=fixed_rollout.prompts(16),
        dynamic_sampling=True,
        **settings | ({"reward": [nothing_is_right, fixed_rollout.coins]} | controlled if controlled else {}),
    )
    alone = fixed_rollout.train(
        tiny_model, tmp_path / "b", data=fixed_rollout.prompts(16).select(good[:4]), **settings
    )
    rows = [trainer.state.log_history[0] for trainer in (mixed, alone)]
    assert rows[0]["loss"] == rows[1]["loss"] and rows[0]["grad_norm"] == rows[1]["grad_norm"] > 0
    assert mixed.rollouts.sampler.cursor > 4


def test_dropped_groups_are_generated_and_graded_and_nothing_else(tiny_model, tmp_path, monkeypatch):
    scored = []
    original = fixed_rollout.EntropyForkGRPOTrainer._get_per_token_logps_and_entropies

    def watch(self, model, input_ids, *args, **kwargs):
        scored.append(input_ids.size(0))
        return original(self, model, input_ids, *args, **kwargs)

    monkeypatch.setattr(fixed_rollout.EntropyForkGRPOTrainer, "_get_per_token_logps_and_entropies", watch)
    data = fixed_rollout.prompts(16)
    trainer = fixed_rollout.train(tiny_model, tmp_path, data=data, entropy_scope="global", max_group_age=0, **SAMPLING)
    assert scored == [8], "the loss of the eight responses that were kept, and no other pass"
    row = trainer.state.log_history[0]
    assert row["dynamic_sampling/drawn"] > 2
    assert row["dynamic_sampling/kept"] == 2 + row["dynamic_sampling/discarded"]
    assert row["num_tokens"] > row["completions/mean_length"] * 8


def test_figures_of_answers_are_those_of_all_drawn_responses(tiny_model, tmp_path):
    """However they are divided into rounds, of which the last ones are smaller than the first."""
    rounds = []

    def noted(completions, completion_ids, **kwargs):
        rights = fixed_rollout.coins(completion_ids)
        rounds.append(list(zip(completions, map(len, completion_ids), rights, strict=True)))
        return rights

    settings = {"data": fixed_rollout.prompts(16), "reward": noted, "max_steps": 4, "max_group_age": 0}
    trainer = fixed_rollout.train(tiny_model, tmp_path, dynamic_sampling=True, **settings)
    rows, left, unequal = [row for row in trainer.state.log_history if "loss" in row], iter(rounds), 0
    for row in rows:
        parts = [next(left) for _ in range(int(row["dynamic_sampling/rounds"]))]
        texts, lengths, rights = zip(*(response for part in parts for response in part), strict=True)
        unequal += len({len(part) for part in parts}) > 1
        numbers = [sum(rights[i : i + GROUP]) for i in range(0, len(rights), GROUP)]
        assert row["accuracy"] == pytest.approx(sum(rights) / len(rights))
        for name, value in (("right", 1), ("wrong", 0)):
            chosen = [length for length, right in zip(lengths, rights, strict=True) if right == value]
            assert row[f"completions/{name}_length"] == pytest.approx(sum(chosen) / len(chosen))
        for name, number in (("all_right", GROUP), ("all_wrong", 0), ("one_right", 1)):
            assert row[f"groups/{name}"] == pytest.approx(numbers.count(number) / len(numbers))
        for name in ("repetition", "no_box", "format/prose"):
            assert row[f"quality/{name}"] == pytest.approx(quality(texts, texts)[name])
    assert unequal and next(left, None) is None and trainer.monitor.accuracy == rows[-1]["accuracy"]


@pytest.mark.parametrize("steps_per_generation", [1, 2], ids=["TRL scores no rollout", "TRL scores the rollout"])
def test_groups_that_waited_have_the_log_probabilities_of_their_policy(tiny_model, tmp_path, steps_per_generation):
    """Recomputed in float64 from the weights that wrote them, which training has left behind."""
    from transformers import AutoModelForCausalLM, TrainerCallback

    seen = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            weights = {name: p.detach().clone() for name, p in model.named_parameters()}
            seen.append(weights)

    original = fixed_rollout.EntropyForkGRPOTrainer.__init__
    rollouts = []

    class Watched(fixed_rollout.EntropyForkGRPOTrainer):
        def __init__(self, *args, **kwargs):
            original(self, *args, **kwargs)
            self.add_callback(Watch())

        def _generate_and_score_completions(self, inputs):
            waiting = [(g.born, r.completion_ids.tolist()) for g in self.rollouts.sampler.waiting for r in g.responses]
            output = super()._generate_and_score_completions(inputs)
            rollouts.append((self.state.global_step, waiting, output))
            return output

    real, fixed_rollout.EntropyForkGRPOTrainer = fixed_rollout.EntropyForkGRPOTrainer, Watched
    try:
        fixed_rollout.train(
            tiny_model,
            tmp_path,
            data=fixed_rollout.prompts(32),
            max_steps=4 * steps_per_generation,
            learning_rate=0.5,
            entropy_scope="rollout",
            top_entropy_quantile=0.5,
            per_device_train_batch_size=8 // steps_per_generation,
            steps_per_generation=steps_per_generation,
            gradient_accumulation_steps=1,
            dynamic_sampling=True,
            reward="coins",
        )
    finally:
        fixed_rollout.EntropyForkGRPOTrainer = real
    born_at = {number: step for number, (step, _, _) in enumerate(rollouts, start=1)}
    checked = 0
    for number, (_, waiting, output) in enumerate(rollouts, start=1):
        ages = {tuple(ids): born for born, ids in waiting}
        for i in range(8):
            ids = output["completion_ids"][i][output["completion_mask"][i].bool()]
            born = ages.get(tuple(ids.tolist()), number)
            if "old_per_token_logps" not in output:
                assert born == number
                continue
            model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
            model.load_state_dict({name: w.double() for name, w in seen[born_at[born]].items()})
            keys = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
            expected, _ = reference.score(model, *(output[key][i : i + 1] for key in keys), 1.0)
            old = output["old_per_token_logps"][i][: len(ids)].double()
            assert torch.allclose(old, expected[0, : len(ids)], atol=1e-4), (number, i)
            checked += born < number
    assert checked > 0, "no group waited: this would show nothing"
    first, last = seen[0], seen[-1]
    assert max((first[name] - last[name]).abs().max() for name in first) > 1e-2


@pytest.mark.parametrize("limit", ["raise", "top_up", "partial"])
def test_at_the_limit_of_rounds(tiny_model, tmp_path, limit):
    """One informative group where two are wanted: the gradient is that group's, over its own or over all tokens."""

    good = groups_by_hand(16)[0]
    data = fixed_rollout.prompts(16)
    wanted = set(map(tuple, fixed_rollout.fixed_completions([data[good]["prompt"]] * GROUP, None)["completion_ids"]))

    def reward(completion_ids, **kwargs):
        return [float(sum(ids) % 5 == 0 and tuple(ids) in wanted) for ids in completion_ids]

    settings = {"data": data, "reward": reward, "top_entropy_quantile": 0.5, "entropy_scope": "rollout"}
    settings |= {"dynamic_sampling": True, "max_sampling_rounds": 3, "at_sampling_limit": limit}
    if limit == "raise":
        with pytest.raises(RuntimeError, match=r"1 of 2 informative groups are missing.*at_sampling_limit"):
            fixed_rollout.train(tiny_model, tmp_path / "a", **settings)
        return
    trainer = fixed_rollout.train(tiny_model, tmp_path / "a", **settings)
    row = trainer.state.log_history[0]
    assert row["dynamic_sampling/rounds"] == 3 and row["dynamic_sampling/filling"] == 1
    alone = fixed_rollout.train(
        tiny_model,
        tmp_path / "b",
        data=data.select([good] * 2),
        reward=reward,
        per_device_train_batch_size=GROUP,
        top_entropy_quantile=0.5,
        entropy_scope="rollout",
    )
    start = load_file(f"{tiny_model}/model.safetensors")
    change, change_alone = ({n: w - start[n] for n, w in fixed_rollout.weights(t).items()} for t in (trainer, alone))
    if limit == "partial":
        for name, value in change.items():
            assert torch.allclose(value, change_alone[name], atol=1e-6), name
    batch = trainer._buffered_inputs[0]
    assert (batch["completion_mask"].sum() == batch["num_items_in_batch"]).item()
    filled = (batch["completion_mask"].sum(dim=1) == 0).sum()
    assert filled == (GROUP if limit == "partial" else 0)
    assert (batch["advantages"] != 0).sum() <= GROUP
    assert any(value.abs().max() > 1e-4 for value in change.values())


MEANS = [
    *({"loss_type": name, "entropy_denominator": "all"} for name in ("grpo", "bnpo", "dr_grpo", "sapo")),
    {"loss_type": "luspo", "entropy_denominator": "all", "importance_sampling_level": "sequence"},
    {"entropy_coef": 0.01},
    {"use_adaptive_entropy": True},
    {"scale_rewards": "batch"},
    {"multi_objective_aggregation": "normalize_then_sum"},
]


@pytest.mark.parametrize("settings", MEANS, ids=str)
def test_a_smaller_rollout_is_refused_where_means_would_count_missing_groups(tmp_path, settings):
    """TRL divides the losses that are not refused by `num_items_in_batch` (see `test_trl_seams`)."""
    common = {"use_cpu": True, "bf16": False, "num_generations": 4, "dynamic_sampling": True}
    with pytest.raises(ValueError, match=r"at_sampling_limit is 'partial', but .* or set at_sampling_limit to top_up"):
        EntropyForkGRPOConfig(str(tmp_path), at_sampling_limit="partial", **common, **settings)
    EntropyForkGRPOConfig(str(tmp_path), at_sampling_limit="top_up", **common, **settings)
    for loss in ({"loss_type": "dapo"}, {"loss_type": "cispo", "epsilon_high": 5.0}, {"loss_type": "vespo"}):
        EntropyForkGRPOConfig(str(tmp_path), at_sampling_limit="partial", **common, **loss)


@pytest.mark.slow
def test_two_processes_draw_and_train_like_one(tiny_model, tmp_path, preloaded):
    """Groups of four on ranks with two responses each, drawn one by one."""
    settings = {"dynamic_sampling": True, "reward": "coins", "entropy_scope": "rollout", "sampling_round_size": 1}
    one = fixed_rollout.train(tiny_model, tmp_path / "one", per_device_train_batch_size=4, **settings)
    (tmp_path / "two").mkdir()
    command = [preloaded, "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/ddp_cpu.yaml"]
    command += ["--main_process_port", "0", "-m", "benchmarks.fixtures.fixed_rollout", tiny_model]
    command += [str(tmp_path / "two"), json.dumps(settings | {"per_device_train_batch_size": 2})]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    log = json.loads((tmp_path / "two" / "log.json").read_text())
    row = one.state.log_history[0]
    for key in [key for key in row if key.startswith("dynamic_sampling/")]:
        assert log[key] == row[key], key
    two = load_file(tmp_path / "two" / "weights.safetensors")
    for name, value in fixed_rollout.weights(one).items():
        assert torch.allclose(value, two[name], atol=1e-5), name


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"min_accuracy": 0.2}, ["min_accuracy", "dynamic_sampling: true"]),
        ({"dynamic_sampling": True, "min_accuracy": 1.5}, ["min_accuracy is 1.5", "[0, 1]"]),
        ({"dynamic_sampling": True, "min_accuracy": 0.6, "max_accuracy": 0.7}, ["num_generations (4)"]),
        ({"dynamic_sampling": True, "at_sampling_limit": "stop"}, ["at_sampling_limit is 'stop'", "top_up"]),
        ({"dynamic_sampling": True, "max_sampling_rounds": 0}, ["max_sampling_rounds is 0"]),
        ({"dynamic_sampling": True, "max_group_age": -1}, ["max_group_age is -1"]),
    ],
    ids=str,
)
def test_settings_that_cannot_be_meant_are_refused(tiny_model, tmp_path, settings, words):
    with pytest.raises(ValueError) as error:
        fixed_rollout.train(tiny_model, tmp_path, **settings)
    assert all(word in str(error.value) for word in words), error.value
