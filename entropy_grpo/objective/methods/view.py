"""View of an optimiser step, or of a rollout, that a method reads.

Shapes: B responses of this process, T completion tokens including padding. Responses come in any order, and the
responses of a group may lie on several processes. A method must therefore take every mean, sum, count and quantile
over all processes (see `over_ranks`).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..ranks import Ranks

# Fields that a forward pass computes. A view has the declared fields of its method; all others are None.
COMPUTED = ("old_logps", "old_entropies", "logps", "entropies", "residual_norms")
# Fields that are known without a pass.
FREE = ("completion_ids", "tokenizer", "rewards", "right", "wrong")


@dataclass(frozen=True)
class StepView:
    """Tokens and responses of this process. The tensors have no gradient and must not be changed in place.

    Attributes:
        mask: (B, T) bool, tokens that the policy wrote. All other values are arbitrary where the mask is false.
        order: (B,) int64, index of each response among the responses of the rollout on all processes. Groups of
            `group_size` are consecutive.
        responses: number of responses of the rollout on all processes.
        group_size: responses to a problem.
        advantages: (B,) or (B, T) float32, after the entries that run earlier.
        completion_ids: (B, T) int64 token ids.
        tokenizer: tokenizer of the ids.
        rewards: (B,) float32, weighted sum of the reward functions; NaN for a response that none of them scored.
        right, wrong: (B,) bool, responses whose first reward counts as right, or as wrong. A response that the first
            reward function did not score is neither.
        old_logps, old_entropies: (B, T) float32, log-probabilities and entropies (nats) under the policy that wrote
            the rollout. For groups that waited for their rollout, the entropies are those at its beginning.
        logps, entropies: (B, T) float32 under the current policy.
        residual_norms: (B, T) float32, norm of the gradient of the token's log-probability in the LM head, under the
            policy of the stage.
        epsilon_low, epsilon_high, delta: clip limits of the surrogate; `delta` may be None.
        step: optimiser step, counted from 0.
        seed: seed of this entry at this step, for `over_ranks.draw`.
        ranks: collectives over the processes. Every process must call them in the same order.
    """

    mask: Tensor
    order: Tensor
    responses: int
    group_size: int
    advantages: Tensor
    ranks: Ranks
    completion_ids: Tensor | None = None
    tokenizer: Any = None
    rewards: Tensor | None = None
    right: Tensor | None = None
    wrong: Tensor | None = None
    old_logps: Tensor | None = None
    old_entropies: Tensor | None = None
    logps: Tensor | None = None
    entropies: Tensor | None = None
    residual_norms: Tensor | None = None
    epsilon_low: float = 0.2
    epsilon_high: float = 0.28
    delta: float | None = None
    step: int = 0
    seed: int = 0

    @property
    def group(self) -> Tensor:
        """(B,) int64, index of each response's group, from 0 to `groups` - 1."""
        return self.order // self.group_size

    @property
    def groups(self) -> int:
        """Number of groups of the rollout on all processes."""
        return self.responses // self.group_size

    @property
    def places(self) -> Tensor:
        """(B, T) int64, each token's place in the rollout, which depends on neither processes nor padding."""
        positions = torch.arange(self.mask.size(1), device=self.mask.device)
        return positions * self.responses + self.order.unsqueeze(1)

    @property
    def token_advantages(self) -> Tensor:
        """(B, T) float32 advantages."""
        rows = self.advantages.unsqueeze(1) if self.advantages.dim() == 1 else self.advantages
        return rows.expand_as(self.mask)

    @property
    def ratios(self) -> Tensor:
        """(B, T) float32, current over old probability; needs `logps` and `old_logps`."""
        return torch.exp(self.logps - self.old_logps)
