"""The forking mask (arXiv 2506.01939, Eq. 6) and its controls as methods by name.

The settings `top_entropy_quantile` (rho), `entropy_selection` (the name), `entropy_scope` and `entropy_denominator`
are their short forms, to which the trainer reduces an entry (`config.methods`). The trainer then calls the same
functions of `selection`, and logs the threshold, too.

A mask is of the stage `step`. With the scope `rollout` it reads the policy that wrote the rollout, and with the scope
`micro_batch` the tokens of one forward pass. `scope` and `denominator` are read by the trainer alone.
"""

from torch import Tensor

from ..objective import Denominator
from ..selection import Scope, gradient_norms, select, select_matched
from ..share import RHO
from .registry import Share, weight
from .view import StepView

PAPER = "arXiv 2506.01939"


def _select(view: StepView, scores: Tensor, rho: float, kind: str) -> Tensor:
    return select(scores, view.mask, rho, view.places, kind, view.seed, view.ranks.sum)[0].float()


def _norms(view: StepView) -> Tensor:
    """(B, T) norms of the tokens' gradients in the LM head."""
    limits = view.epsilon_low, view.epsilon_high, view.delta
    return gradient_norms(view.residual_norms, view.token_advantages, view.ratios, *limits)


@weight(stage="step", needs={"entropies"}, denominator="valid", paper=PAPER)
def forking(view: StepView, rho: Share = RHO, scope: Scope = "rollout", denominator: Denominator = "kept") -> Tensor:
    """1 for the ceil(rho n) tokens of highest entropy, else 0."""
    return _select(view, view.entropies, rho, "top")


@weight(stage="step", needs={"entropies"}, denominator="valid", paper=PAPER)
def bottom(view: StepView, rho: Share = RHO, scope: Scope = "rollout", denominator: Denominator = "kept") -> Tensor:
    """1 for the tokens that `forking` drops, else 0."""
    return _select(view, view.entropies, rho, "bottom")


@weight(stage="step", denominator="valid")
def random(view: StepView, rho: Share = RHO, scope: Scope = "rollout", denominator: Denominator = "kept") -> Tensor:
    """1 for ceil(rho n) random tokens, else 0."""
    return _select(view, view.places.float(), rho, "random")


@weight(stage="step", needs={"residual_norms", "logps", "old_logps"}, denominator="valid")
def gradient_norm(
    view: StepView, rho: Share = RHO, scope: Scope = "rollout", denominator: Denominator = "kept"
) -> Tensor:
    """1 for the ceil(rho n) tokens of largest gradient in the LM head, else 0."""
    return _select(view, _norms(view), rho, "gradient_norm")


@weight(stage="step", needs={"entropies", "residual_norms", "logps", "old_logps"})
def random_matched(
    view: StepView, rho: Share = RHO, scope: Scope = "rollout", denominator: Denominator = "kept"
) -> Tensor:
    """1 for random tokens with as much gradient as the tokens of `forking`, else 0.

    The trainer divides the loss by the number of tokens that `forking` keeps, so that both arms have one denominator.
    """
    norms, places = _norms(view), view.places
    return select_matched(view.entropies, norms, view.mask, rho, places, view.seed, view.ranks.sum).float()
