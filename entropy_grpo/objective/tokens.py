"""Tokens of a micro-batch or a rollout, read from TRL's tensors by name.

Pure functions. Shapes: B sequences, T completion tokens including padding.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# A micro-batch, or a rollout: TRL's tensors by name.
Inputs = dict[str, Any]


def loss_mask(inputs: Inputs) -> Tensor:
    """(B, T): the completion tokens that the policy wrote itself."""
    mask = inputs["completion_mask"]
    return mask * inputs["tool_mask"] if "tool_mask" in inputs else mask


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """All elements of the tensors in one dimension."""
    return torch.cat([t.flatten() for t in tensors])


def _log_ratio(logps: Tensor, inputs: Inputs) -> Tensor:
    """(B, T) logarithm of `probability_ratio`."""
    old = inputs.get("old_per_token_logps")
    return torch.zeros_like(logps) if old is None else logps - old


def probability_ratio(logps: Tensor, inputs: Inputs) -> Tensor:
    """(B, T): current over old probability; TRL omits the old log-probabilities while the policy is the rollout's."""
    return _log_ratio(logps, inputs).exp()


def sequence_ratio(logps: Tensor, inputs: Inputs, mask: Tensor) -> Tensor:
    """(B, T): for every token, the geometric mean of the ratios of its sequence's masked tokens; 1 without tokens."""
    means = _log_ratio(logps, inputs).where(mask, 0.0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    return means.exp().unsqueeze(1).expand_as(mask)


def row_advantages(inputs: Inputs) -> Tensor:
    """The advantages as (B, 1) or (B, T)."""
    advantages = inputs["advantages"]
    return advantages.unsqueeze(1) if advantages.dim() == 1 else advantages


def with_gradient(inputs: Inputs) -> Tensor:
    """(B, T) bool: the tokens whose loss is not constant, clipping aside."""
    tokens = loss_mask(inputs).bool() & (row_advantages(inputs) != 0)
    if "token_weights" in inputs:
        tokens = tokens & (inputs["token_weights"] > 0)
    return tokens & inputs["kept_mask"] if "kept_mask" in inputs else tokens


def token_places(inputs: Inputs) -> Tensor:
    """(B, T) int64: each token's place in the rollout, independent of batching, ranks and padding."""
    sequences = inputs["sequence_index"].unsqueeze(1)
    positions = torch.arange(inputs["completion_ids"].size(1), device=sequences.device)
    return positions * inputs["sequence_count"] + sequences
