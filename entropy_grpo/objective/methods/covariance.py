"""Clip-Cov and KL-Cov (arXiv 2505.22617, section 4.2): tokens by the covariance of advantage and log-probability.

    cov_t = (A_t - mean A) * (l_t - mean l)

To first order, the mean of cov over tokens is the entropy that a policy-gradient step removes, and a few tokens hold
most of it. The authors' code takes the means, the number of tokens and the draw within a micro-batch of one GPU, and
draws without a seed. Here all of them belong to the optimiser step, over all ranks.

Shapes: B sequences, T completion tokens; A, l and the results (B, T).
"""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..objective import TOKEN_CLIPPING_LOSSES
from ..share import by_decimals
from .over_ranks import count, draw, highest, mean
from .registry import Positive, Share, advantage, weight
from .view import StepView

if TYPE_CHECKING:
    from ..objective import Objective

PAPER = "arXiv 2505.22617"
# Ratio at which a clip counts as none: probabilities rarely change so much within a rollout.
UNCLIPPED = 1e3


def covariances(view: StepView) -> Tensor:
    """(B, T) float32 cov of every token."""
    advantages, logps = view.token_advantages, view.logps
    centres = [mean(values, view.mask, view.ranks) for values in (advantages, logps)]
    return ((advantages.double() - centres[0]) * (logps.double() - centres[1])).float()


def is_clipped(view: StepView) -> Tensor:
    """(B, T) bool, tokens whose gradient the clipped surrogate stops."""
    ratios, advantages = view.ratios, view.token_advantages
    above, below = ratios > 1 + view.epsilon_high, ratios < 1 - view.epsilon_low
    return (advantages > 0) & above | (advantages < 0) & below


def share_of_tokens(share: float, view: StepView) -> int:
    """max(1, floor(share * N)) with the N tokens of all processes; `share` counts as its decimal text."""
    return max(1, math.floor(by_decimals(share) * count(view.mask, view.ranks)))


@weight(stage="step", needs={"logps", "old_logps"}, paper=PAPER)
def clip_cov(view: StepView, share: Share = 2e-4, low: Positive = 1.0, high: Positive = 5.0) -> Tensor:
    """(B, T) weights of Clip-Cov: 0 for tokens drawn at random among those with low < cov < high, 1 for others.

    max(1, floor(share * N)) tokens are drawn, or all such tokens if they are fewer. Tokens that the surrogate clips
    have no gradient and are not drawn. The loss is divided by all N tokens.

    Args:
        share: share of the N tokens of the step that lose their gradient. The authors use 2e-4.
        low, high: bounds of cov, exclusive. The authors use 1 and 5.
    """
    cov = covariances(view)
    candidates = view.mask & ~is_clipped(view) & (cov > low) & (cov < high)
    return (~draw(candidates, share_of_tokens(share, view), view.places, view.seed, view.ranks)).float()


def _clips(objective: "Objective", values: dict[str, Any]) -> str:
    """Return the reason why KL-Cov cannot run: a loss that is not the unclipped surrogate."""
    if objective.loss_type not in (*TOKEN_CLIPPING_LOSSES, "cispo"):
        loss = f"loss_type is {objective.loss_type!r}"
        return f"whose gradient is that of the unclipped surrogate, but {loss}: use dapo"
    low, high = objective.ratio_limits
    if low <= 0 and high >= UNCLIPPED and (objective.delta is None or objective.delta >= UNCLIPPED):
        return ""
    return (
        f"whose loss clips no ratio, but epsilon is {objective.epsilon_low:g}, epsilon_high is "
        f"{objective.epsilon_high:g} and delta is {objective.delta}: set epsilon to 1, epsilon_high to 1.0e6 and "
        "delta to null"
    )


@advantage(stage="step", needs={"logps", "old_logps"}, paper=PAPER, refusal=_clips)
def kl_cov(view: StepView, advantages: Tensor, share: Share = 2e-3, coefficient: Positive = 1.0) -> Tensor:
    """(B, T) advantages with which an unclipped surrogate has the gradient of KL-Cov.

    The max(1, floor(share * N)) tokens of largest cov have the loss -A r + b |l - l_old|, all others -A r, without a
    clip. The derivative of the first in l is -A r + b sign(l - l_old), which is that of -A' r with

        A' = A - b sign(l - l_old) / r.

    The gradient is the paper's if the loss does not clip (epsilon 1 and a very large epsilon_high), and other losses
    are refused. The logged loss is another. Tokens of groups without an advantage, which the authors' dynamic sampling
    drops, are not chosen.

    The paper calls the added term a KL divergence. It is an absolute difference: its gradient is 0 at l = l_old, and
    has the size b everywhere else. In the first step of a rollout l and l_old come from one pass, and are equal. With
    `old_logps: sampler`, rounding decides the sign in that step.

    Args:
        share: the paper has 2e-3 for 7B and 2e-4 for 32B; 0.2 as `k_percent` in the authors' code means 0.2%.
        coefficient: b. The authors use 1; verl's default has become 0.1.
    """
    values = view.token_advantages
    chosen = view.mask & (values != 0)
    top = highest(covariances(view), chosen, share_of_tokens(share, view), view.places, view.ranks)
    difference = (view.logps - view.old_logps).clamp(-20.0, 20.0)
    return values - top * (coefficient * difference.sign() * torch.exp(-difference))
