"""What is logged of an optimiser step's tokens, against sums over the tokens one by one."""

import math
import statistics

import pytest
import torch

from entropy_grpo.monitoring.steps import rollout_metrics, token_samples, window_metrics
from entropy_grpo.objective.selection import on_one_process
from entropy_grpo.objective.tokens import loss_mask, probability_ratio, row_advantages
from entropy_grpo.objective.window import Scored

LIMITS = LOWEST, HIGHEST = 0.75, 1.5
LEVELS = (5, 25, 50, 75, 90, 95, 99)


def micro_batch(seed, per_token):
    """Random tokens of three sequences, some of them at the edges of the clip range, a quarter of them kept."""
    rng = torch.Generator().manual_seed(seed)
    mask = torch.rand(3, 8, generator=rng) < 0.8
    advantages = torch.randn(3, 8, generator=rng) if per_token else torch.tensor([0.7, 0.0, -0.4])
    ratios = torch.rand(3, 8, generator=rng) * 2 + 0.05
    ratios[:, :2] = torch.tensor([LOWEST, HIGHEST])
    inputs = {"advantages": advantages, "old_per_token_logps": torch.zeros(3, 8)}
    kept = mask & (torch.rand(3, 8, generator=rng) < 0.5)
    return Scored(inputs, mask, kept, torch.rand(3, 8, generator=rng) * 3, ratios.log())


def tokens(scored):
    """(advantage, kept, entropy, ratio) of every token that counts."""
    for one in scored:
        for i, t in one.mask.nonzero().tolist():
            advantages = one.inputs["advantages"]
            advantage = advantages[i] if advantages.dim() == 1 else advantages[i, t]
            ratio = float(one.logps[i, t].exp())
            yield float(advantage), bool(one.kept[i, t]), float(one.entropies[i, t]), ratio


@pytest.mark.parametrize("per_token", [False, True])
def test_metrics_are_sums_over_the_tokens(per_token):
    scored = [micro_batch(seed, per_token) for seed in range(4)]
    everything = [*scored, micro_batch(9, per_token)]  # a sequence that is not run has entropies, but no clip rate
    found = window_metrics(scored, everything, LIMITS, on_one_process)
    known, run = list(tokens(everything)), list(tokens(scored))

    def mean(condition):
        chosen = [entropy for a, kept, entropy, _ in known if condition(a, kept)]
        return pytest.approx(statistics.fmean(chosen), rel=1e-5)

    def clipped(condition):
        chosen = [entropy for a, kept, entropy, ratio in run if kept and condition(a, ratio)]
        return pytest.approx(statistics.fmean(chosen), rel=1e-5)

    kept_count = sum(kept for _, kept, _, _ in known)
    expected = {
        "selection/kept_entropy": mean(lambda a, kept: kept),
        "selection/dropped_entropy": mean(lambda a, kept: not kept),
        "kept": kept_count,
        "all": len(known),
        "selection/kept_fraction": kept_count / len(known),
        "clip_ratio/low_entropy": clipped(lambda a, r: a < 0 and r < LOWEST - 1e-6),
        "clip_ratio/high_entropy": clipped(lambda a, r: a > 0 and r > HIGHEST + 1e-6),
        "clip_ratio/kept_low": sum(k and a < 0 and r < LOWEST - 1e-6 for a, k, _, r in run) / kept_count,
        "clip_ratio/kept_high": sum(k and a > 0 and r > HIGHEST + 1e-6 for a, k, _, r in run) / kept_count,
    }
    assert found == expected
    assert found["clip_ratio/kept_low"] > 0 and found["clip_ratio/kept_high"] > 0


def test_sums_of_ranks_are_what_one_process_logs():
    """A rank whose sums come with those of an equal one: twice the tokens, and the same means."""
    scored = [micro_batch(seed, True) for seed in range(2)]
    one = window_metrics(scored, scored, LIMITS, on_one_process)
    two = window_metrics(scored, scored, LIMITS, lambda counts: 2 * counts)
    sizes = {"kept": 2 * one["kept"], "all": 2 * one["all"]}
    assert two == pytest.approx(one | sizes)


@pytest.mark.parametrize("per_token", [False, True])
def test_entropies_of_a_rollout_are_those_of_all_its_tokens(per_token):
    """By correctness and by the sign of the advantage, which are two things: an overlong right response."""
    scored = [micro_batch(seed, per_token) for seed in range(3)]
    batches = [
        s.inputs | {"completion_mask": s.mask, "right": torch.tensor([True, False, i > 0])}
        for i, s in enumerate(scored)
    ]
    found = rollout_metrics(batches, [s.entropies for s in scored], on_one_process)
    rows = []  # entropy, advantage, right
    for batch, one in zip(batches, scored, strict=True):
        for i, t in one.mask.nonzero().tolist():
            advantage = batch["advantages"][i, t] if per_token else batch["advantages"][i]
            rows.append((float(one.entropies[i, t]), float(advantage), bool(batch["right"][i])))

    def mean(condition):
        return pytest.approx(statistics.fmean(h for h, a, right in rows if condition(a, right)), rel=1e-5)

    entropies = sorted(h for h, _, _ in rows)
    assert found == {
        "entropy/mean": mean(lambda a, right: True),
        "entropy/right": mean(lambda a, right: right),
        "entropy/wrong": mean(lambda a, right: not right),
        "entropy/positive": mean(lambda a, right: a > 0),
        "entropy/negative": mean(lambda a, right: a < 0),
        **{f"entropy/p{p}": entropies[math.floor(p * (len(rows) - 1) / 100)] for p in LEVELS},
    }
    assert found["entropy/right"] != found["entropy/positive"] and found["entropy/wrong"] != found["entropy/negative"]


def test_a_window_without_tokens_logs_no_number():
    empty = micro_batch(0, False)
    empty.mask[:], empty.kept[:] = False, False
    found = window_metrics([empty], [empty], LIMITS, on_one_process)
    assert found.pop("kept") == found.pop("all") == 0
    assert all(math.isnan(value) for value in found.values())


def test_tokens_of_tools_are_not_the_policys():
    written = torch.tensor([[1, 1, 1, 0]])
    assert loss_mask({"completion_mask": written}) is written
    own = {"completion_mask": written, "tool_mask": torch.tensor([[1, 0, 1, 1]])}
    assert loss_mask(own).tolist() == [[1, 0, 1, 0]]


def test_ratios_are_one_without_old_log_probabilities():
    logps = torch.tensor([[-1.0, -2.0]])
    assert probability_ratio(logps, {}).tolist() == [[1.0, 1.0]]
    old = torch.tensor([[-1.5, -2.0]])
    assert probability_ratio(logps, {"old_per_token_logps": old})[0].tolist() == pytest.approx([math.exp(0.5), 1.0])


def test_advantages_have_a_column_or_one_for_each_token():
    assert row_advantages({"advantages": torch.tensor([1.0, 2.0])}).tolist() == [[1.0], [2.0]]
    assert row_advantages({"advantages": torch.ones(2, 3)}).shape == (2, 3)


class Letters:
    """Decodes token 0 as `a`, 1 as `b`, and so on."""

    def decode(self, ids):
        return "".join(chr(97 + int(i)) for i in ids)


def test_samples_hold_the_tokens_that_count():
    inputs = {
        "prompt_ids": torch.tensor([[9, 3, 4], [5, 6, 7]]),
        "prompt_mask": torch.tensor([[0, 1, 1], [1, 1, 1]]),
        "completion_ids": torch.tensor([[0, 1, 2], [0, 0, 0]]),
        "advantages": torch.tensor([[0.25, 5.0, 0.33336], [1.0, 1.0, 1.0]]),
        "right": torch.tensor([True, False]),
    }
    mask = torch.tensor([[True, False, True], [False, False, False]])
    kept = torch.tensor([[False, False, True], [False, False, False]])
    scored = Scored(inputs, mask, kept, torch.tensor([[0.123456, 9.0, 1.0], [0.0, 0.0, 0.0]]))
    first = {
        "prompt": "de",
        "tokens": ["a", "c"],
        "token_ids": [0, 2],
        "entropies": [0.1235, 1.0],
        "kept": [0, 1],
        "advantage": 0.2917,
        "right": True,
    }
    nothing = {"prompt": "fgh", "tokens": [], "token_ids": [], "entropies": [], "kept": [], "advantage": 0.0}
    nothing["right"] = False
    assert token_samples(scored, 1, Letters()) == [first]
    assert token_samples(scored, 5, Letters()) == [first, nothing]
