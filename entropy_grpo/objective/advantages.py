"""Advantage shaping of arXiv 2508.02260, by a response's perplexity (Eq. 7, 9) and by a token's position (Eq. 8, 10).

    A_i   <- A_i * (1 - alpha * w_i)            w_i: standardised log-perplexity within the group
    A_i,t <- A_i + sign(A_i) * b_t              b_t = gamma * sigmoid(d * m * (l_t - n)),  l_t in [0, 1]

Confident responses and late tokens weigh more. The sign of an advantage never changes. The paper's ablations have the
other signs: alpha < 0 favours high perplexity, d < 0 favours early tokens. If both methods are used, perplexity scales
the group's advantage first, and the bonus is added without scaling.

This departs from the paper in one sign: n is +0.5, and the paper prints -0.5. With l + 0.5 the argument lies between
7.5 and 22.5 (m = 15). Then the sigmoid is 1 up to 6e-4 at every token, and no token is preferred. With l - 0.5 the
bonus grows from 0 to gamma over the response, as the paper describes and its released code computes. The released code
also caps the bonus at half of |A|, which is optional here, and never applies its perplexity weights.

Pure functions. Shapes: B responses, groups of G in a row, T completion tokens including padding; mask (B, T) is true
for the tokens that the policy wrote.
"""

from typing import NamedTuple

import torch
from torch import Tensor

# Smaller differences of log-perplexities are rounding errors, which the weights would amplify.
MIN_SIGMA = 1e-6
# Smaller differences of rewards, as a share of a group's largest reward, are rounding errors of float32.
ROUNDING = 2**-21


class Schedule(NamedTuple):
    """The optimiser steps, counted from 0, in which a method is active.

    Attributes:
        start, end: first active step, and first later step that is not active; None for the end of the run.
        plateau_steps: if given, the method is active only for this many steps after the plateau is detected.
    """

    start: int = 0
    end: int | None = None
    plateau_steps: int | None = None

    def active(self, step: int, plateau_step: int | None) -> bool:
        """Return whether the method is active at a step.

        Args:
            plateau_step: first step of the plateau; None before the plateau is detected.
        """
        start, end = self.start, self.end
        if self.plateau_steps is not None:
            if plateau_step is None:
                return False
            start, end = plateau_step, plateau_step + self.plateau_steps
        return start <= step and (end is None or step < end)


def at_group_mean(rewards: Tensor, group_size: int) -> Tensor:
    """(n,) bool, responses whose rewards are the mean of their group up to rounding, so that their advantage is 0.

    TRL's mean of equal rewards in float32 can be an ulp away from them. Its division by a deviation of 0 + 1e-4 makes
    that an advantage of up to 1e-3, whose sign would decide a bonus.

    Args:
        rewards: (n,) or (n, F) float32, NaN for rewards that were not given.
    """
    groups = rewards.double().view(len(rewards) // group_size, group_size, -1)
    distance = (groups - groups.nanmean(dim=1, keepdim=True)).abs()
    largest = groups.abs().nan_to_num().amax(dim=1, keepdim=True)
    return ~(distance > ROUNDING * largest).any(dim=2).flatten()


def log_perplexities(logps: Tensor, mask: Tensor) -> Tensor:
    """(B,) float64, minus the mean log-probability of each response in nats; NaN for a response without tokens.

    Args:
        logps: (B, T) log-probabilities.
    """
    mask = mask.bool()
    total = logps.double().masked_fill(~mask, 0.0).sum(dim=1)
    return -total / mask.sum(dim=1)


def perplexity_weights(log_perplexities: Tensor, group_size: int) -> Tensor:
    """(B,) float64 w_i of Eq. 7, (ln PPL_i - mu) / sigma within each group, with TRL's sample standard deviation
    sigma.

    Responses without tokens (NaN) have weight 0 and do not enter mu and sigma. Weights are also 0 if the sigma of the
    group is below `MIN_SIGMA`, and for the only response of a group.
    """
    values = log_perplexities.view(-1, group_size)
    known = ~values.isnan()
    count = known.sum(dim=1, keepdim=True)
    mean = values.nan_to_num().sum(dim=1, keepdim=True) / count.clamp(min=1)
    deviation = torch.where(known, values - mean, 0.0)
    sigma = (deviation.square().sum(dim=1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    return torch.where(sigma >= MIN_SIGMA, deviation / sigma.clamp(min=MIN_SIGMA), 0.0).flatten()


def largest_weight(group_size: int) -> float:
    """Upper bound of `perplexity_weights`, reached if all responses of a group but one have the same perplexity."""
    return (group_size - 1) / group_size**0.5


def ppl_advantages(advantages: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """(B,) advantages shaped by perplexity (Eq. 9), in their dtype.

    Args:
        advantages: (B,).
        weights: (B,), see `perplexity_weights`.
        alpha: of either sign, and smaller than 1 / `largest_weight`, so that no advantage changes its sign.
    """
    return advantages * (1 - alpha * weights).to(advantages.dtype)


def relative_positions(mask: Tensor) -> Tensor:
    """(B, T) float64 l_t: 0 at the first token that the policy wrote, 1 at the last, 0 at a single token."""
    mask = mask.long()
    place = (mask.cumsum(dim=1) - 1).clamp(min=0)
    return place.double() / (mask.sum(dim=1, keepdim=True) - 1).clamp(min=1)


def position_bonus(positions: Tensor, gamma: float, d: float = 1.0, m: float = 15.0, n: float = 0.5) -> Tensor:
    """b_t of Eq. 8 at relative positions in [0, 1], in the shape of `positions`."""
    return gamma * torch.sigmoid(d * m * (positions - n))


def position_advantages(
    advantages: Tensor,
    mask: Tensor,
    gamma: float,
    d: float = 1.0,
    m: float = 15.0,
    n: float = 0.5,
    cap: float | None = None,
) -> Tensor:
    """(B, T) advantages with the bonus for late tokens, or for early tokens if d < 0 (Eq. 10).

    Padding and zero advantages stay zero.

    Args:
        advantages: (B,) or (B, T).
        gamma, d, m, n: see `position_bonus`.
        cap: largest bonus as a share of |A|; None for no cap.
    """
    advantages = advantages.unsqueeze(1) if advantages.dim() == 1 else advantages
    bonus = position_bonus(relative_positions(mask).to(advantages.dtype), gamma, d, m, n)
    if cap is not None:
        bonus = torch.minimum(bonus, cap * advantages.abs())
    return (advantages + advantages.sign() * bonus) * mask.bool()
