"""Layers of a decoder with Liger's kernels and with those of transformers: settings, clean-up, and errors."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.integrations.liger import apply_liger_kernel

# TRL 1.16 announces that `use_liger_kernel` ends with TRL 2.
LIGER_WORDS = ("--use_liger_kernel", "true")
# The head is the package's own.
KERNELS = {"fused_linear_cross_entropy": False}


@contextmanager
def restored(config: PreTrainedConfig) -> Iterator[None]:
    """Undo what Liger replaces in transformers' module of this architecture, so that later models are unchanged."""
    module = sys.modules[f"transformers.models.{config.model_type}.modeling_{config.model_type}"]
    before = dict(vars(module))
    try:
        yield
    finally:
        vars(module).update(before)


@torch.no_grad()
def _log_probs(model: PreTrainedModel, ids: Tensor, autocast: bool) -> Tensor:
    """Log-probability of every token but the first, (rows, tokens - 1), float32."""
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=autocast):
        hidden = model.model(ids).last_hidden_state[:, :-1]
    rows = []
    for one, chosen in zip(hidden, ids[:, 1:], strict=True):
        # The head in float32 for all, so that only the layers' errors are seen.
        logits = one.float() @ model.lm_head.weight.float().t()
        rows.append(logits.log_softmax(-1).gather(1, chosen.unsqueeze(1)).squeeze(1))
    return torch.stack(rows)


def errors(model: PreTrainedModel, ids: Tensor) -> dict[str, Any]:
    """Root mean square and largest error of log-probabilities under bfloat16 autocast, relative to float32.

    On a GPU the model has Liger's kernels afterwards.

    Args:
        model: a float32 model.
        ids: tokens, (rows, tokens), integers.
    """
    exact = _log_probs(model, ids, autocast=False)

    def against(found: Tensor) -> dict[str, float]:
        difference = (found - exact).double()
        return {"root_mean_square": difference.square().mean().sqrt().item(), "largest": difference.abs().max().item()}

    found = {"log_probs": exact.mean().item(), "transformers": against(_log_probs(model, ids, autocast=True))}
    if ids.device.type == "cuda":
        with restored(model.config):
            apply_liger_kernel(model, KERNELS)
            found["Liger"] = against(_log_probs(model, ids, autocast=True))
    return found
