"""Weights from the change since the rollout, of probabilities or entropies: FIPO, ERC, ASPO and Archer's clip.

They read the current policy at the loss. r = exp(l - l_old), with |l - l_old| limited to 20, as in verl. The first
step of a rollout has r = 1, and all weights are 1. A weight is a factor of the gradient that TRL's clipped surrogate
has at a token. A method that is another surrogate with the same gradient is computed in this way, and the logged loss
is then not the paper's.

Shapes: B sequences, T completion tokens; weights (B, T) float32.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..share import by_decimals
from .registry import Positive, Share, weight
from .view import StepView

if TYPE_CHECKING:
    from ..objective import Objective

# Positions whose discounted sums are one matrix product.
CHUNK = 128


def log_ratios(view: StepView) -> Tensor:
    """(B, T) float32 l - l_old, limited to [-20, 20]."""
    return (view.logps.float() - view.old_logps.float()).clamp(-20.0, 20.0)


def discounted_future(values: Tensor, discount: float) -> Tensor:
    """(B, T) float64 sum over k >= t of discount^(k - t) * values_k.

    Sums within chunks of positions are matrix products, and a loop carries the sum of later chunks.
    """
    rows, width = values.shape
    chunks = pad(values.double(), (0, -width % CHUNK)).view(rows, -1, CHUNK)
    steps = torch.arange(CHUNK, device=values.device)
    distance = steps.unsqueeze(1) - steps  # (k, t)
    powers = discount ** distance.clamp(min=0).double() * (distance >= 0)
    sums = chunks @ powers
    later = sums.new_zeros(rows)
    for i in reversed(range(sums.size(1))):
        sums[:, i] += later.unsqueeze(1) * discount ** (CHUNK - steps).double()
        later = sums[:, i, 0]
    return sums.flatten(1)[:, :width]


def _another_dual_clip(objective: "Objective", values: dict[str, Any]) -> str:
    """Return the reason why FIPO cannot run: a dual clip at another ratio than the threshold."""
    threshold = values["threshold"]
    if objective.delta in (None, threshold):
        return ""
    return (
        f"whose threshold {threshold:g} is the ratio of the dual clip, but delta is {objective.delta:g}: set delta to "
        f"{threshold:g}, or to null for no dual clip"
    )


def _has_dual_clip(objective: "Objective", values: dict[str, Any]) -> str:
    """Return the reason why ASPO cannot run: a dual clip beside its own limit."""
    if objective.delta is None:
        return ""
    return f"whose limit replaces the dual clip, but delta is {objective.delta:g}: set delta to null"


@weight(stage="loss", needs={"logps", "old_logps"}, paper="arXiv 2603.19835", refusal=_another_dual_clip)
def fipo(
    view: StepView, half_life: Positive = 32.0, bound: Share = 0.2, high_only: bool = True, threshold: Positive = 10.0
) -> Tensor:
    """(B, T) weights of FIPO (arXiv 2603.19835), by how the policy has changed on the tokens that follow.

        F_t = sum over k >= t of g^(k - t) (l - l_old)_k,  g = 2^(-1 / half_life)
        weight = clip(exp F_t, 1, 1 + bound)

    Tokens with r > threshold are left out of F. The weight of such a token with A < 0 is then limited to [0.8, 1],
    which is 1 under the one-sided clip, and a response with more than one such token is dropped. The weight is
    positive, so that weighting the surrogate is weighting A, as the paper does.

    Source: the authors' code of their first commit, as others keep it, and the values of its script. The readme
    shows the two-sided clip, which a comment in the code recommends for small models, and the script sets the
    one-sided clip. `future_kl_start`, `future_kl_window` and `future_kl_average` have no effect in that code. One
    difference remains: the code divides by the tokens of the responses that are not dropped. Here the loss is divided
    by all tokens, because its divisor is fixed before the pass in which a response turns out to be dropped.

    Args:
        half_life: tokens in which the discount halves.
        bound: the weight is at most 1 + bound.
        high_only: the lower bound is 1. Otherwise it is 1 - bound.
        threshold: ratio above which a token is left out. `delta` of the loss is the same for the paper's dual clip, or
            null for none; another one is refused.
    """
    difference, advantages = log_ratios(view), view.token_advantages
    extreme = view.mask & (difference > torch.tensor(threshold).log())
    future = discounted_future(difference.masked_fill(~view.mask | extreme, 0.0), 2 ** (-1 / half_life))
    factor = future.exp().clamp(1.0 if high_only else 1 - bound, 1 + bound).float()
    punished = extreme & (advantages < 0)
    factor = torch.where(punished, factor.clamp(0.8, 1.0), factor)
    return factor * (punished.sum(dim=1, keepdim=True) <= 1)


@weight(stage="loss", needs={"entropies", "old_entropies"}, paper="arXiv 2512.05591")
def erc(view: StepView, low: Positive = 0.95, high: Positive = 1.05) -> Tensor:
    """(B, T) weights of entropy ratio clipping (arXiv 2512.05591): 1 if low < H / H_old < high, else 0.

    1e-8 is added to both entropies. The authors' code keeps the loss of the other tokens without its gradient, and
    divides by all tokens. Near H = 0 the ratio is mostly rounding error, so that bfloat16 drops tokens at random.

    Args:
        low, high: bounds of the ratio, exclusive. The authors use 0.95 and 1.05.
    """
    ratio = (view.entropies.float() + 1e-8) / (view.old_entropies.float() + 1e-8)
    return ((ratio > low) & (ratio < high)).float()


@weight(stage="loss", needs={"logps", "old_logps"}, paper="arXiv 2510.06062", refusal=_has_dual_clip)
def aspo(view: StepView, limit: Positive = 3.0) -> Tensor:
    """(B, T) weights of ASPO (arXiv 2510.06062): positive tokens have the gradient factor 1 / r instead of r.

    On TRL's surrogate, whose factor is r, the weight is min(1 / r, limit) / r for A > 0, and min(r, limit) / r
    otherwise. The clip of the surrogate remains: positive tokens above it and negative ones below it have no gradient.
    1 / r as a differentiable ratio would have the wrong sign. The authors bound r by a token's entropy, too; see
    `archer_clip`. Their `delta` is replaced by `limit`, and a loss with `delta` is refused.

    Args:
        limit: largest gradient factor. The authors use 3.
    """
    difference = log_ratios(view)
    factor = torch.where(view.token_advantages > 0, torch.exp(-difference), torch.exp(difference))
    return factor.clamp(max=limit) * torch.exp(-difference)


@weight(stage="loss", needs={"logps", "old_logps", "entropies"}, paper="arXiv 2507.15778")
def archer_clip(view: StepView, bound: Positive = 0.2, q: Share = 0.8) -> Tensor:
    """(B, T) weights that clip tokens of low entropy at 1 +- bound (Archer, arXiv 2507.15778): 0 if clipped, else 1.

    Tokens whose entropy is at most the q-quantile of their response are low; H is the current policy's. High tokens
    have the loss's own epsilon and epsilon_high, 0.5 in Archer and 0.4 in ASPO. A clipped token has no gradient, so
    that a weight of 0 replaces its tighter bound. The reference-KL on low tokens alone, which Archer adds with the
    factor 0.001, is not computed: TRL's KL term has one factor for all tokens.

    Args:
        bound: clip limit of low tokens, on both sides. The authors use 0.2.
        q: share of low tokens. The authors use 0.8.
    """
    advantages, difference = view.token_advantages, log_ratios(view)
    ratios = difference.exp()
    outside = (advantages > 0) & (ratios > 1 + bound) | (advantages < 0) & (ratios < 1 - bound)
    return (~(outside & low_of_response(view.entropies, view.mask, q))).float()


def low_of_response(values: Tensor, mask: Tensor, q: float) -> Tensor:
    """(B, T) bool, tokens whose value is at most the q-quantile of the masked values of their row."""
    ordered = values.float().masked_fill(~mask, torch.inf).sort(dim=1).values
    share = by_decimals(q)
    place = (mask.sum(dim=1, keepdim=True) - 1).clamp(min=0) * share.numerator // share.denominator
    return mask & (values.float() <= ordered.gather(1, place))
