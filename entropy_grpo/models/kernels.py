"""Kernels of the sparse head: fused linear cross-entropy whose forward and backward may run on different rows.

An autograd function runs forward and backward on the same rows. Here `forward` scores all rows and keeps no graph.
`backward` is called later, only for the rows that have a gradient. `TILES` is TRL's kernel, which computes logits tile
by tile and sums statistics and gradients in float32. `LIGER` is Liger's kernel, called through its public function.

Shapes: n >= 1 rows, H hidden size, V vocabulary; hidden (n, H), weight (V, H), targets (n,) int64.
"""

from collections.abc import Callable, Collection
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from trl.kernels import ChunkedLogProbFunction

# Vocabulary entries per tile of logits. On an H100 widths from 8,192 to 65,536 differ by less than 5% (docs/gpu.md).
# On a CPU a tile should stay in the cache between the matmul and about six elementwise passes over it (see
# benchmarks/results/head.json).
GPU_TILE, CPU_TILE = 32768, 2048
# Rows over which Liger's Hopper kernel sums the weight gradient before it rounds to bfloat16.
HOPPER_WAVE = 1024


class Scores(NamedTuple):
    """Statistics of every row, (n,) float32; `None` if not requested or not provided by the kernel.

    Attributes:
        log_probs: log-probabilities of the targets at the temperature.
        entropy: entropy of the distribution, nats.
        log_sum_sq_probs: log(sum_v p_v^2).
        log_z: log-sum-exp of the logits, which saves a matmul in `backward`.
    """

    log_probs: Tensor
    entropy: Tensor | None = None
    log_sum_sq_probs: Tensor | None = None
    log_z: Tensor | None = None


class Kernel(NamedTuple):
    """Forward and backward halves of a fused linear cross-entropy.

    Attributes:
        forward: (hidden, weight, targets, temperature, outputs) -> (`Scores`, state). `outputs` names statistics.
        backward: (state, hidden, weight, targets, log_z, grad_log_probs, needs) -> gradients of hidden and weight in
            their dtypes. A gradient is `None` unless `needs`, a pair of bools, requests it. It accepts any subset of
            the rows of the forward pass.
    """

    forward: Callable[[Tensor, Tensor, Tensor, float, Collection[str]], tuple[Scores, Any]]
    backward: Callable[..., tuple[Tensor | None, Tensor | None]]


class Context(SimpleNamespace):
    """Stand-in for autograd's context, because the halves of the function are called directly."""

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        self.saved_tensors = tensors

    def set_materialize_grads(self, value: bool) -> None:
        pass

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        pass


def tile_width(device: torch.device) -> int:
    """Return the number of vocabulary entries per tile."""
    return CPU_TILE if device.type == "cpu" else GPU_TILE


def tiles_forward(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, outputs: Collection[str]
) -> tuple[Scores, Context]:
    """Run the forward half of TRL's `ChunkedLogProbFunction`."""
    state = Context()
    tile = tile_width(hidden.device)
    log_probs, entropy, log_sum_sq_probs, _, _ = ChunkedLogProbFunction.forward(
        state, hidden, weight, None, targets, temperature, tile, None, 1.0, tuple(outputs)
    )
    log_z = state.saved_tensors[4]
    del state.saved_tensors  # the caller keeps the tensors
    return Scores(log_probs, entropy, log_sum_sq_probs, log_z), state


def tiles_backward(
    state: Context,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    log_z: Tensor,
    grad_log_probs: Tensor,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Run the backward half of TRL's function: one matmul for the logits and one for each gradient."""
    saved = (hidden, weight, None, targets, log_z, log_z)
    ctx = Context(**vars(state) | {"saved_tensors": saved, "needs_input_grad": (*needs, False)})
    return ChunkedLogProbFunction.backward(ctx, grad_log_probs, None)[:2]


@cache
def hopper(device: torch.device) -> bool:
    """Return whether Liger runs its Hopper kernel, which accepts only bfloat16, on a device."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0)


def _liger(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, entropy: bool) -> tuple[Tensor, ...]:
    """Return Liger's per-row negative log-likelihood and, if requested, the entropy."""
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import LigerFusedLinearScaledCrossEntropyFunction

    # Liger's fallback computes entropies and sums gradients in the dtype of its inputs, and follows autocast.
    with torch.autocast(hidden.device.type, enabled=False):
        result = LigerFusedLinearScaledCrossEntropyFunction.apply(
            hidden, weight, targets, temperature, -100, 1, entropy
        )
    return result if entropy else (result,)


def _liger_dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if hopper(device) else torch.float32


def liger_forward(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, outputs: Collection[str]
) -> tuple[Scores, float]:
    """Run Liger's scaled cross-entropy on every row.

    `outputs` may name `entropy`, except on Hopper, whose kernel would compute it in bfloat16.
    """
    dtype = _liger_dtype(hidden.device)
    scores = _liger(hidden.to(dtype), weight.to(dtype), targets, temperature, "entropy" in outputs)
    return Scores(-scores[0], *scores[1:]), temperature


def liger_backward(
    state: float,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    log_z: Tensor | None,
    grad_log_probs: Tensor,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Run Liger's function again on the given rows, with a graph.

    The second forward pass costs one matmul more than Liger's backward pass alone.
    """
    dtype, device = _liger_dtype(hidden.device), hidden.device
    wave = HOPPER_WAVE if hopper(device) else hidden.size(0)
    grad_hidden = torch.empty(hidden.shape, dtype=torch.float32, device=device) if needs[0] else None
    grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=device) if needs[1] else None
    with torch.enable_grad():
        leaf = weight.detach().to(dtype).requires_grad_(needs[1])
        for start in range(0, hidden.size(0), wave):
            part = slice(start, start + wave)
            rows = hidden[part].detach().to(dtype).requires_grad_(needs[0])
            (nll,) = _liger(rows, leaf, targets[part], state, entropy=False)
            wanted = [x for x, need in zip((rows, leaf), needs, strict=True) if need]
            gradients = list(torch.autograd.grad(nll, wanted, -grad_log_probs[part]))
            if grad_weight is not None:
                grad_weight += gradients.pop()
            if grad_hidden is not None:
                grad_hidden[part] = gradients.pop()
    return (
        grad_hidden.to(hidden.dtype) if grad_hidden is not None else None,
        grad_weight.to(weight.dtype) if grad_weight is not None else None,
    )


TILES = Kernel(tiles_forward, tiles_backward)
LIGER = Kernel(liger_forward, liger_backward)


def choose(name: str, device: torch.device, outputs: Collection[str]) -> Kernel:
    """Return the kernel for a pass.

    `auto` is TRL's tiles, because no kernel of Liger's was faster on CPUs (benchmarks/results/head.json) or on an H100
    (docs/gpu.md). On the H100, Liger's Hopper kernel is more exact and needs less memory. With `liger`, tiles still
    compute what Liger cannot compute in float32: sums of squared probabilities, and entropies on Hopper.
    """
    native = name == "liger" and "log_sum_sq_probs" not in outputs
    if native and not (hopper(device) and "entropy" in outputs):
        return LIGER
    return TILES
