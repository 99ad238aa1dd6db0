"""The plan of an optimiser step, without a trainer: on one rank and on two, against sorting."""

import copy
import math
import threading

import pytest
import torch
from trl import GRPOTrainer

from entropy_grpo import EntropyForkGRPOConfig
from entropy_grpo.objective.objective import Objective
from entropy_grpo.objective.ranks import ALONE, Ranks
from entropy_grpo.objective.tokens import loss_mask, with_gradient
from entropy_grpo.objective.window import (
    Pass,
    Scored,
    Window,
    check_kept,
    evaluation_window,
    plan_window,
    select_tokens,
)

from . import reference

SIZE, WIDTH = 3, 11  # sequences of a micro-batch, tokens of a completion
# By sequence and position, with many ties.
ENTROPIES = torch.randint(1, 30, (64, WIDTH), generator=torch.Generator().manual_seed(7)) / 8


def make_objective(tmp_path, **settings):
    """The decisions of a recipe with two micro-batches to a step."""
    settings = {"gradient_accumulation_steps": 2, "top_entropy_quantile": 0.2, "entropy_scope": "global"} | settings
    args = EntropyForkGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, num_generations=4, **settings)
    return Objective.from_args(args)


def make_batches(count, first=0, width=WIDTH, prompt_width=4, seed=0):
    """Micro-batches of ragged completions, of which one is empty, and every third sequence has no advantage."""
    rng, batches = torch.Generator().manual_seed(seed), []
    for start in range(first, first + count * SIZE, SIZE):
        index = torch.arange(start, start + SIZE)
        lengths = (index * 5 + 3) % (WIDTH + 1)
        batches.append(
            {
                "prompt_ids": torch.randint(3, 50, (SIZE, prompt_width), generator=rng),
                "prompt_mask": (torch.arange(prompt_width) >= prompt_width - 1 - (index % 4).unsqueeze(1)).long(),
                "completion_ids": index.unsqueeze(1) * 100 + torch.arange(width),
                "completion_mask": (torch.arange(width) < lengths.unsqueeze(1)).long(),
                "advantages": torch.where(index % 3 == 0, 0.0, (index % 2) * 2.0 - 1),
                "sequence_index": index,
                "sequence_count": torch.tensor(64),
            }
        )
    return batches


def score(inputs):
    """A pass that knows the entropy of every token by its sequence and position."""
    table = torch.nn.functional.pad(ENTROPIES, (0, inputs["completion_ids"].size(1) - WIDTH))
    entropies = table[inputs["sequence_index"]] * inputs["completion_mask"]
    return Pass(torch.zeros_like(entropies), entropies)


def never(inputs):
    raise AssertionError("no pass should be made")


def on_ranks(count, work):
    """What `work(ranks)` returns on so many ranks, each a thread that meets the others in every collective."""
    barrier, slots, results = threading.Barrier(count), [None] * count, [None] * count

    def meet(index, value):
        slots[index] = value
        barrier.wait()
        everything = list(slots)
        barrier.wait()
        return everything

    def gather(index, tensor, pad_left):
        parts = meet(index, tensor)
        if tensor.dim() > 1:
            width = max(part.size(1) for part in parts)
            parts = [
                torch.nn.functional.pad(p, (width - p.size(1), 0) if pad_left else (0, width - p.size(1)))
                for p in parts
            ]
        return torch.cat(parts)

    def run(index):
        results[index] = work(
            Ranks(
                index,
                count,
                sum=lambda tensor: sum(meet(index, tensor)),
                largest=lambda number: max(meet(index, number)),
                gather=lambda tensor, pad_left: gather(index, tensor, pad_left),
            )
        )

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return results


def tokens_of(batches, name="kept_mask"):
    """(sequence, position) of the true elements of (B, T) masks, and how often each occurs."""
    found = [
        (int(b["sequence_index"][i]), t)
        for b in batches
        for i, t in (b[name] if isinstance(name, str) else name(b)).nonzero().tolist()
    ]
    assert len(found) == len(set(found)), "a token is in two micro-batches"
    return set(found)


def sorted_top(batches, rho):
    """The kept tokens by sorting, of micro-batches of one width."""
    merged = {key: torch.cat([b[key] for b in batches]) for key in ("completion_mask", "sequence_index")}
    merged["completion_ids"] = torch.cat([b["completion_ids"] for b in batches])
    places = torch.arange(WIDTH) * 64 + merged["sequence_index"].unsqueeze(1)
    kept = reference.top(score(merged).entropies, merged["completion_mask"].bool(), rho, places)
    return tokens_of([merged | {"kept_mask": kept}])


@pytest.mark.parametrize("rho", [0.02, 0.2, 0.9])
@pytest.mark.parametrize("by_length", [True, False])
def test_a_window_keeps_its_top_however_it_is_split(tmp_path, rho, by_length):
    """Four micro-batches on one rank, or two on each of two, one of them wider."""
    batches = make_batches(4)
    expected = sorted_top(batches, rho)
    with_advantage = {(s, t) for s, t in expected if s % 3}
    one = make_objective(tmp_path, top_entropy_quantile=rho, gradient_accumulation_steps=4, batch_by_length=by_length)
    two = make_objective(tmp_path, top_entropy_quantile=rho, batch_by_length=by_length)
    windows = [plan_window(batches, one, ALONE, score, SIZE, seed=0)]
    wide = [make_batches(2, prompt_width=6), make_batches(2, first=2 * SIZE, width=WIDTH + 3)]
    windows += on_ranks(2, lambda ranks: plan_window(wide[ranks.index], two, ranks, score, SIZE, seed=0))
    assert [len(w.batches) for w in windows] == [4, 2, 2]
    assert [w.kept for w in windows] == [len(expected)] * 3
    for group in (windows[:1], windows[1:]):
        assert tokens_of([b for w in group for b in w.everything]) == expected
        prompts = [b["prompt_mask"].diff(dim=1) for w in group for b in w.batches]
        assert all((steps >= 0).all() for steps in prompts), "a prompt is no longer padded on the left"
        run = tokens_of([b for w in group for b in w.batches])
        assert (run if not by_length else {(s, t) for s, t in run if s % 3}) == (
            expected if not by_length else with_advantage
        )
        assert all(w.thresholds == [min(float(ENTROPIES[s, t]) for s, t in expected)] for w in group)
        assert all(len(b["sequence_index"]) for w in group for b in w.batches), "an empty micro-batch"
    sizes = [sum(len(b["sequence_index"]) for b in w.batches) for w in windows]
    if by_length:
        live = {s for s, _ in with_advantage}
        assert sizes[0] == max(len(live), 4) and sizes[1] == sizes[2] == max(-(-len(live) // 2), 2)
    else:
        assert sizes == [12, 6, 6]


def vespo_weights(batches):
    """TRL's weight of VESPO of every sequence, in the first step of a rollout."""
    found = {}
    for b in batches:
        zeros = torch.zeros_like(b["completion_mask"], dtype=torch.float32)
        ratio, advantages = b["importance_sampling_ratio"], b["advantages"].unsqueeze(1)
        weights = GRPOTrainer.get_gamma_weights(advantages, zeros, b["completion_mask"], ratio)
        found |= dict(zip(b["sequence_index"].tolist(), weights.flatten().tolist(), strict=True))
    return found


def test_the_width_of_other_ranks_does_not_change_vespo(tmp_path):
    """TRL's weight of every sequence is that before the ranks exchange sequences, of which one rank's are wider."""
    halves = [make_batches(2), make_batches(2, first=2 * SIZE, width=WIDTH + 3)]
    for b in halves[0] + halves[1]:  # 1 in the padding, as TRL computes it
        drift = 0.02 * (b["sequence_index"].unsqueeze(1) % 5 - 2) * b["completion_mask"]
        b["importance_sampling_ratio"] = drift.exp()
    objective = make_objective(tmp_path, loss_type="vespo", top_entropy_quantile=1.0)
    windows = on_ranks(2, lambda ranks: plan_window(halves[ranks.index], objective, ranks, never, SIZE, seed=0))
    after, before = vespo_weights([b for w in windows for b in w.batches]), vespo_weights(halves[0] + halves[1])
    assert after == pytest.approx(before, rel=1e-6) and len(set(after.values())) > 3


@pytest.mark.parametrize("budget", [1, 2 * (WIDTH + 4), 4 * (WIDTH + 4), 1000])
def test_a_budget_holds_on_every_rank(tmp_path, budget):
    """The same number of micro-batches on both ranks, each with a sequence, and the same tokens in all."""
    settings = {"entropy_scope": "global", "gradient_accumulation_steps": 6}
    free, bound = (make_objective(tmp_path, token_budget=b, **settings) for b in (None, budget))
    batches = make_batches(12)
    halves = batches[:6], batches[6:]
    windows, others = (
        on_ranks(2, lambda ranks, o=o: plan_window(halves[ranks.index], o, ranks, score, SIZE, seed=0))
        for o in (bound, free)
    )
    numbers = [len(w.batches) for w in windows]
    assert numbers[0] == numbers[1] <= 6 and (numbers[0] == 1) == (budget == 1000)
    for window in windows:
        for b in window.batches:
            lengths = b["prompt_mask"].sum(1) + b["completion_mask"].sum(1)
            # More micro-batches than TRL makes are not to be had: then TRL's have to hold.
            room = budget if numbers[0] < 6 else SIZE * (WIDTH + 4)
            assert len(lengths) and (len(lengths) == 1 or len(lengths) * int(lengths.max()) <= room)
    run, of_free = (tokens_of([b for w in group for b in w.batches], with_gradient) for group in (windows, others))
    assert run == of_free and windows[0].kept == others[0].kept


def test_a_plan_changes_nothing_and_is_the_same_again(tmp_path):
    batches = make_batches(2)
    before = copy.deepcopy(batches)
    objective = make_objective(tmp_path)
    first, again = (plan_window(batches, objective, ALONE, score, SIZE, seed=0) for _ in range(2))
    for batch, copied in zip(batches, before, strict=True):
        assert batch.keys() == copied.keys() and all(torch.equal(batch[key], copied[key]) for key in batch)
    assert tokens_of(first.batches) == tokens_of(again.batches)
    assert first.scored == [] and len(first.ranking[0]) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"entropy_scope": "micro_batch"},
        {"entropy_scope": "global", "gradient_accumulation_steps": 1},
        {"top_entropy_quantile": 1.0},
    ],
    ids=str,
)
def test_no_pass_is_made_where_the_loss_ranks_or_all_are_kept(tmp_path, settings):
    objective = make_objective(tmp_path, **settings)
    batches = make_batches(objective.accumulation, first=6)
    window = plan_window(batches, objective, ALONE, never, SIZE, seed=0)
    assert (window.everything, window.thresholds, window.ranking) == (None, [], None)
    counts = [int(b["completion_mask"].sum()) for b in window.batches]
    expected = sum(-(-n // 5) for n in counts) if objective.rho < 1 else 0
    assert window.kept == expected
    assert "kept_mask" not in window.batches[0]


def test_a_ranked_rollout_needs_no_pass(tmp_path):
    """Its steps keep what falls on them, drop sequences that keep nothing, and have the rollout's threshold."""
    objective = make_objective(tmp_path, entropy_scope="rollout")
    batches = make_batches(4)
    masks, threshold = select_tokens([score(b) for b in batches], batches, objective, ALONE, seed=0)
    ranked = [
        b
        | {"kept_mask": m, "counted": m.sum(1), "entropies": score(b).entropies, "threshold": torch.tensor(threshold)}
        for b, m in zip(batches, masks, strict=True)
    ]
    assert tokens_of(ranked) == sorted_top(batches, 0.2)
    for step in (ranked[:2], ranked[2:]):
        window = plan_window(step, objective, ALONE, never, SIZE, seed=0)
        assert window.kept == len(tokens_of(step)) and window.thresholds == [pytest.approx(threshold)]
        assert tokens_of(window.batches, with_gradient) == tokens_of(step, with_gradient)
        assert sum(len(b["sequence_index"]) for b in window.batches) < 2 * SIZE
        assert window.everything is step
        assert sum(int(s.mask.sum()) for s in window.all_tokens()) == sum(int(loss_mask(b).sum()) for b in step)


@pytest.mark.parametrize(
    "settings",
    [{"loss_type": "bnpo", "entropy_denominator": "all"}, {"entropy_coef": 0.01}, {"batch_by_length": False}],
    ids=str,
)
def test_micro_batches_of_trl_stay_together(tmp_path, settings):
    objective = make_objective(tmp_path, entropy_scope="micro_batch", **settings)
    batches = make_batches(2)
    assert plan_window(batches, objective, ALONE, never, SIZE, seed=0).batches is batches


def test_images_stay_with_their_sequences(tmp_path):
    batches = [b | {"num_images": [1, 0, 2]} for b in make_batches(2)]
    window = plan_window(batches, make_objective(tmp_path), ALONE, score, SIZE, seed=0)
    assert [b["num_images"] for b in window.batches] == [[1, 0, 2]] * 2
    assert [b["sequence_index"].tolist() for b in window.batches] == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo"])
def test_means_over_sequences_keep_every_sequence(tmp_path, loss_type):
    objective = make_objective(tmp_path, loss_type=loss_type, entropy_denominator="all")
    window = plan_window(make_batches(2), objective, ALONE, score, SIZE, seed=0)
    assert [len(b["sequence_index"]) for b in window.batches] == [SIZE, SIZE]


def test_an_evaluation_is_a_window_of_its_own(tmp_path):
    (batch,) = make_batches(1, first=2)
    window = evaluation_window(batch, make_objective(tmp_path), ALONE)
    assert window == Window([batch], -(-int(batch["completion_mask"].sum()) // 5))


@pytest.mark.parametrize(
    ("kept", "total", "expected", "selections", "wrong"),
    [
        (3, 15, 3, 1, False),
        (4, 15, 4, 1, True),
        (4, 16, 4, 1, False),
        (5, 16, 5, 1, True),
        (5, 16, 5, 2, False),
        (3, 15, 4, 1, True),
        (0, 0, 0, 1, False),
    ],
)
def test_kept_tokens_are_checked(tmp_path, kept, total, expected, selections, wrong):
    given = (kept, total, expected, make_objective(tmp_path), *([selections] if selections > 1 else []))
    if not wrong:
        check_kept(*given)
        return
    with pytest.raises(RuntimeError, match=f"{kept} of {total} tokens instead of the share 0.2, {expected} tokens"):
        check_kept(*given)


def test_every_score_that_is_not_a_number_has_a_threshold_that_is_none(tmp_path):
    objective = make_objective(tmp_path, entropy_selection="random")
    batches = make_batches(2)
    masks, threshold = select_tokens([score(b) for b in batches], batches, objective, ALONE, seed=3)
    assert math.isnan(threshold) and sum(int(m.sum()) for m in masks) == objective.kept_count(
        sum(int(loss_mask(b).sum()) for b in batches)
    )


def score_norms(inputs):
    """A pass with norms of token gradients that grow where the entropies fall."""
    scored = score(inputs)
    return Pass(scored.logps, scored.entropies, (5 - scored.entropies) * inputs["completion_mask"])


@pytest.mark.parametrize("correction", [False, True], ids=["", "vLLM's importance correction"])
def test_tokens_are_ranked_by_the_norms_of_their_gradients(tmp_path, correction):
    """|advantage| * norm, times the correction, sorted; the loss still divides by a fifth of all tokens."""
    objective = make_objective(tmp_path, entropy_selection="gradient_norm")
    batches = make_batches(2)
    if correction:
        for b in batches:
            b["importance_sampling_ratio"] = 1 + b["sequence_index"].unsqueeze(1) % 4
    masks, threshold = select_tokens([score_norms(b) for b in batches], batches, objective, ALONE, seed=0)
    norms = {
        (int(b["sequence_index"][i]), t): float(score_norms(b).residual_norms[i, t])
        * abs(float(b["advantages"][i]))
        * (float(b["importance_sampling_ratio"][i]) if correction else 1)
        for b in batches
        for i, t in b["completion_mask"].nonzero().tolist()
    }
    expected = sorted(norms, key=lambda c: (-norms[c], c[1] * 64 + c[0]))[: objective.kept_count(len(norms))]
    kept = tokens_of([b | {"kept_mask": m} for b, m in zip(batches, masks, strict=True)])
    assert kept == set(expected) and threshold == pytest.approx(min(norms[c] for c in expected))


def test_matched_tokens_have_a_threshold_that_is_none(tmp_path):
    objective = make_objective(tmp_path, entropy_selection="random_matched")
    batches = make_batches(2)
    masks, threshold = select_tokens([score_norms(b) for b in batches], batches, objective, ALONE, seed=3)
    top = sorted_top(batches, 0.2)
    kept = tokens_of([b | {"kept_mask": m} for b, m in zip(batches, masks, strict=True)])
    norms = {s: score_norms(b).residual_norms[s % SIZE] for b in batches for s in b["sequence_index"].tolist()}
    sums = [sum(float(norms[s][t]) for s, t in tokens if s % 3) for tokens in (kept, top)]
    assert math.isnan(threshold) and kept != top and 0 <= sums[0] - sums[1] < 5


def batches_of_lengths(lengths, prompt=1):
    """Two micro-batches of sequences with these lengths in all, all with an advantage."""
    half, width = len(lengths) // 2, max(lengths) - prompt
    completions = torch.tensor(lengths).unsqueeze(1) - prompt
    whole = {
        "prompt_ids": torch.ones(len(lengths), prompt, dtype=torch.long),
        "prompt_mask": torch.ones(len(lengths), prompt, dtype=torch.long),
        "completion_ids": torch.ones(len(lengths), width, dtype=torch.long),
        "completion_mask": (torch.arange(width) < completions).long(),
        "advantages": torch.ones(len(lengths)),
        "sequence_index": torch.arange(len(lengths)),
        "sequence_count": torch.tensor(64),
    }
    cut = [slice(0, half), slice(half, None)]
    return [{key: v[part] if v.dim() else v for key, v in whole.items()} for part in cut]


TWO_LONG, THREE_LONG = [12, 3, 12, 3, 3, 3], [8, 2, 8, 5, 2, 2]


@pytest.mark.parametrize(
    ("lengths", "settings", "sizes"),
    [
        (TWO_LONG, {}, [2, 4]),  # 36 tokens with padding
        (TWO_LONG, {"loss_type": "grpo", "entropy_denominator": "all"}, [3, 3]),  # means within micro-batches
        (TWO_LONG, {"token_budget": 100}, [6]),
        (THREE_LONG, {}, [3, 3]),  # 24 + 6 tokens, in the room of three sequences of 8
        (THREE_LONG, {"token_budget": 20}, [2, 4]),  # as many micro-batches, 16 and 20 tokens
    ],
    ids=str,
)
def test_micro_batches_by_length(tmp_path, lengths, settings, sizes):
    objective = make_objective(tmp_path, top_entropy_quantile=1.0, **settings)
    window = plan_window(batches_of_lengths(lengths), objective, ALONE, never, SIZE, seed=0)
    assert [len(b["sequence_index"]) for b in window.batches] == sizes


def test_a_budget_runs_no_sequence_beside_the_only_one_with_a_gradient(tmp_path):
    batches = make_batches(2)
    for b in batches:
        b["advantages"] = (b["sequence_index"] == 4).float()
    objective = make_objective(tmp_path, token_budget=1000)
    window = plan_window(batches, objective, ALONE, score, SIZE, seed=0)
    assert [b["sequence_index"].tolist() for b in window.batches] == [[4]]


def test_passes_without_their_graph_keep_what_they_lack():
    scored = Pass(torch.zeros(2, 3, requires_grad=True) * 1, entropies=torch.ones(2, 3))
    detached = scored.detach()
    assert not detached.logps.requires_grad and torch.equal(detached.entropies, scored.entropies)
    assert detached.residual_norms is None and detached.aux_loss is None


def test_all_tokens_are_those_that_were_run_if_no_others_are_known():
    scored = [Scored({}, torch.ones(1, 1), torch.ones(1, 1), torch.ones(1, 1))]
    assert Window([], 0, scored=scored).all_tokens() is scored


@pytest.mark.parametrize("denominator", ["kept", "all"])
@pytest.mark.parametrize("rho", [0.2, 1.0])
def test_weights_divide_the_loss_by_their_sum(tmp_path, rho, denominator):
    """Over the kept tokens, or over all where `all` or rho = 1 says so; a weight without a sum changes no divisor."""
    chosen = {"top_entropy_quantile": rho, "entropy_denominator": denominator}
    objective = make_objective(tmp_path, token_weights=["tests.own_methods:by_id"], **chosen)
    batches = make_batches(2)
    window = plan_window(batches, objective, ALONE, score, SIZE, seed=0)
    counted = sorted_top(batches, rho if denominator == "kept" else 1.0)
    weights = [0.5 + 0.5 * ((s * 100 + t) % 7) / 6 for s, t in counted]
    assert window.divisor == pytest.approx(math.fsum(weights))
    plain = make_objective(tmp_path, token_weights=["tests.own_methods:ones_in_the_loss"], **chosen)
    assert plan_window(batches, plain, ALONE, score, SIZE, seed=0).divisor is None
