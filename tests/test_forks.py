"""Responses that continue others from a fork: places and masks by hand, the loss against autograd in float64."""

import math
import random
import threading
from collections import Counter

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.fixtures import fixed_rollout
from entropy_grpo.objective.ranks import ALONE, Ranks
from entropy_grpo.objective.sampling import Response
from entropy_grpo.training.drafts import Drafts, Piece
from entropy_grpo.training.forks import ForkRule, forkable

from . import reference, written_parts
from .test_drafts import RESUMED, Sampler
from .test_durable import assert_goes_on

GROUP = fixed_rollout.GENERATIONS
WHOLE = written_parts.FORKS | {"max_new_tokens_per_round": None, "max_response_age": 2}


def make_rule(**settings):
    given = {"trunks": 4, "size": 16, "candidates": 20, "weight": 0.0, "vocabulary": 100}
    given |= {"trains_prefix": True, "seed": 0}
    return ForkRule(**given | {"entropies": None, "may_fork": lambda token: True} | settings)


def test_equally_many_responses_continue_each():
    rule = make_rule()
    assert [rule.branches_of(i) for i in range(4)] == [[4, 5, 6], [7, 8, 9], [10, 11, 12], [13, 14, 15]]
    assert [rule.trunk_of(i) for i in range(16)] == [0, 1, 2, 3, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [make_rule(trunks=1, size=3).branches_of(0), make_rule(trunks=2, size=4).branches_of(1)] == [[1, 2], [3]]


def test_a_fork_is_one_of_the_candidates_of_highest_entropy():
    """Each about equally often, and no token that may not be one, by sorting."""
    rng, count = random.Random(0), 5
    entropies = torch.tensor([9.0] + [rng.random() for _ in range(39)])
    ids = [rng.randrange(10) for _ in range(40)]
    rule = make_rule(candidates=count, may_fork=lambda token: token not in (3, 7))
    allowed = [t for t in range(1, 40) if ids[t] not in (3, 7)]
    best = sorted(allowed, key=lambda t: -entropies[t])[:count]
    drawn = [rule.place(ids, entropies, f"{key}") for key in range(1000)]
    assert set(drawn) == set(best)
    assert all(abs(drawn.count(t) - 200) < 5 * 13 for t in best)  # five standard deviations of a binomial count
    assert drawn[:20] == [rule.place(ids, entropies, f"{key}") for key in range(20)]
    assert rule.place([3] * 40, entropies, "x") == 0 == rule.place([1], entropies[:1], "x")


@pytest.mark.parametrize("weight", [0.2, 2.0, 50.0])
def test_entropy_that_follows_a_candidate_weighs_it(weight):
    """Draws as often as the clipped probabilities of ARPO say; also where only one of them is not 0."""
    entropies = torch.rand(60, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    entropies[40:] *= 2
    entropies[5:30] *= 0.3
    rule, ids = make_rule(candidates=6, weight=weight, vocabulary=1000), list(range(60))
    entropies[12] = 1.99  # the last candidate, whose successors are certain
    best = sorted(range(1, 60), key=lambda t: -entropies[t])[:6]
    change = [(sum(entropies[t : t + 20].tolist()) - sum(entropies[:20].tolist())) / math.log(1000) for t in best]
    chances = [min(max(0.5 + weight * x, 0.0), 1.0) for x in change]
    drawn = [rule.place(ids, entropies, f"{key}") for key in range(1000)]
    for place, chance in zip(best, chances, strict=True):
        share = chance / sum(chances)
        assert abs(drawn.count(place) - 1000 * share) <= 5 * (1000 * share * (1 - share)) ** 0.5, place
    assert len(set(chances)) > 1


def test_without_any_chance_candidates_are_equally_likely():
    """The response begins with all of its entropy."""
    rule = make_rule(candidates=2, weight=1e6)
    entropies = torch.cat([torch.full((20,), 3.0), torch.tensor([0.5, 0.4])])
    entropies[1:20] = 0.3
    drawn = {rule.place(list(range(22)), entropies, f"{key}") for key in range(50)}
    assert rule.chances([20, 21], entropies) == [0.0, 0.0] and drawn == {20, 21}


def test_no_fork_at_special_or_short_tokens(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    for least in (1, 2):
        may_fork = forkable(tokenizer, least)
        for token in range(len(tokenizer)):
            text = tokenizer.convert_ids_to_tokens(token).replace("\u0120", " ").replace("\u010a", "\n")
            expected = token not in tokenizer.all_special_ids and len(text.strip()) >= least
            assert may_fork(token) == expected, text


@pytest.mark.parametrize(("trains_prefix", "first"), [(True, [1, 1, 1, 1, 1]), (False, [0, 0, 1, 1, 1])])
def test_masks(trains_prefix, first):
    rule = make_rule(trunks=2, size=4, trains_prefix=trains_prefix)
    ids = [torch.zeros(length, dtype=torch.int32) for length in (5, 3, 4, 6)]
    masks = rule.masks([Response(x, x, "") for x in ids], [2, 0])
    assert [mask.tolist() for mask in masks] == [first, [1] * 3, [0, 0, 1, 1], [1] * 6]


def by_group(output):
    """Rows of a rollout by prompt, in the order of the group. TRL shuffles a rollout after it is scored."""
    groups = {}
    for i in output["sequence_index"].argsort().tolist():
        prompt = tuple(output["prompt_ids"][i][output["prompt_mask"][i].bool()].tolist())
        groups.setdefault(prompt, []).append(i)
    return groups


@pytest.mark.parametrize(("prefix", "weight"), [("once", 0.0), ("never", 0.2)])
def test_a_step_trains_the_tokens_that_the_recipe_says(ending_model, tmp_path, prefix, weight):
    """Places among the candidates, masks, kept tokens and the weights after a step, all worked out in float64."""
    settings = WHOLE | {"fork_prefix": prefix, "fork_entropy_weight": weight}
    trainer = written_parts.made(ending_model, tmp_path, data=fixed_rollout.prompts(8), **settings)
    assert trainer.rollouts.drafts.rule.weight == weight
    (output,) = written_parts.rollouts_of(trainer)
    model = AutoModelForCausalLM.from_pretrained(ending_model, dtype=torch.float64)
    keys = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
    logps, entropies = reference.score(model, *(output[key] for key in keys), 1.0)
    ids, lengths, forks = output["completion_ids"], output["completion_mask"].sum(1), []
    expected = output["completion_mask"].clone()
    for rows in by_group(output).values():
        assert len(rows) == GROUP
        for number, (trunk, branch) in enumerate(((rows[0], rows[2]), (rows[1], rows[3]))):
            fork = int((output["tool_mask"][branch] == 0).sum())
            assert torch.equal(ids[branch, :fork], ids[trunk, :fork])
            order = entropies[trunk, 1 : lengths[trunk] - 1].argsort(descending=True) + 1
            assert fork in order[:3] or (fork == 0 and lengths[trunk] <= 2), (number, fork, order)
            expected[branch, :fork] = 0
            if prefix == "never":
                expected[trunk, :fork] = 0
            forks.append(fork)
    assert sum(fork > 0 for fork in forks) > 1
    assert torch.equal(output["completion_mask"] * output["tool_mask"], expected)
    saved = int((output["completion_mask"] - expected)[[r for g in by_group(output).values() for r in g[2:]]].sum())
    written = trainer.rollouts.drafts.written
    assert written == sum(int(lengths[r]) for g in by_group(output).values() for r in g) - saved
    places = torch.arange(ids.size(1)) * 8 + output["sequence_index"].unsqueeze(1)
    kept = reference.top(entropies, expected.bool(), 0.5, places)
    assert torch.equal(kept, output["kept_mask"])
    reference.objective(logps, logps.detach(), output["advantages"].double(), kept, 0.2, 0.28).backward()
    changed = fixed_rollout.weights(trainer)
    start = AutoModelForCausalLM.from_pretrained(ending_model).state_dict()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(changed[name] - start[name], -parameter.grad.float(), atol=1e-5, rtol=1e-3)
    assert max(parameter.grad.abs().max() for parameter in model.parameters()) > 1e-3


def test_tokens_have_the_log_probabilities_of_the_policy_that_wrote_them(ending_model, tmp_path):
    """With responses that are written over several rollouts and fork when they are whole."""
    batch = {"per_device_train_batch_size": 4, "steps_per_generation": 2}
    trainer = written_parts.check(ending_model, tmp_path, batch | written_parts.FORKS)
    rows = [row for row in trainer.state.log_history if "fork_rollouts/prefix_share" in row]
    assert any(0 < row["fork_rollouts/prefix_share"] < 0.5 for row in rows)


def test_a_run_goes_on_in_the_middle_of_responses(ending_model, tmp_path):
    settings = RESUMED | written_parts.FORKS | {"save_steps": 3}
    whole = fixed_rollout.train(ending_model, tmp_path / "a", **settings)
    assert_goes_on(ending_model, tmp_path / "b", whole, tmp_path / "a" / "checkpoint-3", **settings)


def test_a_failed_round_can_be_undone():
    """A server that goes in the middle of a rollout leaves the state before it: unfinished, whole and forked."""

    def entropies(responses):
        return torch.zeros(len(responses), max(len(response.completion_ids) for response in responses))

    rule = make_rule(trunks=1, size=2, entropies=entropies)
    drafts = Drafts(lambda row: row, Sampler([3, 9, 9, 2] + [6] * 8), 2, 4, 40, 2, ALONE, None, rule)
    drafts.add([7, 8, 9, 10], 1)
    drafts.write(1, to_the_end=False)
    before, known = drafts.state(), repr(drafts.state())
    for _ in range(3):
        drafts.write(1, to_the_end=False)
        drafts.keep_recorded()
    assert repr(before) == known != repr(drafts.state())
    drafts.restore(before)
    assert repr(drafts.state()) == known
    assert {draft.forks[0] is None for draft in drafts.unfinished} == {True, False}


def scattered(responses):
    """Entropies whose highest lie anywhere in a response."""
    row = torch.arange(max(len(response.completion_ids) for response in responses)) * 37 % 101
    return row.float().expand(len(responses), -1)


class Endless:
    """Writes responses whose length follows from the prompt and the first tokens, or so many as it is asked for.

    Every token is its place, and its log-probability a tenth of it.
    """

    def __init__(self):
        self.calls = []

    def __call__(self, problems, written, limit):
        pieces = []
        for problem, before in zip(problems, written, strict=True):
            end = random.Random(f"{problem} {len(before)}").randint(len(before) + 1, 150)  # often beyond the longest
            ids = torch.arange(len(before), min(len(before) + limit, end), dtype=torch.int32)
            pieces.append(Piece(torch.zeros(1 + problem, dtype=torch.int32), ids, ids / 10, len(ids) < limit))
        self.calls.append((limit, [(1 + p, len(before)) for p, before in zip(problems, written, strict=True)]))
        return pieces


def lengths_of(drafts):
    return [[len(response.completion_ids) for response in draft.responses] for draft in drafts.unfinished]


def check_whole(drafts, longest):
    for draft in drafts.unfinished:
        for i, response in enumerate(draft.responses):
            length = len(response.completion_ids)
            fork = draft.forks[drafts.rule.trunk_of(i)] if i >= drafts.rule.trunks else 0
            end = random.Random(f"{draft.row} {fork}").randint(fork + 1, 150)
            assert draft.ended[i] and length == min(end, longest)
            assert response.completion_ids.tolist() == list(range(length))
            assert torch.equal(response.logprobs, torch.arange(length) / 10)


def test_all_places_of_forks_share_a_call():
    """Two calls write 32 groups, and a response ends where it would end in a call of its own."""
    writer, rule = Endless(), make_rule(entropies=scattered, seed=3)
    drafts = Drafts(lambda row: row, writer, 16, None, 100, 2, ALONE, None, rule)
    drafts.add(range(32), 1)
    drafts.write(1, to_the_end=False)
    check_whole(drafts, 100)
    places = {fork for draft in drafts.unfinished for fork in draft.forks}
    assert len(places) > 10 and sum(length == 100 for row in lengths_of(drafts) for length in row) > 50
    assert [(limit, len(responses)) for limit, responses in writer.calls] == [
        (100, 32 * 4),
        (100 - min(places), 32 * 12),
    ]
    assert drafts.written == sum(map(sum, lengths_of(drafts))) - sum(
        3 * fork for draft in drafts.unfinished for fork in draft.forks
    )


@pytest.mark.parametrize("width", [0, 140])
def test_no_sequence_of_a_call_is_longer_than_the_sampler_takes(width):
    """By the prompt, the tokens so far, and the limit of the call. Whole responses set the least width."""
    writer, rule = Endless(), make_rule(entropies=scattered, seed=3)
    drafts = Drafts(lambda row: row, writer, 16, None, 100, 2, ALONE, None, rule, width)
    drafts.add(range(32), 1)
    drafts.write(1, to_the_end=False)
    check_whole(drafts, 100)
    widest = max(prompt + before + limit for limit, rows in writer.calls for prompt, before in rows)
    assert widest <= max(width, 32 + 100)
    assert len(writer.calls) < len({fork for draft in drafts.unfinished for fork in draft.forks}) / 2


def test_all_ranks_make_equal_calls(monkeypatch):
    """With budgets, forks and a bound of a call's responses, and the same drafts on all ranks as on one."""
    meet, sent, together = threading.Barrier(3), {}, threading.Lock()

    def gather(found):
        sent[threading.current_thread()] = found
        meet.wait(20)
        everything = [item for thread in threads for item in sent[thread]]
        meet.wait(20)
        return everything

    monkeypatch.setattr("entropy_grpo.training.drafts.gather_object", gather)
    writers, states = [Endless() for _ in range(3)], {}

    def run(index):
        ranks = Ranks(index, 3, ALONE.sum, ALONE.largest, ALONE.gather)
        rule = make_rule(entropies=scattered, seed=3)
        drafts = Drafts(lambda row: row, writers[index], 16, 30, 100, 2, ranks, 10, rule, 0)
        for rollout in range(1, 8):
            if rollout < 4:
                drafts.add(range(3 * rollout, 3 * rollout + 3), rollout)
            drafts.write(rollout, to_the_end=False)
        with together:
            states[index] = repr(drafts.state())
            assert all(map(all, (draft.ended for draft in drafts.unfinished)))
            assert max(map(max, lengths_of(drafts))) == 100

    threads = [threading.Thread(target=run, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(states) == 3 and len(set(states.values())) == 1
    counts = [[(limit, len(rows)) for limit, rows in writer.calls] for writer in writers]
    assert counts[0] == counts[1] == counts[2]
    assert max(number for _, number in counts[0]) == 10 and Counter(limit for limit, _ in counts[0])[30] > 5


def test_other_ranks_get_the_entropies_of_a_trunk_and_no_more(monkeypatch):
    """A row of a matrix is pickled with the whole matrix."""
    sent = []
    monkeypatch.setattr("entropy_grpo.training.drafts.gather_object", lambda found: sent.extend(found) or found)

    def entropies(responses):
        return torch.rand(len(responses), max(len(response.completion_ids) for response in responses))

    rule = make_rule(trunks=1, size=2, entropies=entropies)
    drafts = Drafts(lambda row: row, Sampler([3, 9, 9, 2] + [6] * 8), 2, 4, 40, 2, ALONE, None, rule)
    drafts.add([7, 8, 9, 10], 1)
    for _ in range(4):
        drafts.write(1, to_the_end=False)
    values = [row for _, row in sent if isinstance(row, torch.Tensor)]
    assert len(values) == 4 and len({len(row) for row in values}) > 1
    assert all(row.untyped_storage().nbytes() == 4 * len(row) for row in values)


def test_a_resumed_run_may_write_otherwise(ending_model, tmp_path):
    """Groups from before, unfinished or waiting, have no forks, and are written to their end without a budget."""
    settings = RESUMED | {"save_steps": 3, "max_steps": 3}
    before = fixed_rollout.train(ending_model, tmp_path / "a", **settings)
    assert before.rollouts.drafts.unfinished
    changed = {"max_new_tokens_per_round": None, "max_steps": 7} | written_parts.FORKS
    allowed = {"allow_changes": [*written_parts.FORKS, "max_new_tokens_per_round"]}
    after = fixed_rollout.make_trainer(ending_model, tmp_path / "b", **settings | changed | allowed)
    after.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    assert after.rollouts.drafts.unfinished == [] and after.state.global_step == 7
    shares = [
        row["fork_rollouts/prefix_share"] for row in after.state.log_history if "fork_rollouts/prefix_share" in row
    ]
    assert shares[-1] > 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"fork_rollouts": 3}, ["fork_rollouts is 3", "num_generations is 4", "choose 1, 2"]),
        ({"fork_rollouts": 4}, ["fork_rollouts is 4"]),
        ({"fork_candidates": 0}, ["fork_candidates is 0", "1 or more"]),
        ({"fork_entropy_weight": -0.2}, ["fork_entropy_weight is -0.2", "0 or more"]),
        ({"fork_prefix": "twice"}, ["fork_prefix is 'twice'", "once, never"]),
        ({"fork_rollouts": None}, ["fork_candidates is 3", "without fork_rollouts"]),
        ({"sampled": False}, ["fork_rollouts is 2", "rollout_func"]),
        ({"generation_kwargs": {"stop": ["x"]}}, ["generation_kwargs: stop", "fork_rollouts"]),
    ],
    ids=str,
)
def test_settings_that_cannot_be_meant_are_refused(tiny_model, tmp_path, settings, words):
    with pytest.raises(ValueError) as error:
        written_parts.made(tiny_model, tmp_path, **WHOLE | settings)
    assert all(word in str(error.value) for word in words), error.value
