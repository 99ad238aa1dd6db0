"""Quantile advantages (QAE, arXiv 2509.22611 v2, section 4).

    A_i = (R_i - b) / (std + eps),  b = smallest reward r of the group with share(R <= r) >= k

For rewards of 0 and 1 and a group accuracy p, b is 0 if p <= 1 - k, and 1 otherwise: hard groups train on right
responses only, easy groups on wrong responses only. The authors' code calls `torch.quantile`, which interpolates
between two rewards; the paper's rule, which is used here, does not.

The paper does not say which standard deviation it divides by. Here it is TRL's: the sample standard deviation of the
group, with eps = 1e-4.
"""

import math

import torch
from torch import Tensor

from ..share import by_decimals
from .over_ranks import whole_groups
from .registry import Share, advantage
from .view import StepView

EPS = 1e-4


@advantage(stage="rollout", needs={"rewards"}, paper="arXiv 2509.22611")
def qae(view: StepView, advantages: Tensor, k: Share = 0.4) -> Tensor:
    """(B,) advantages against the k-quantile of the group's rewards; 0 for responses that were not scored.

    Args:
        k: 0.4 beside clip-higher, 0.6 against a collapse of entropy, in the paper.
    """
    rewards = whole_groups(view.rewards, view).double()
    scored = ~rewards.isnan()
    number = scored.sum(dim=1, keepdim=True)
    # NaN sorts last.
    ranks = [max(math.ceil(by_decimals(k) * n) - 1, 0) for n in number.flatten().tolist()]
    baseline = rewards.sort(dim=1).values.gather(1, torch.tensor(ranks, device=rewards.device).unsqueeze(1))
    mean = rewards.nansum(dim=1, keepdim=True) / number.clamp(min=1)
    squares = torch.where(scored, rewards - mean, 0.0).square().sum(dim=1, keepdim=True)
    std = (squares / (number - 1).clamp(min=1)).sqrt()
    return ((rewards - baseline) / (std + EPS)).nan_to_num().flatten()[view.order].float()
