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
LIGER_WORDS, PLAIN_WORDS = ("--use_liger_kernel", "true"), ("--use_liger_kernel", "false")
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


def _pass(model: PreTrainedModel, ids: Tensor, autocast: bool) -> tuple[Tensor, list[Tensor]]:
    """One training pass on the mean log-probability.

    Returns:
        Log-probability of every token but the first, (rows, tokens - 1), and the layers' gradients, float32.
    """
    model.zero_grad(set_to_none=True)
    rows = []
    for one in ids:
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=autocast):
            hidden = model.model(one[None]).last_hidden_state[0, :-1]
        # The head in float32 for all, so that only the layers' errors are seen.
        logits = hidden.float() @ model.lm_head.weight.float().t()
        chosen = logits.log_softmax(-1).gather(1, one[1:].unsqueeze(1)).squeeze(1)
        (chosen.mean() / len(ids)).backward()
        rows.append(chosen.detach())
    gradients = [parameter.grad for parameter in model.model.layers.parameters()]
    return torch.stack(rows), gradients


def errors(model: PreTrainedModel, ids: Tensor) -> dict[str, Any]:
    """Errors of log-probabilities and of the layers' gradients under bfloat16 autocast, relative to float32.

    Those of log-probabilities are the root mean square and the largest, in nats. That of the gradients is the norm of
    the difference over the norm, for all layers together. On a GPU the model has Liger's kernels afterwards.

    Args:
        model: a float32 model.
        ids: tokens, (rows, tokens), integers.
    """
    exact, gradients = _pass(model, ids, autocast=False)
    norm = torch.stack([g.double().norm() for g in gradients]).norm()

    def against(found: Tensor, grads: list[Tensor]) -> dict[str, float]:
        difference = (found - exact).double()
        wrong = torch.stack([(a - b).double().norm() for a, b in zip(grads, gradients, strict=True)]).norm()
        return {
            "root_mean_square": difference.square().mean().sqrt().item(),
            "largest": difference.abs().max().item(),
            "gradients": (wrong / norm).item(),
        }

    found = {"log_probs": exact.mean().item(), "transformers": against(*_pass(model, ids, autocast=True))}
    if ids.device.type == "cuda":
        with restored(model.config):
            apply_liger_kernel(model, KERNELS)
            found["Liger"] = against(*_pass(model, ids, autocast=True))
    return found
