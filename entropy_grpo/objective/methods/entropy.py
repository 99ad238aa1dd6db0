"""Advantages and weights from the entropy of tokens: GTPO, GRPO-S, and the entropy-shaped advantage.

Shapes: B sequences, T completion tokens, groups of G responses; H (B, T) in nats.
"""

import torch
from torch import Tensor

from ..advantages import MIN_SIGMA
from .over_ranks import group_sum
from .registry import Positive, advantage, weight
from .view import StepView

# Added to H before it is inverted.
EPSILON = 1e-8


@advantage(stage="rollout", needs={"right", "wrong", "old_entropies"}, revives=True, paper="arXiv 2508.04349")
def gtpo(view: StepView, advantages: Tensor, alpha_1: Positive = 1.0, alpha_2: Positive = 0.1) -> Tensor:
    """(B, T) advantages of GTPO (arXiv 2508.04349, Eq. 3 to 6), from token rewards that entropy shapes.

    In the right responses of a group a token's reward is a1 + a2 d_t H_t / sum H_t, in its wrong ones it is
    -a1 - a2 h_t (1 / H_t) / sum (1 / H_t). The sums are over the right, or the wrong, responses of the group that are
    still running at t, whose numbers are d_t and h_t. The advantages are the z-scores of the rewards of all tokens in
    the right responses, and separately in the wrong ones. H is the old policy's. A response that the first reward did
    not score is neither right nor wrong, and its tokens have no advantage.

    Three properties are not obvious from the formulas. a1 cancels. Tokens of right responses have a negative advantage
    if their reward is below the mean of the right responses. The tokens of a group's only right response have equal
    rewards and no advantage, whereas groups with only right or only wrong responses are trained on their entropies.

    The formulas are quoted from two re-implementations that agree. They leave open whether the z-scores are of the
    group, as here, or of the batch. The standard deviation is taken with the divisor n.

    Args:
        alpha_1, alpha_2: a1 and a2. The authors use 1 and 0.1.
    """
    outcomes = view.right.unsqueeze(1), view.wrong.unsqueeze(1)
    return _shaped(view.old_entropies.double(), view.mask, outcomes, alpha_1, alpha_2, view)


@advantage(stage="rollout", needs={"right", "wrong", "old_entropies"}, revives=True, paper="arXiv 2508.04349")
def grpo_s(view: StepView, advantages: Tensor, beta_1: Positive = 1.0, beta_2: Positive = 0.1) -> Tensor:
    """(B,) advantages of GRPO-S (arXiv 2508.04349), the form of GTPO for whole responses.

    A right response has the reward b1 + b2 n H / sum H with its mean entropy H and the sum over the n right responses
    of its group, a wrong one -b1 - b2 m (1 / H) / sum (1 / H). The advantages are z-scores as in `gtpo`, of responses.

    This is the advantage of GRPO-S, not its surrogate, whose importance ratio is the arithmetic mean of a response's
    token ratios. TRL's ratio of a sequence is their geometric mean. With ratios per token and `loss_type: grpo` the
    gradient is the paper's wherever neither clips; GRPO-S clips the mean, and TRL every token.

    Args:
        beta_1, beta_2: b1 and b2. The authors use 1 and 0.1.
    """
    lengths = view.mask.sum(dim=1)
    entropies = view.old_entropies.double().masked_fill(~view.mask, 0.0).sum(dim=1) / lengths.clamp(min=1)
    return _shaped(entropies, lengths > 0, (view.right, view.wrong), beta_1, beta_2, view)


def _shaped(
    entropies: Tensor, mask: Tensor, outcomes: tuple[Tensor, Tensor], base: float, bonus: float, view: StepView
) -> Tensor:
    """float32 z-scores of base + bonus n H / sum H if right, and of -base - bonus n (1 / H) / sum (1 / H) if wrong.

    Args:
        outcomes: bool masks of the right and of the wrong responses, which broadcast to `mask`.
    """
    (right, wrong), result = outcomes, torch.zeros_like(entropies)
    for chosen, values, sign in ((mask & right, entropies, 1), (mask & wrong, 1 / (entropies + EPSILON), -1)):
        rewards = sign * (base + bonus * _share_of_group(values, chosen, view))
        result = torch.where(chosen, _z_scores(rewards, chosen, view), result)
    return result.float()


def _share_of_group(values: Tensor, chosen: Tensor, view: StepView) -> Tensor:
    """float64 n v / sum v over the n chosen of the group at the same position; 1 if n is 1 or the sum is 0."""
    number = group_sum(chosen, chosen, view)[view.group]
    whole = group_sum(values, chosen, view)[view.group]
    return torch.where((number > 1) & (whole > 0), number * values / whole, 1.0)


def _z_scores(values: Tensor, chosen: Tensor, view: StepView) -> Tensor:
    """float64 (v - mean) / std over all chosen values of the group; 0 if they are equal."""

    def of_group(terms: Tensor) -> Tensor:
        sums = group_sum(terms, chosen, view)
        return (sums.sum(dim=1) if sums.dim() > 1 else sums)[view.group]

    def spread(terms: Tensor) -> Tensor:
        return terms.view(-1, *[1] * (values.dim() - 1))

    number = of_group(chosen).clamp(min=1)
    deviations = values - spread(of_group(values) / number)
    sigma = spread((of_group(deviations.square()) / number).sqrt())
    return torch.where(sigma >= MIN_SIGMA, deviations / sigma.clamp(min=MIN_SIGMA), 0.0)


@weight(stage="loss", needs={"entropies"}, paper="arXiv 2506.14758")
def entropy_shaped(view: StepView, alpha: Positive = 0.4, kappa: Positive = 2.0) -> Tensor:
    """(B, T) weights of the entropy-shaped advantage A + min(alpha H, |A| / kappa) (arXiv 2506.14758 v4, Eq. 5, 6).

    With kappa > 1 the shaped advantage has the sign of A, and is A times

        1 + sign(A) min(alpha H / |A|, 1 / kappa).

    A positive factor of A is one of the clipped surrogate, so that the shaped advantage is computed as a weight. H is
    the current policy's. Tokens without an advantage keep none.

    Args:
        alpha: 0.4 for GRPO and 0.1 for PPO in the paper.
        kappa: bounds the bonus by |A| / kappa. The authors use 2. Below 1 the weight could be negative.
    """
    advantages = view.token_advantages
    size = advantages.abs().clamp(min=torch.finfo(advantages.dtype).tiny)
    return 1 + advantages.sign() * torch.clamp(alpha * view.entropies.float() / size, max=1 / kappa)
