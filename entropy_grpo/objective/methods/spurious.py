"""STAPO (arXiv 2602.15620 v4): tokens of right responses that are improbable although the policy was certain.

Shapes: B sequences, T completion tokens; weights (B, T) float32.
"""

from torch import Tensor

from .over_ranks import quantile
from .registry import Share, weight
from .view import StepView


@weight(stage="step", needs={"old_logps", "old_entropies", "right"}, denominator="valid", paper="arXiv 2602.15620")
def stapo(view: StepView, tau_p: Share = 0.002, q: Share = 0.75) -> Tensor:
    """(B, T) weights of STAPO: 0 for tokens with A > 0, pi < tau_p and H < h, 1 for others.

    h is the q-quantile of H among the tokens with pi < tau_p in right responses, here those of the optimiser step over
    all ranks; the paper says mini-batch. The loss is divided by the sum of the weights.

    The paper does not say whether pi and H are those of the old or of the current policy. Here they are the old
    policy's, which need no further pass. Notes on its first two versions take h among all tokens. The authors' code
    was not seen.

    Args:
        tau_p: probability below which a token is improbable. The authors use 0.002.
        q: the authors use 0.75.
    """
    improbable = view.mask & (view.old_logps.exp() < tau_p)
    threshold = quantile(view.old_entropies, improbable & view.right.unsqueeze(1), q, view.ranks)
    spurious = improbable & (view.token_advantages > 0) & (view.old_entropies < threshold)
    return (~spurious).float()
