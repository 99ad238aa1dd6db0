"""Which tokens are kept, against sorting, stock torch and hand-worked cases, on one and on several ranks."""

import math
import threading
from decimal import Decimal

import numpy as np
import pytest
import torch

from entropy_grpo import EntropyForkGRPOConfig
from entropy_grpo.objective.methods.covariance import share_of_tokens
from entropy_grpo.objective.methods.over_ranks import quantile
from entropy_grpo.objective.methods.quantile_advantage import qae
from entropy_grpo.objective.methods.ratios import low_of_response
from entropy_grpo.objective.methods.view import StepView
from entropy_grpo.objective.objective import Objective
from entropy_grpo.objective.ranks import ALONE
from entropy_grpo.objective.selection import (
    MAX_TOKENS,
    above,
    gradient_norms,
    percentiles,
    random_scores,
    select,
    select_matched,
)
from entropy_grpo.objective.share import kept_count, kept_share

from . import reference


def on_ranks(inputs, work):
    """Run `work(reduce, *input)` for every rank's input at once, `reduce` summing over them; the ranks' results."""
    barrier, shared, results = threading.Barrier(len(inputs), timeout=60), [None] * len(inputs), [None] * len(inputs)

    def rank(i):
        def reduce(tensor):
            shared[i] = tensor
            barrier.wait()
            total = sum(shared)
            barrier.wait()
            return total

        results[i] = work(reduce, *inputs[i])

    threads = [threading.Thread(target=rank, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def ragged(seed, levels=4, shape=(7, 11)):
    """Entropies with many ties, a ragged mask with an all-masked row, and places in no particular order."""
    rng = torch.Generator().manual_seed(seed)
    entropies = torch.randint(0, levels, shape, generator=rng) / 3.0
    mask = torch.rand(shape, generator=rng) < 0.7
    mask[2] = False
    return entropies, mask, torch.randperm(math.prod(shape), generator=rng).view(shape)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rho", [0.01, 0.2, 1.0])
def test_top_is_sorting(seed, rho):
    entropies, mask, places = ragged(seed)
    kept, threshold = select(entropies, mask, rho, places)
    assert torch.equal(kept, reference.top(entropies, mask, rho, places))
    assert threshold == entropies[kept].min().item()


@pytest.mark.parametrize("rho", [0.01, 0.2, 0.9])
def test_bottom_is_what_top_drops(rho):
    entropies, mask, places = ragged(0)
    top, threshold = select(entropies, mask, rho, places)
    bottom, same_threshold = select(entropies, mask, rho, places, kind="bottom")
    assert torch.equal(top ^ bottom, mask) and not (top & bottom).any()
    assert threshold == same_threshold


def test_stock_quantile_keeps_ties_and_this_does_not():
    """The defect that counting mends: with all entropies equal `>=` keeps every token."""
    entropies, mask = torch.full((5, 8), 0.5), torch.ones(5, 8)
    assert (entropies >= torch.quantile(entropies, 0.8)).sum() == 40
    kept, _ = select(entropies, mask, 0.2, torch.arange(40).view(5, 8))
    assert kept.flatten().nonzero().flatten().tolist() == list(range(8))


def test_nothing_to_select_from():
    kept, threshold = select(torch.rand(3, 4), torch.zeros(3, 4), 0.2, torch.arange(12).view(3, 4))
    assert not kept.any() and math.isnan(threshold)
    assert all(math.isnan(p) for p in percentiles(torch.rand(3), torch.zeros(3), (5, 50)))


def test_infinities_signs_and_denormals_are_ordered_as_floats():
    values = torch.tensor([-math.inf, -1.0, -1e-40, 0.0, 1e-40, 1.0, 3.4e38, math.inf])
    shuffled = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    for k in range(1, 9):
        kept, threshold = select(values[shuffled], torch.ones(8), k / 8, torch.arange(8))
        assert sorted(values[shuffled][kept].tolist()) == values[-k:].tolist()
        assert threshold == values[-k].item()


def test_negative_zero_ties_with_zero():
    kept, _ = select(torch.tensor([0.0, -0.0, 0.0]), torch.ones(3), 0.3, torch.tensor([2, 0, 1]))
    assert kept.tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("n", "rho", "kind", "kept"),
    [
        (100, 0.07, "top", 7),  # 100 * 0.07 is 7.000000000000001 in floating point
        (10, 0.2, "top", 2),
        (11, 0.2, "top", 3),
        (11, 0.2, "bottom", 8),
        (5, 0.01, "top", 1),
        (3, 1.0, "random", 3),
        (0, 0.2, "top", 0),
        (50_000_000, 1e-6, "top", 50),
    ],
)
def test_counts_are_exact(n, rho, kind, kept):
    assert kept_count(n, rho, kind) == kept


@pytest.mark.parametrize("number", [np.float64, np.float32])
def test_shares_of_numpy_count_as_their_decimals(number, tmp_path):
    """In every rule that takes a share: against exact decimals, and against torch.quantile."""
    config = EntropyForkGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, top_entropy_quantile=number(0.2))
    assert Objective.from_args(config).kept_count(100) == 20
    for share in ("0.07", "0.2", "0.29", "0.001"):
        for n in (1, 7, 100, 1000):
            assert kept_count(n, number(share)) == math.ceil(n * Decimal(share))
    values, rewards = torch.rand(1, 101, generator=torch.Generator().manual_seed(0)), torch.arange(10.0)
    mask, order = torch.ones(1, 101, dtype=torch.bool), torch.arange(10)
    assert percentiles(values, mask, [number(29.0)]) == [float(values.quantile(0.29, interpolation="lower"))]
    assert quantile(values, mask, number(0.295), ALONE) == pytest.approx(float(values.quantile(0.295)))
    assert int(low_of_response(values, mask, number(0.29)).sum()) == 30
    view = StepView(torch.ones(10, 10, dtype=torch.bool), order, 10, 10, rewards, ALONE, rewards=rewards)
    assert share_of_tokens(number(0.29), view) == 29
    assert qae(view, rewards, number(0.7)).tolist().index(0.0) == 6  # the seventh of ten rewards


def test_more_tokens_than_stock_quantile_takes():
    n = 2**24 + 3
    entropies = torch.rand(n, generator=torch.Generator().manual_seed(0))
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(entropies, 0.8)
    kept, threshold = select(entropies, torch.ones(n, dtype=torch.bool), 0.2, torch.arange(n))
    expected = entropies.topk(math.ceil(n / 5)).values
    assert kept.sum() == len(expected)
    assert threshold == expected[-1].item()


@pytest.mark.parametrize("kind", ["top", "bottom", "random"])
@pytest.mark.parametrize("rho", [0.01, 0.2, 1.0])
def test_ranks_keep_what_one_process_keeps(kind, rho):
    """Three ranks of unequal size, one of them without a single token."""
    entropies, mask, places = ragged(4)
    whole, threshold = select(entropies, mask, rho, places, kind=kind, seed=5)
    parts = [(slice(0, 2),), (slice(2, 3),), (slice(3, 7),)]
    results = on_ranks(
        parts,
        lambda reduce, rows: select(entropies[rows], mask[rows], rho, places[rows], kind=kind, seed=5, reduce=reduce),
    )
    assert torch.equal(torch.cat([kept for kept, _ in results]), whole)
    if kind != "random":
        assert {t for _, t in results} == {threshold}


def matched_by_brute_force(entropies, norms, mask, rho, places, seed):
    """Random tokens one by one, until their norms, in units of 2^-30 of the largest, add up to those of the top."""
    units = {
        c: round(float(norms[c].double() / norms[mask].max().double()) * 2**30)
        for c in map(tuple, mask.nonzero().tolist())
    }
    top = reference.top(entropies, mask, rho, places)
    wanted = sum(units[c] for c in units if top[c])
    drawn = random_scores(places, seed)
    kept, total = torch.zeros_like(mask), 0
    for cell in sorted(units, key=lambda c: (-float(drawn[c]), int(places[c]))):
        if total >= wanted:
            break
        kept[cell] = True
        total += units[cell]
    return kept, top


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rho", [0.01, 0.2, 0.9])
def test_matched_tokens_have_the_gradient_of_the_top(seed, rho):
    entropies, mask, places = ragged(seed)
    rng = torch.Generator().manual_seed(seed + 10)
    # Norms grow with the entropy, and some are zero, as those of tokens without advantage are.
    norms = (
        (entropies + 0.1)
        * torch.rand(entropies.shape, generator=rng)
        * (torch.rand(entropies.shape, generator=rng) < 0.8)
    )
    kept = select_matched(entropies, norms, mask, rho, places, seed=seed)
    expected, top = matched_by_brute_force(entropies, norms, mask, rho, places, seed)
    assert torch.equal(kept, expected)
    excess = norms[kept].double().sum() - norms[top].double().sum()
    assert -1e-6 < excess < norms[mask].max() + 1e-6
    parts = [slice(0, 2), slice(2, 3), slice(3, 7)]
    results = on_ranks(
        [(rows,) for rows in parts],
        lambda reduce, rows: select_matched(
            entropies[rows], norms[rows], mask[rows], rho, places[rows], seed=seed, reduce=reduce
        ),
    )
    assert torch.equal(torch.cat(results), kept)


def test_matched_tokens_without_a_gradient_are_none():
    entropies, mask, places = ragged(0)
    assert not select_matched(entropies, torch.zeros_like(entropies), mask, 0.2, places, seed=0).any()
    assert not select_matched(entropies, entropies, torch.zeros_like(mask), 0.2, places, seed=0).any()
    only_dropped = (entropies == entropies[mask].min()).float()
    kept = select_matched(entropies, only_dropped, mask, 0.1, places, seed=0)
    assert not kept.any(), "the top has no gradient either"


def test_matched_norms_are_added_in_units_of_the_largest():
    """Four tokens in the order in which they are drawn, with norms of 1, 1.3, 2^30 and no unit. The second is the top.

    Its norm rounds to the one unit of the first token, which therefore suffices.
    """
    places = torch.tensor([5, 6, 7, 8])
    drawn = random_scores(places, 3).argsort(descending=True)
    norms, entropies = torch.empty(4), torch.empty(4)
    norms[drawn] = 4 * torch.tensor([2.0**-30, 1.3 * 2.0**-30, 1.0, 0.0])
    entropies[drawn] = torch.tensor([0.1, 0.9, 0.1, 0.1])
    kept = select_matched(entropies, norms, torch.ones(4), 0.25, places, seed=3)
    assert kept.nonzero().flatten().tolist() == drawn[:1].tolist()


def test_batching_does_not_change_a_random_selection():
    """Only the place of a token counts, not the order in which tokens arrive or the padding between them."""
    entropies, mask, places = ragged(6)
    kept, _ = select(entropies, mask, 0.3, places, kind="random", seed=1)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(2))
    shuffled, _ = select(entropies[order], mask[order], 0.3, places[order], kind="random", seed=1)
    assert torch.equal(shuffled, kept[order])
    another, threshold = select(entropies, mask, 0.3, places, kind="random", seed=2)
    assert not torch.equal(another, kept) and math.isnan(threshold)
    first, _ = select(entropies, mask, 0.3, places, kind="random", seed=0)
    assert torch.equal(select(entropies, mask, 0.3, places, kind="random")[0], first)


def splitmix64(state):
    """The published generator (Steele, Lea and Flood 2014) in whole numbers."""
    state = (state + 0x9E3779B97F4A7C15) % 2**64
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
    return state ^ (state >> 31)


def test_random_scores_are_the_high_bits_of_splitmix64():
    """Against the first outputs for the seed 1234567, as they are published, and at places all over the range."""
    outputs = (6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431)
    for step, output in enumerate(outputs):
        assert splitmix64(1234567 + step * 0x9E3779B97F4A7C15) == output
        assert random_scores(torch.tensor([1234567]), seed=step).item() == output >> 40
    places = [0, 1, MAX_TOKENS - 1, *(7**i for i in range(2, 11))]
    for seed in (0, 1, 41, 2**40):
        expected = [splitmix64(place + seed * 0x9E3779B97F4A7C15) >> 40 for place in places]
        assert random_scores(torch.tensor(places), seed).tolist() == expected


def test_random_scores_are_uniform_and_independent_of_the_seed_next_to_them():
    scores = torch.stack([random_scores(torch.arange(200_000), seed) for seed in (0, 1)]).double() / 2**24
    for row in scores:
        # 20 equal bins of 10,000 expected draws: chi-squared with 19 degrees of freedom, 99.99% quantile 50.8.
        counts = torch.histc(row, bins=20, min=0, max=1)
        assert ((counts - 10_000) ** 2 / 10_000).sum() < 50.8
    assert abs(torch.corrcoef(scores)[0, 1]) < 0.01
    assert abs(torch.corrcoef(torch.stack([scores[0, :-1], scores[0, 1:]]))[0, 1]) < 0.01


@pytest.mark.parametrize("seed", range(3))
def test_percentiles_are_torch_quantiles_also_over_ranks(seed):
    values = torch.randn(40, generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(40) % 3 != seed
    levels = (0, 5, 25, 50, 75, 90, 95, 99, 100)
    expected = [torch.quantile(values[mask], q / 100, interpolation="lower").item() for q in levels]
    assert percentiles(values, mask, levels) == expected
    parts = [(slice(0, 9),), (slice(9, 40),)]
    for result in on_ranks(parts, lambda reduce, part: percentiles(values[part], mask[part], levels, reduce)):
        assert result == expected


def test_bf16_and_float64_entropies_are_compared_as_float32():
    entropies = torch.tensor([1.0, 1.0 + 1e-9, 0.5], dtype=torch.float64)  # the first two are equal in float32
    kept, _ = select(entropies, torch.ones(3), 0.3, torch.tensor([0, 1, 2]))
    assert kept.tolist() == [True, False, False]
    kept, _ = select(entropies.bfloat16(), torch.ones(3), 0.5, torch.tensor([0, 1, 2]))
    assert kept.tolist() == [True, True, False]


def test_the_largest_place_still_fits():
    kept, _ = select(torch.ones(2), torch.ones(2), 0.5, torch.tensor([MAX_TOKENS - 1, MAX_TOKENS - 2]))
    assert kept.tolist() == [False, True]


@pytest.mark.parametrize("delta", [None, 1.75, 1.25])
def test_gradient_norms_are_those_of_the_surrogate(delta):
    """By autograd through TRL's surrogate in float64, edges of the clips included; the residual norms are a factor."""
    rng = torch.Generator().manual_seed(0)
    ratios = torch.rand(6, 40, generator=rng, dtype=torch.float64) * 2 + 0.1
    ratios[:, :4] = torch.tensor([0.75, 1.5, 1.75, 1.0])
    advantages = torch.randn(6, 40, generator=rng, dtype=torch.float64)
    advantages[3] = 0.0
    norms = torch.rand(6, 40, generator=rng, dtype=torch.float64)
    for rows in (advantages, advantages[:, :1]):
        logps = ratios.log().requires_grad_()
        # exp(logps - stop_gradient(logps)) is 1 with the gradient of a ratio, so that edges are hit exactly.
        unclipped = ratios * (logps - logps.detach()).exp()
        capped = unclipped if delta is None else unclipped.clamp(max=delta)
        surrogate = torch.minimum(capped * rows, unclipped.clamp(0.75, 1.5) * rows)
        surrogate.sum().backward()
        found = gradient_norms(norms, rows, ratios, 0.25, 0.5, delta)
        torch.testing.assert_close(found, logps.grad.abs() * norms)


def test_the_paper_keeps_a_fifth():
    assert EntropyForkGRPOConfig.top_entropy_quantile == 0.2


@pytest.mark.parametrize("rho", [0.2, 0.25, 1.0])
def test_the_kept_share_is_what_the_kept_count_comes_to(rho):
    for kind in ("top", "random", "gradient_norm", "bottom"):
        assert kept_share(rho, kind) == pytest.approx(kept_count(10**6, rho, kind) / 10**6)


@pytest.mark.parametrize("kind", ["top", "bottom"])
def test_a_threshold_keeps_what_its_selection_has_kept(kind):
    """Where no scores are equal; of equal ones it keeps all."""
    rng = torch.Generator().manual_seed(0)
    scores, mask = torch.randn(4, 9, generator=rng), torch.rand(4, 9, generator=rng) < 0.7
    kept, threshold = select(scores, mask, 0.3, torch.arange(36).view(4, 9), kind)
    assert kept.any() and torch.equal(above(scores, mask, threshold, kind), kept)
    flat = torch.ones(2, 3)
    assert above(flat, flat, 1.0, kind).all() == (kind == "top")
