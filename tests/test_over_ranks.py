"""Statistics over processes: against float64 on all values, and equal to the last bit on every division of them."""

import math

import pytest
import torch

from entropy_grpo.objective.methods import over_ranks
from entropy_grpo.objective.methods.view import StepView
from entropy_grpo.objective.ranks import ALONE

from .test_window import on_ranks

GROUPS, SIZE, WIDTH = 6, 4, 7
N = GROUPS * SIZE
RNG = torch.Generator().manual_seed(3)
VALUES = torch.randn(N, WIDTH, generator=RNG) * torch.logspace(-6, 3, N).unsqueeze(1)
LENGTHS = torch.arange(N) * 5 % (WIDTH + 1)  # some responses are empty
MASK = torch.arange(WIDTH) < LENGTHS.unsqueeze(1)


def view_of(rows, ranks, width=WIDTH):
    return StepView(
        mask=torch.nn.functional.pad(MASK, (0, width - WIDTH))[rows],
        order=rows,
        responses=N,
        group_size=SIZE,
        advantages=VALUES[rows, 0],
        ranks=ranks,
    )


def by_division(statistic):
    """The statistic (values, view) of one process, and of the parts of two processes, put together in order."""
    shuffled = torch.randperm(N, generator=torch.Generator().manual_seed(1))

    def on(rows, width, ranks):
        values = torch.nn.functional.pad(VALUES, (0, width - WIDTH), value=math.nan)[rows]
        return statistic(values, view_of(rows, ranks, width))

    parts = (shuffled[:7], 11), (shuffled[7:], WIDTH)
    return (
        on(torch.arange(N), WIDTH, ALONE),
        on_ranks(2, lambda r: on(*parts[r.index], r)),
        [rows for rows, _ in parts],
    )


@pytest.mark.parametrize(
    "statistic, formula",
    [
        (lambda x, v: over_ranks.count(v.mask, v.ranks), lambda x: len(x)),
        (lambda x, v: over_ranks.largest(x, v.mask, v.ranks), lambda x: x.max()),
        (lambda x, v: over_ranks.total(x, v.mask, v.ranks), lambda x: x.sum()),
        (lambda x, v: over_ranks.mean(x, v.mask, v.ranks), lambda x: x.mean()),
        (lambda x, v: over_ranks.mean_and_std(x, v.mask, v.ranks)[1], lambda x: x.std(correction=0)),
        (lambda x, v: over_ranks.quantile(x, v.mask, 0.8, v.ranks), lambda x: x.quantile(0.8)),
        (lambda x, v: over_ranks.quantile(x, v.mask, 1.0, v.ranks), lambda x: x.max()),
    ],
)
def test_numbers_are_those_of_all_values(statistic, formula):
    alone, both, _ = by_division(statistic)
    assert both == [alone, alone]
    assert alone == pytest.approx(float(formula(VALUES[MASK].double())), rel=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_are_not_summed(bad):
    values = VALUES.clone()
    values[5, 0] = bad
    assert MASK[5, 0] and math.isnan(over_ranks.total(values, MASK, ALONE))


def test_nothing_is_not_an_error():
    nothing = torch.zeros_like(MASK)
    assert over_ranks.total(VALUES, nothing, ALONE) == 0
    assert math.isnan(over_ranks.mean(VALUES, nothing, ALONE)) and math.isnan(
        over_ranks.quantile(VALUES, nothing, 0.5, ALONE)
    )
    assert not over_ranks.draw(nothing, 3, view_of(torch.arange(N), ALONE).places, 0, ALONE).any()
    assert (over_ranks.group_sum(VALUES, nothing, view_of(torch.arange(N), ALONE)) == 0).all()


@pytest.mark.parametrize("number", [1, 10, 10_000])
def test_draws_and_highest_are_the_same_tokens(number):
    for choose in (
        lambda x, v: over_ranks.highest(x, v.mask, number, v.places, v.ranks),
        lambda x, v: over_ranks.draw(v.mask, number, v.places, 5, v.ranks),
    ):
        alone, both, rows = by_division(choose)
        assert int(alone.sum()) == min(number, int(MASK.sum())) and not (alone & ~MASK).any()
        assert all(torch.equal(part[:, :WIDTH], alone[r]) for part, r in zip(both, rows, strict=True))
    assert torch.equal(
        over_ranks.highest(VALUES, MASK, number, view_of(torch.arange(N), ALONE).places, ALONE),
        MASK & (VALUES >= VALUES[MASK].sort(descending=True).values[:number].min()),
    )


def test_sums_of_groups_are_those_of_all_processes():
    alone, both, _ = by_division(lambda x, v: over_ranks.group_sum(x, v.mask, v))
    expected = torch.where(MASK, VALUES, 0.0).double().view(GROUPS, SIZE, WIDTH).sum(dim=1)
    torch.testing.assert_close(alone, expected, rtol=1e-12, atol=1e-12)
    assert both[0].shape == (GROUPS, 11) and all(torch.equal(part[:, :WIDTH], alone) for part in both)
    small = torch.where(VALUES == VALUES[MASK].max(), 1e8, VALUES)  # as an entropy of almost 0 among inverse entropies
    sums = over_ranks.group_sum(small, MASK, view_of(torch.arange(N), ALONE))
    expected_sums = torch.where(MASK, small, 0.0).double().view(GROUPS, SIZE, WIDTH).sum(dim=1)
    torch.testing.assert_close(sums, expected_sums, rtol=1e-6, atol=1e-9)
    rows = over_ranks.group_sum(VALUES[:, 0], MASK[:, 0], view_of(torch.arange(N), ALONE))
    torch.testing.assert_close(rows, expected[:, 0], rtol=1e-12, atol=1e-12)
    running = over_ranks.group_sum(MASK, MASK, view_of(torch.arange(N), ALONE))
    assert torch.equal(running, MASK.view(GROUPS, SIZE, WIDTH).sum(dim=1).double())


def test_whole_groups_are_in_order():
    half = N // 2

    def work(ranks):
        mine = torch.arange(N).roll(5)[ranks.index * half :][:half]
        return over_ranks.whole_groups(VALUES[mine, 0], view_of(mine, ranks))

    assert all(torch.equal(found, VALUES[:, 0].view(GROUPS, SIZE)) for found in on_ranks(2, work))
