"""Grouping and trimming against brute force over ragged batches."""

from itertools import accumulate, pairwise, product
from types import SimpleNamespace

import pytest
import torch

from entropy_grpo.objective.batching import (
    by_length,
    cut,
    deal,
    fewest,
    merge,
    padding_is_inert,
    positions_are_relative,
    take,
    trimmed_passes,
)


@pytest.mark.parametrize("seed", range(20))
def test_by_length_runs_all_live_ones_and_the_shortest_others(seed):
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 9, (13,), generator=rng)
    live = torch.rand(13, generator=rng) < 0.5
    for count in range(int(live.sum()), 14):
        rows = by_length(lengths, live, count).tolist()
        assert len(rows) == len(set(rows)) == count
        chosen = [lengths[i].item() for i in rows]
        assert chosen == sorted(chosen, reverse=True)
        assert set(live.nonzero().flatten().tolist()) <= set(rows)
        spare = sorted(lengths[i].item() for i in rows if not live[i])
        assert spare == sorted(lengths[~live].tolist())[: len(spare)]


def test_by_length_keeps_the_order_of_equals():
    assert by_length(torch.tensor([2, 5, 2, 5, 2])).tolist() == [1, 3, 0, 2, 4]


def test_by_length_runs_the_live_ones_by_default():
    live = torch.tensor([True, False, True, False])
    assert by_length(torch.tensor([1, 9, 4, 2]), live).tolist() == [2, 0]


def ragged(prompts, completions, prompt_width, completion_width):
    rows = [
        [0] * (prompt_width - p) + [1] * (p + c) + [0] * (completion_width - c)
        for p, c in zip(prompts, completions, strict=True)
    ]
    return torch.tensor(rows)


@pytest.mark.parametrize("batch_size", [None, 1, 2, 3, 5, 7, 9])
@pytest.mark.parametrize("seed", range(10))
def test_passes_hold_every_token_once_and_nothing_wider(seed, batch_size):
    rng = torch.Generator().manual_seed(seed)
    prompts = torch.randint(1, 6, (7,), generator=rng).tolist()
    completions = torch.randint(1, 10, (7,), generator=rng).tolist()
    mask = ragged(prompts, completions, 6, 12)
    passes = trimmed_passes(mask, 12, batch_size)
    assert sorted(torch.cat([rows for rows, _, _ in passes]).tolist()) == list(range(7))
    for rows, start, stop in passes:
        assert start == 6 - max(prompts[i] for i in rows)
        assert stop == 6 + max(completions[i] for i in rows)
        assert len(rows) * (stop - start) <= (batch_size or 7) * (6 + 12)
    if batch_size is not None and batch_size < 7:
        tokens = [max(prompts[i] + completions[i] for i in rows) for rows, _, _ in passes]
        assert tokens == sorted(tokens, reverse=True)
    else:
        assert passes[0][0].tolist() == list(range(7)), "one pass keeps the order"


def test_pass_without_tokens_has_the_columns_that_scoring_needs():
    """The last column of the prompt and the first of the responses."""
    ((_, start, stop),) = trimmed_passes(torch.zeros(2, 9, dtype=torch.long), 5)
    assert (start, stop) == (3, 5)
    ((_, start, stop),) = trimmed_passes(ragged([2, 1], [0, 0], 4, 5), 5)
    assert (start, stop) == (2, 5)


def test_empty_responses_take_the_column_that_scoring_needs():
    """Three sequences of two columns and that one are more than two of the full width."""
    mask = ragged([2, 2, 2], [0, 0, 0], 2, 1)
    passes = trimmed_passes(mask, 1, 2)
    assert [len(rows) for rows, _, _ in passes] == [2, 1]
    assert all(len(rows) * (stop - start) <= 2 * 3 for rows, start, stop in passes)


@pytest.mark.parametrize("seed", range(10))
def test_passes_hold_what_fits_and_are_as_many_as_agreed(seed):
    """The next sequence would have been too many for a pass; and more passes split sequences, never the order."""
    rng = torch.Generator().manual_seed(seed)
    prompts = torch.randint(1, 6, (40,), generator=rng).tolist()
    completions = torch.exp(torch.randn(40, generator=rng) * 0.8).mul(4).clamp(1, 30).long().tolist()
    mask = ragged(prompts, completions, 6, 30)
    passes = trimmed_passes(mask, 30, 3)
    assert len(passes) < 14 / 1.5, "TRL makes 14, most of them of padding"
    for (rows, _, _), (others, _, _) in pairwise(passes):
        wider = [*rows.tolist(), others[0].item()]
        assert len(wider) * (max(prompts[i] for i in wider) + max(completions[i] for i in wider)) > 3 * 36
    for more in (len(passes) + 1, 20, 40):
        split = trimmed_passes(mask, 30, 3, lambda count, more=more: more)
        assert len(split) == more and all(len(rows) for rows, _, _ in split)
        assert torch.equal(torch.cat([p[0] for p in split]), torch.cat([p[0] for p in passes]))


def test_merge_and_take_undo_each_other():
    rng = torch.Generator().manual_seed(0)
    whole = {"ids": torch.randint(9, (6, 3), generator=rng), "advantages": torch.arange(6.0), "none": None}
    whole["num_items_in_batch"] = torch.tensor(11)
    parts = [take(whole, rows) for rows in torch.arange(6).tensor_split(4)]
    assert [len(part["advantages"]) for part in parts] == [2, 2, 1, 1]
    back = merge(parts)
    assert back.keys() == whole.keys() and back["none"] is None and back["num_items_in_batch"] == 11
    assert torch.equal(back["ids"], whole["ids"]) and torch.equal(back["advantages"], whole["advantages"])


@pytest.mark.parametrize("mean", [0.18, 0.35])
def test_ranks_get_groups_of_about_one_width(mean):
    """512 log-normal lengths on 8 ranks: what the ranks wait for each other, in all micro-batches, is little beside
    the tokens, where micro-batches that each rank sorts by itself would let them wait."""
    rng = torch.Generator().manual_seed(0)
    lengths = torch.exp(torch.randn(512, generator=rng) * 0.8).mul(mean * 700).clamp(2, 1000).long()
    order = by_length(lengths)
    dealt = deal(order, cut(lengths[order][::8], 16, 4 * 1000), 8)
    assert sorted(torch.cat([rows for hands in dealt for rows in hands]).tolist()) == list(range(512))
    assert all(len(rows) == len(hands[0]) for hands in dealt for rows in hands)
    together = sum(max(lengths[rows].max() for rows in hands) * len(hands[0]) for hands in dealt) * 8
    alone = [lengths[torch.arange(rank, 512, 8)].sort(descending=True).values.view(16, 4) for rank in range(8)]
    apart = sum(max(rows[i].max() for rows in alone) for i in range(16)) * 4 * 8
    assert together < 1.1 * lengths.sum() < 1.2 * lengths.sum() < apart


@pytest.mark.parametrize("seed", range(20))
def test_cut_pads_least(seed):
    """Against every way to cut nine sequences into four runs that fit."""
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 30, (9,), generator=rng).sort(descending=True).values

    def held(sizes):
        starts = [0, *accumulate(sizes[:-1])]
        return [int(lengths[start]) * size for start, size in zip(starts, sizes, strict=True)]

    for budget in (3 * int(lengths[0]), 4 * int(lengths[0])):
        ways = [sizes for sizes in product(range(1, 7), repeat=4) if sum(sizes) == 9]
        fitting = [s for s in ways if all(h <= budget or n == 1 for h, n in zip(held(s), s, strict=True))]
        found = cut(lengths, 4, budget)
        assert tuple(found) in fitting
        assert sum(held(found)) == min(sum(held(sizes)) for sizes in fitting)
    assert cut(lengths, 9, 1) == [1] * 9 and cut(lengths, 1, 9 * 30) == [9]


@pytest.mark.parametrize("seed", range(20))
def test_fewest_runs_that_fit(seed):
    """Against every way to cut eight sequences; the cut into so many fits, too."""
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 30, (8,), generator=rng).sort(descending=True).values
    ways = list(product((0, 1), repeat=7))  # whether a run ends behind each sequence but the last
    for budget in (1, 20, 45, 60, 90, 8 * 30):
        found = []
        for ends in ways:
            starts = [0, *(i + 1 for i, end in enumerate(ends) if end)]
            sizes = [b - a for a, b in pairwise([*starts, 8])]
            if all(n == 1 or n * int(lengths[a]) <= budget for a, n in zip(starts, sizes, strict=True)):
                found.append(len(sizes))
        number = fewest(lengths, budget)
        assert number == min(found)
        sizes = cut(lengths, number, budget)
        starts = [0, *accumulate(sizes[:-1])]
        assert sum(sizes) == 8 and len(sizes) == number
        assert all(n == 1 or n * int(lengths[a]) <= budget for a, n in zip(starts, sizes, strict=True))


@pytest.mark.parametrize(
    ("rope", "relative"),
    [
        ({"rope_type": "default", "rope_theta": 1e6}, True),
        ({"rope_type": "yarn", "factor": 4.0}, True),
        ({"rope_type": "dynamic", "factor": 4.0}, False),
        ({"rope_type": "longrope"}, False),
        ({"sliding_attention": {"rope_type": "default"}, "full_attention": {"rope_type": "linear"}}, True),
        ({"sliding_attention": {"rope_type": "default"}, "full_attention": {"rope_type": "dynamic"}}, False),
    ],
)
def test_positions_are_relative_under_static_rotary_embeddings(rope, relative):
    assert positions_are_relative(rope) == relative
    assert padding_is_inert(SimpleNamespace(rope_parameters=rope)) == relative


def test_padding_moves_learned_positions():
    assert not padding_is_inert(SimpleNamespace())
