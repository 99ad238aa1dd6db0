"""The sparse LM head, behind the contract of TRL's head: `model(..., labels=..., fused_lm_head=True)`.

TRL's head and Liger's head differentiate every row. In this objective most rows have no gradient: dropped tokens,
clipped tokens, and tokens of responses without advantage. The upstream gradient of such rows is exactly zero. The
backward pass therefore gathers the nonzero rows, runs the kernel on them, and scatters the result. The gradient of all
other rows is exactly zero.

The cost is counted in matmuls of all n rows with the head: 1 + 3 rho instead of 4. If the kept tokens are known
beforehand, the labels of dropped tokens are -100, and the cost is 4 rho.
"""

import functools
import inspect
import types
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput
from trl.trainer.utils import maybe_gather_lm_head_ctx

from .kernels import Kernel, choose
from .truncation import Truncation

WHOLE_DISTRIBUTION = Truncation()


class SparseLogProbs(torch.autograd.Function):
    """Log-probabilities with a backward pass over the rows whose upstream gradient is not zero.

    apply(hidden (n, H), weight (V, H), targets (n,), temperature, kernel, outputs) -> (log_probs, entropy,
    log_sum_sq_probs). All results are (n,) float32; the last two are None unless `outputs` requests them. Only
    `log_probs` has a gradient. n may be 0.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        temperature: float,
        kernel: Kernel,
        outputs: Collection[str],
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.kernel = kernel
        if hidden.size(0) == 0:  # Liger cannot run on zero rows
            ctx.save_for_backward(hidden, weight, targets, None)
            empty = torch.zeros(0, device=hidden.device)
            entropy, log_sum_sq_probs = (
                empty.clone() if name in outputs else None for name in ("entropy", "log_sum_sq_probs")
            )
            log_probs = empty
        else:
            scores, ctx.state = kernel.forward(hidden, weight, targets, temperature, outputs)
            ctx.save_for_backward(hidden, weight, targets, scores.log_z)
            log_probs, entropy, log_sum_sq_probs = scores[:3]
        ctx.mark_non_differentiable(*(x for x in (entropy, log_sum_sq_probs) if x is not None))
        return log_probs, entropy, log_sum_sq_probs

    @staticmethod
    def backward(ctx: Any, grad_log_probs: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, log_z = ctx.saved_tensors
        needs = ctx.needs_input_grad[:2]
        rows = torch.zeros(0, dtype=torch.long) if grad_log_probs is None else grad_log_probs.nonzero().squeeze(1)
        with maybe_gather_lm_head_ctx(weight):
            if len(rows) == 0:
                gradients = (torch.zeros_like(x) if n else None for x, n in zip((hidden, weight), needs, strict=True))
                return *gradients, None, None, None, None
            if len(rows) == hidden.size(0):
                gradients = ctx.kernel.backward(ctx.state, hidden, weight, targets, log_z, grad_log_probs, needs)
                return *gradients, None, None, None, None
            log_z = log_z if log_z is None else log_z[rows]
            grad_rows, grad_weight = ctx.kernel.backward(
                ctx.state, hidden[rows], weight, targets[rows], log_z, grad_log_probs[rows], needs
            )
        grad_hidden = torch.zeros_like(hidden).index_copy_(0, rows, grad_rows) if needs[0] else None
        return grad_hidden, grad_weight, None, None, None, None


@dataclass
class SparseHeadOutput(ModelOutput):
    """Output of the head: (B, L - 1) float32 tensors, zero where the label is -100; `None` if not requested.

    Attributes:
        log_probs: log-probability of each label, with gradient.
        entropy: entropy of the distribution at each position, nats.
        residual_norm: ||e(label) - p||_2 * ||h||_2, the gradient norm of the label's log-probability in the head's
            weight (arXiv 2508.02260, Eq. 4, without its coefficient).
    """

    log_probs: Tensor | None = None
    entropy: Tensor | None = None
    residual_norm: Tensor | None = None


def residual_norms(hidden: Tensor, log_probs: Tensor, log_sum_sq_probs: Tensor) -> Tensor:
    """Return (n,) norms ||e(o) - p||_2 * ||h||_2 of (n, H) hidden states.

    The norm follows from statistics of the row: ||e(o) - p||^2 = 1 - 2 p_o + sum_v p_v^2.
    """
    squares = 1 - 2 * log_probs.exp() + log_sum_sq_probs.exp()
    return squares.clamp(min=0).sqrt() * hidden.float().norm(dim=-1)


def why_not(model: PreTrainedModel) -> str | None:
    """Return the reason why the sparse head cannot serve a model that has TRL's head, or `None` if it can."""
    settings = inspect.getclosurevars(model.forward).nonlocals  # TRL's record of the computation of logits
    if settings["final_logit_softcapping"] is not None:
        return f"the model caps its logits softly (final_logit_softcapping {settings['final_logit_softcapping']})"
    if settings["logit_scale"] != 1:
        return f"the model scales its logits (by {settings['logit_scale']:g})"
    if settings["cast_lm_head_to_fp32"]:
        return "cast_lm_head_to_fp32 is set"
    head = model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        return "the LM head has a bias"
    # PEFT's copy of a head in `modules_to_save` is a plain linear layer. Other modules may compute other logits.
    inner = head.modules_to_save["default"] if hasattr(head, "modules_to_save") else head
    if type(inner) is not nn.Linear:
        return f"the LM head is a {type(inner).__name__}"
    return None


def trains_head(model: PreTrainedModel | PeftModel) -> bool:
    """Return whether the LM head's weight has a gradient; with adapters it has none unless a copy is trained."""
    return model.get_output_embeddings().weight.requires_grad


def add_sparse_lm_head(
    model: PreTrainedModel, temperature: float, name: str, truncation: Truncation = WHOLE_DISTRIBUTION
) -> None:
    """Replace TRL's fused head in the `fused_lm_head` calls of a model, and leave other calls unchanged.

    `fused_lm_head` may also name the requested outputs (`entropy`, `residual_norm`); `True` means `entropy`.

    Args:
        model: causal language model with TRL's head (`trl.trainer.utils.add_fused_lm_head`); `why_not` is `None`.
        temperature: divisor of the logits.
        name: `auto` or `liger`, see `kernels.choose`.
        truncation: truncation of the sampling whose log-probabilities are scored.
    """
    truncated = truncation.kernel() if truncation else None
    trl_forward = model.forward

    @functools.wraps(type(model).forward)  # `generate` checks its arguments against the model's own signature
    def forward(
        self: PreTrainedModel,
        *args: Any,
        fused_lm_head: bool | Collection[str] = False,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if not fused_lm_head:
            return trl_forward(*args, labels=labels, **kwargs)
        wanted = ("entropy",) if fused_lm_head is True else fused_lm_head
        hidden = self.base_model(*args, **kwargs, use_cache=False).last_hidden_state[:, :-1]
        # FSDP and PEFT replace the head after construction, so the weight is looked up in every call.
        weight = self.get_output_embeddings().weight
        if isinstance(weight, DTensor):
            weight = weight.full_tensor()
        labels = labels[:, 1:].to(weight.device)
        scored = labels != -100
        rows = hidden.to(weight.device)[scored]
        statistics = {"entropy"} & set(wanted) | ({"log_sum_sq_probs"} if "residual_norm" in wanted else set())
        kernel = truncated or choose(name, weight.device, statistics)
        with maybe_gather_lm_head_ctx(weight):
            log_probs, entropy, log_sum_sq_probs = SparseLogProbs.apply(
                rows, weight, labels[scored], temperature, kernel, statistics
            )
        norms = None
        if log_sum_sq_probs is not None:
            norms = residual_norms(rows.detach(), log_probs.detach(), log_sum_sq_probs)

        def whole(x: Tensor | None) -> Tensor | None:
            # `masked_scatter` keeps the graph even with zero rows, so that an empty micro-batch has a zero gradient.
            return None if x is None else x.new_zeros(scored.shape).masked_scatter(scored, x)

        return SparseHeadOutput(whole(log_probs), whole(entropy), whole(norms))

    model.forward = types.MethodType(forward, model)
