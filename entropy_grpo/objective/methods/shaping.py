"""Shaping of advantages by perplexity and by position (arXiv 2508.02260) as methods by name.

The settings `ppl_shaping_*` and `position_shaping_*` are their short forms (see `advantages`).
"""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from ..advantages import log_perplexities, perplexity_weights, position_advantages, ppl_advantages
from .over_ranks import whole_groups
from .registry import Positive, advantage
from .view import StepView

PAPER = "arXiv 2508.02260"


@advantage(stage="rollout", needs={"old_logps"}, paper=PAPER)
def ppl(view: StepView, advantages: Tensor, alpha: float = 0.01) -> Tensor:
    """Advantages A * (1 - alpha * w) with the standardised log-perplexity w of the response (Eq. 7, 9)."""
    perplexities = whole_groups(log_perplexities(view.old_logps, view.mask), view)
    weights = perplexity_weights(perplexities.flatten(), view.group_size)[view.order]
    return ppl_advantages(advantages, weights if advantages.dim() == 1 else weights.unsqueeze(1), alpha)


@advantage(stage="loss", paper=PAPER)
def position(
    view: StepView,
    advantages: Tensor,
    gamma: Positive = 0.1,
    d: float = 1.0,
    m: Positive = 15.0,
    n: float = 0.5,
    cap: Annotated[float, Field(gt=0)] | None = None,
) -> Tensor:
    """(B, T) advantages with a bonus for late tokens, or for early tokens if d < 0 (Eq. 8, 10)."""
    return position_advantages(advantages, view.mask, gamma, d, m, n, cap)
