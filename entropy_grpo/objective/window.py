"""The tokens of one optimiser step: what its micro-batches hold of them, and what is logged of them.

Shapes: B sequences of a micro-batch, T completion tokens including padding.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..metrics.logged import ENTROPY_PERCENTILES
from .selection import Reduce, percentiles

Inputs = dict[str, Any]


def loss_mask(inputs: Inputs) -> Tensor:
    """(B, T): the completion tokens that the policy wrote itself."""
    mask = inputs["completion_mask"]
    return mask * inputs["tool_mask"] if "tool_mask" in inputs else mask


def flatten(tensors: list[Tensor]) -> Tensor:
    """All elements of the tensors in one dimension."""
    return torch.cat([t.flatten() for t in tensors])


def probability_ratio(logps: Tensor, inputs: Inputs) -> Tensor:
    """(B, T): current over old probability; TRL leaves the old ones out where the policy is the rollout's."""
    old = inputs.get("old_per_token_logps")
    return torch.ones_like(logps) if old is None else torch.exp(logps - old)


def row_advantages(inputs: Inputs) -> Tensor:
    """The advantages as (B, 1) or (B, T)."""
    advantages = inputs["advantages"]
    return advantages.unsqueeze(1) if advantages.dim() == 1 else advantages


@dataclass
class Window:
    """The tokens of one optimiser step.

    Attributes:
        kept: tokens kept over all micro-batches and ranks.
        batches: the local micro-batches to run. Where the kept tokens are known before the first of them, they carry
            `kept_mask` and `entropies`, (B, T).
        everything: then also the local sequences that are not run.
    """

    kept: int
    batches: list[Inputs]
    everything: list[Inputs] | None = None


@dataclass
class Scored:
    """The tokens of one micro-batch, detached; tensors are (B, T). `logps` are those of its loss, if it was run."""

    inputs: Inputs
    mask: Tensor
    kept: Tensor
    entropies: Tensor
    logps: Tensor | None = None


def window_metrics(
    scored: Sequence[Scored], everything: Sequence[Scored], epsilon_low: float, epsilon_high: float, reduce: Reduce
) -> dict[str, float]:
    """What a finished window logs, over all ranks; NaN where there is nothing to take a mean of.

    Args:
        scored: the micro-batches that were run, of which clip rates are known.
        everything: all sequences whose entropies are known.
        epsilon_low, epsilon_high: the surrogate's clip range.
        reduce: sums a tensor over ranks.

    Returns:
        Means of the entropy over `kept`, `dropped`, `positive` and `negative` advantage, its percentiles, the kept
        fraction, clip rates of kept tokens; and `kept` and `all`, the numbers of tokens, and their `mean_entropy`.
    """
    mask, kept = flatten([s.mask for s in everything]), flatten([s.kept for s in everything])
    entropies = flatten([s.entropies for s in everything])
    advantages = flatten([row_advantages(s.inputs).expand_as(s.mask) for s in everything])
    groups = {
        "all": mask,
        "kept": kept,
        "dropped": mask & ~kept,
        "positive": mask & (advantages > 0),
        "negative": mask & (advantages < 0),
    }
    run = flatten([s.kept for s in scored])
    run_advantages = flatten([row_advantages(s.inputs).expand_as(s.mask) for s in scored])
    ratios = flatten([probability_ratio(s.logps, s.inputs) for s in scored])
    clipped = {
        "low": run & (run_advantages < 0) & (ratios < 1 - epsilon_low),
        "high": run & (run_advantages > 0) & (ratios > 1 + epsilon_high),
    }
    counts = [group.sum() for group in (*groups.values(), *clipped.values())]
    sums = [(entropies * group).sum() for group in groups.values()]
    totals = reduce(torch.stack([x.double() for x in (*counts, *sums)])).tolist()
    count = dict(zip((*groups, *clipped), totals, strict=False))
    total_entropy = dict(zip(groups, totals[len(count) :], strict=True))

    def share(part: float, whole: float) -> float:
        return part / whole if whole else math.nan

    found = {f"entropy/{name}": share(total_entropy[name], count[name]) for name in groups if name != "all"}
    levels = percentiles(entropies, mask, tuple(ENTROPY_PERCENTILES), reduce)
    found |= {f"entropy/{name}": value for name, value in zip(ENTROPY_PERCENTILES.values(), levels, strict=True)}
    found["selection/kept_fraction"] = share(count["kept"], count["all"])
    found |= {f"clip_ratio/kept_{side}": share(count[side], count["kept"]) for side in clipped}
    mean_entropy = share(total_entropy["all"], count["all"])
    return found | {"kept": count["kept"], "all": count["all"], "mean_entropy": mean_entropy}


def token_samples(scored: Scored, number: int, tokenizer: Any) -> list[dict[str, Any]]:
    """The first responses of a micro-batch, token by token."""
    samples = []
    for i in range(min(number, scored.mask.size(0))):
        mask = scored.mask[i]
        ids = scored.inputs["completion_ids"][i][mask].tolist()
        advantages = row_advantages(scored.inputs)[i].expand_as(mask)[mask]
        prompt = scored.inputs["prompt_ids"][i][scored.inputs["prompt_mask"][i].bool()]
        samples.append(
            {
                "prompt": tokenizer.decode(prompt),
                "tokens": [tokenizer.decode([token]) for token in ids],
                "token_ids": ids,
                "entropies": [round(h, 4) for h in scored.entropies[i][mask].tolist()],
                "kept": scored.kept[i][mask].int().tolist(),
                "advantage": round(advantages.mean().item(), 4) if ids else 0.0,
            }
        )
    return samples
