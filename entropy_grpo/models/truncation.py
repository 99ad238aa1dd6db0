"""Log-probabilities under truncated sampling (top-k, nucleus and min-p), as a kernel of the sparse head.

A sampler with top_k, top_p or min_p draws from softmax(z / T) restricted to a set S of tokens and divided by the
probability of S. The log-probability of a drawn token o under that distribution q is z_o / T minus the log-sum-exp of
z / T over S. Its gradient in z / T is e(o) - q. S depends on all logits of a row, so that a tile of the vocabulary is
not enough. The kernel computes whole rows of logits, `CHUNK` values at a time.

S is computed from the policy that scores. For the policy that wrote a response, this is exactly the sampler's
distribution. A later policy has another S. A drawn token outside it is added to S, because otherwise its probability
would be 0 and its loss would have no gradient.

Shapes: n rows, H hidden size, V vocabulary; hidden (n, H), weight (V, H), targets (n,) int64.
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessorList, MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from .kernels import Kernel, Scores

# Number of logits in memory at the same time, 128 MiB in float32. Sorting takes a few times as much memory.
CHUNK = 2**25


@dataclass(frozen=True)
class Truncation:
    """Settings of truncated sampling, as in transformers and vLLM. The defaults truncate nothing.

    Both samplers cut by top_k before they cut by top_p. transformers cuts by min_p last. vLLM cuts by it first, and
    top_p is a share of what min_p has left.
    """

    top_p: float = 1.0
    top_k: int = 0
    min_p: float | None = None
    min_p_first: bool = False

    def __bool__(self) -> bool:
        return self.top_p < 1 or self.top_k > 0 or bool(self.min_p)

    @property
    def warpers(self) -> LogitsProcessorList:
        """Return the steps of the sampler, in its order."""
        steps = LogitsProcessorList()
        if self.top_k > 0:
            steps.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            steps.append(TopPLogitsWarper(self.top_p))
        if self.min_p:
            steps.insert(0 if self.min_p_first else len(steps), MinPLogitsWarper(self.min_p))
        return steps

    def log_probs(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the log-probabilities of all tokens, (n, V) float32, with -inf outside S.

        Args:
            logits: (n, V) float32, divided by the temperature.
        """
        truncated = self.warpers(None, logits)  # type: ignore[arg-type]  # transformers names the class of CPU tensors
        own = targets.unsqueeze(1)
        return truncated.scatter(1, own, logits.gather(1, own)).log_softmax(dim=-1)

    def kernel(self) -> Kernel:
        """Return the kernel of the truncated sampler's log-probabilities. Entropies are of the whole distribution."""
        return Kernel(self._forward, self._backward)

    def _forward(
        self, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, outputs: Collection[str]
    ) -> tuple[Scores, float]:
        parts: list[list[Tensor]] = []
        for rows in _chunks(hidden.size(0), weight.size(0)):
            logits = _logits(hidden[rows], weight, temperature)
            truncated = self.log_probs(logits, targets[rows])
            part = [truncated.gather(1, targets[rows].unsqueeze(1)).squeeze(1)]
            if "entropy" in outputs:
                whole = logits.log_softmax(dim=-1)
                part.append(-(whole.exp() * whole).sum(dim=-1))
            if "log_sum_sq_probs" in outputs:
                part.append((2 * truncated).logsumexp(dim=-1))
            parts.append(part)
        columns = iter([torch.cat(column) for column in zip(*parts, strict=True)])
        log_probs = next(columns)
        entropy = next(columns) if "entropy" in outputs else None
        return Scores(log_probs, entropy, next(columns, None)), temperature

    def _backward(
        self,
        state: float,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        log_z: Tensor | None,
        grad_log_probs: Tensor,
        needs: tuple[bool, bool],
    ) -> tuple[Tensor | None, Tensor | None]:
        grad_hidden = torch.empty_like(hidden) if needs[0] else None
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if needs[1] else None
        for rows in _chunks(hidden.size(0), weight.size(0)):
            own, upstream = targets[rows].unsqueeze(1), grad_log_probs[rows].unsqueeze(1)
            gradient = -self.log_probs(_logits(hidden[rows], weight, state), targets[rows]).exp() * upstream
            gradient = (gradient.scatter_add(1, own, upstream) / state).to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = gradient @ weight.to(hidden.dtype)
            if grad_weight is not None:
                grad_weight += (gradient.T @ hidden[rows]).float()
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype)


def _chunks(rows: int, vocabulary: int) -> list[slice]:
    size = max(CHUNK // vocabulary, 1)
    return [slice(start, start + size) for start in range(0, rows, size)]


def _logits(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    """Return the logits divided by the temperature, float32. The matmul is in the dtype of the hidden states."""
    with torch.autocast(hidden.device.type, enabled=False):
        return (hidden @ weight.to(hidden.dtype).T).float() / temperature
