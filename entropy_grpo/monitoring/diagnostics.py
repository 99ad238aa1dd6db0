"""Diagnostics of a run beside the objective's own metrics, after the analyses of arXiv 2508.02260.

All metrics are computed from tensors that the training step already holds, without an extra pass. The change of
probabilities departs from the paper, which compares two checkpoints on a fixed set of responses. Here it is the change
of the trained tokens since their rollout was written, at most `steps_per_rollout` - 1 optimiser steps before.

`reduce` sums a tensor over ranks. Shapes: B sequences of a micro-batch, T completion tokens including padding.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..objective.selection import Reduce
from ..objective.tokens import Inputs, flatten, loss_mask, row_advantages
from ..objective.window import Scored
from .categories import CATEGORIES, category

# Share of tokens with the largest change, whose part of the total change of probabilities is logged.
TOP = 0.2
# Mean changes below this value are rounding errors: before the first step of a rollout the policy has not changed.
ROUNDING = 1e-6


class TokenCategories:
    """Categories by token id, cached after the first look-up.

    Args:
        decode: function from a list of one id to its text.
        size: number of token ids in the vocabulary.
    """

    def __init__(self, decode: Callable[[list[int]], str], size: int):
        self.decode, self.size = decode, size
        self.known = torch.full((size,), -1, dtype=torch.int8)

    def __call__(self, ids: Tensor) -> Tensor:
        """Return int64 positions in CATEGORIES, with the shape and device of the ids."""
        places = self.known[ids.cpu()]
        if (places < 0).any():
            for token in ids.cpu()[places < 0].unique().tolist():
                self.known[token] = CATEGORIES.index(category(self.decode([token])))
            places = self.known[ids.cpu()]
        return places.long().to(ids.device)


def share(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def answer_metrics(right: Tensor, lengths: Tensor, group_size: int) -> dict[str, float]:
    """Return mean lengths of right and of wrong responses in tokens, and shares of groups, over all drawn responses.

    Args:
        right: (N,) bool, group by group.
        lengths: (N,) tokens.
        group_size: responses of a group; N is a multiple of it.
    """
    number = right.view(-1, group_size).sum(dim=1)
    lengths = lengths.double()
    return {
        "completions/right_length": share((lengths * right).sum().item(), right.sum().item()),
        "completions/wrong_length": share((lengths * ~right).sum().item(), (~right).sum().item()),
        "groups/all_right": (number == group_size).double().mean().item(),
        "groups/all_wrong": (number == 0).double().mean().item(),
        "groups/one_right": (number == 1).double().mean().item(),
    }


def negative_only_entropy(
    ids: Tensor, entropies: Tensor, positive: Tensor, negative: Tensor, size: int, reduce: Reduce
) -> dict[str, float]:
    """Return mean entropy (nats) and share of tokens that occur only in negative responses.

    A token of a negative response counts if no positive response of the rollout has its id. The share is that of all
    tokens of negative responses.

    Args:
        ids, entropies: (n,) token ids and entropies in nats.
        positive, negative: (n,) bool, by the sign of the advantage.
        size: number of token ids in the vocabulary.
    """
    in_positive = reduce(torch.bincount(ids[positive], minlength=size)) > 0
    only = negative & ~in_positive[ids]
    totals = torch.stack([(entropies * only).sum().double(), only.sum().double(), negative.sum().double()])
    entropy, count, negatives = reduce(totals).tolist()
    return {"tokens/negative_only_entropy": share(entropy, count), "tokens/negative_only": share(count, negatives)}


def by_category(categories: Tensor, columns: Sequence[Tensor], reduce: Reduce) -> list[list[float]]:
    """Return the number of tokens of each category, and the sum of each column over them; all are (n,) tensors."""
    weights = [torch.ones(len(categories), dtype=torch.float64, device=categories.device), *columns]
    sums = [torch.bincount(categories, weights=w.double(), minlength=len(CATEGORIES)) for w in weights]
    return reduce(torch.stack(sums)).tolist()


NAMES = tuple(full.split()[0] for full in CATEGORIES)


def category_metrics(categories: Tensor, entropies: Tensor, reduce: Reduce) -> dict[str, float]:
    """Return each category's share of the tokens and its mean entropy in nats.

    Metric names hold the first word of the category. The arguments are (n,) tensors of each rank's tokens.
    """
    counts, sums = by_category(categories, [entropies], reduce)
    metrics = {f"tokens/{name}": share(count, sum(counts)) for name, count in zip(NAMES, counts, strict=True)}
    return metrics | {f"tokens/{n}_entropy": share(*pair) for n, *pair in zip(NAMES, sums, counts, strict=True)}


def kept_by_category(categories: Tensor, kept: Tensor, reduce: Reduce) -> dict[str, float]:
    """Return the kept share of each category's tokens; the arguments are (n,) tensors of each rank's tokens."""
    counts, sums = by_category(categories, [kept], reduce)
    return {f"tokens/{name}_kept": share(*pair) for name, *pair in zip(NAMES, sums, counts, strict=True)}


def change_metrics(logps: Tensor, old_logps: Tensor, reduce: Reduce) -> dict[str, float]:
    """Return the mean change |p - p_old| of probabilities, and the part of it in the 20% of tokens that changed most.

    The 20% are taken among each rank's tokens. The part is NaN if no probability has changed. Both arguments are (n,)
    log-probabilities of each rank's tokens.
    """
    change = (logps.double().exp() - old_logps.double().exp()).abs()
    top = change.topk(math.ceil(TOP * len(change))).values.sum()
    top, total, count = reduce(torch.stack([top, change.sum(), torch.tensor(len(change)).to(change)])).tolist()
    moved = total > ROUNDING * count
    return {"probability/change": share(total, count), "probability/top20_share": top / total if moved else math.nan}


def gradient_metrics(norms: Tensor, entropies: Tensor, reduce: Reduce) -> dict[str, float]:
    """Return median, 90th and 99th percentile of G_t (Eq. 4), and its rank correlation with the entropy.

    The results are means over ranks with at least two tokens. Ties are ranked in an arbitrary order. Both arguments
    are (n,) values of one rank's tokens.
    """
    if len(norms) < 2:
        values = torch.zeros(5, dtype=torch.float64, device=norms.device)
    else:
        places = [x.argsort().argsort().double() for x in (norms, entropies)]
        correlation = torch.corrcoef(torch.stack(places))[0, 1]
        ordered = norms.sort().values.double()
        levels = [ordered[math.floor(level * (len(ordered) - 1))] for level in (0.5, 0.9, 0.99)]
        values = torch.stack([*levels, correlation, torch.ones_like(correlation)])
    *sums, ranks = reduce(values).tolist()
    names = ("gradient/p50", "gradient/p90", "gradient/p99", "gradient/entropy_correlation")
    return {name: share(value, ranks) for name, value in zip(names, sums, strict=True)}


def rollout_diagnostics(
    batches: Sequence[Inputs], entropies: Sequence[Tensor], categories: TokenCategories, reduce: Reduce
) -> dict[str, float]:
    """Return the diagnostics of a rollout's tokens; see `steps.rollout_metrics` for the arguments."""
    mask = flatten([loss_mask(b) for b in batches]).bool()
    ids, values, advantages = (
        flatten(parts)[mask]
        for parts in (
            [b["completion_ids"] for b in batches],
            list(entropies),
            [row_advantages(b).expand_as(b["completion_ids"]) for b in batches],
        )
    )
    metrics = negative_only_entropy(ids, values, advantages > 0, advantages < 0, categories.size, reduce)
    return metrics | category_metrics(categories(ids), values, reduce)


def step_metrics(
    scored: Sequence[Scored], everything: Sequence[Scored], categories: TokenCategories, reduce: Reduce
) -> dict[str, float]:
    """Return the diagnostics of an optimiser step's tokens. See `steps.window_metrics` for the arguments."""
    mask = flatten([s.mask for s in everything])
    ids, kept = (
        flatten(parts)[mask]
        for parts in ([s.inputs["completion_ids"] for s in everything], [s.kept for s in everything])
    )
    metrics = kept_by_category(categories(ids), kept, reduce)
    if "old_per_token_logps" in scored[0].inputs:
        # If the kept tokens are known beforehand, dropped tokens are not projected and have no log-probability.
        trained = flatten([s.kept & (row_advantages(s.inputs) != 0) for s in scored])
        logps = flatten([s.logps for s in scored])[trained]
        metrics |= change_metrics(logps, flatten([s.inputs["old_per_token_logps"] for s in scored])[trained], reduce)
    return metrics
