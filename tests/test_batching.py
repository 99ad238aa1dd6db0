"""Grouping and trimming against brute force over ragged batches."""

import pytest
import torch

from entropy_grpo.batching import by_length, merge, positions_are_relative, take, trimmed_passes


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


def ragged(prompts, completions, prompt_width, completion_width):
    rows = [
        [0] * (prompt_width - p) + [1] * (p + c) + [0] * (completion_width - c)
        for p, c in zip(prompts, completions, strict=True)
    ]
    return torch.tensor(rows)


@pytest.mark.parametrize("batch_size", [None, 1, 2, 3, 5, 9])
@pytest.mark.parametrize("seed", range(10))
def test_passes_hold_every_token_once_and_nothing_wider(seed, batch_size):
    rng = torch.Generator().manual_seed(seed)
    prompts = torch.randint(1, 6, (7,), generator=rng).tolist()
    completions = torch.randint(1, 10, (7,), generator=rng).tolist()
    mask = ragged(prompts, completions, 6, 12)
    passes = trimmed_passes(mask, 12, batch_size)
    assert sorted(torch.cat([rows for rows, _, _ in passes]).tolist()) == list(range(7))
    assert len(passes) == (1 if batch_size is None else -(-7 // batch_size))
    for rows, start, stop in passes:
        assert start == 6 - max(prompts[i] for i in rows)
        assert stop == 6 + max(completions[i] for i in rows)
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
    """Two ranks with 64 log-normal lengths each: their n-th of 16 micro-batches differ by little in width, and what
    they pad is little."""
    rng = torch.Generator().manual_seed(0)
    ranks = [torch.exp(torch.randn(64, generator=rng) * 0.8).mul(mean * 700).clamp(2, 1000).long() for _ in range(2)]
    widths = [[lengths[rows].max() for rows in by_length(lengths).tensor_split(16)] for lengths in ranks]
    together = sum(max(pair) for pair in zip(*widths, strict=True)) * 4
    assert together < 1.35 * max(lengths.sum() for lengths in ranks)
    at_random = sum(max(lengths[i : i + 4].max() for lengths in ranks) for i in range(0, 64, 4)) * 4
    assert together < 0.7 * at_random


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
