"""Sampling in which every response has random numbers of its own, whichever others share its batch.

Textbook samplers draw a batch's tokens from one generator: a response then depends on its row. Here the token at step
t of a response is the inverse of its distribution function at u_t, the t-th uniform number of the response's own seed:
an exact draw, from one number a token. Temperature, top-k and top-p mean what they mean in transformers and vLLM:
temperature first, then the k most probable tokens, then the fewest whose probability reaches p.
"""

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor


def uniforms(seed: int, count: int) -> np.ndarray:
    """(count,) float64 uniform numbers in [0, 1) of a seed: Philox, whose raw stream is fixed across versions."""
    return (np.random.Philox(key=seed).random_raw(count) >> np.uint64(11)) * 2.0**-53


def distribution(logits: Tensor, temperature: float, top_p: float, top_k: int) -> Tensor:
    """The probabilities, (B, V) float64, that tokens are drawn with.

    Args:
        logits: (B, V) float32.
        temperature: above 0.
        top_p: in (0, 1]; of equally probable tokens those with the lowest ids are kept first.
        top_k: 0 for all tokens.
    """
    probabilities = (logits.double() / temperature).softmax(-1)
    if top_p == 1 and top_k == 0:
        return probabilities
    ranked, order = probabilities.sort(dim=-1, descending=True, stable=True)
    if top_k:
        ranked[:, top_k:] = 0
        ranked /= ranked.sum(-1, keepdim=True)
    ranked[ranked.cumsum(-1) - ranked >= top_p] = 0
    return torch.zeros_like(ranked).scatter_(-1, order, ranked)


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """(B,) token ids: the inverse of the distribution function at `uniform`, (B, 1) float64 in [0, 1).

    The probabilities, (B, V) float64, need not add up to 1. A token without probability is never drawn.
    """
    cumulative = probabilities.cumsum(-1)
    total = cumulative[:, -1:]
    below = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, below, right=True).squeeze(-1)


class SeededSampler(LogitsProcessor):
    """Leaves one token of each row, drawn with that row's seed, for a greedy search to pick.

    Parameters:
        seeds: one per row of the batch.
        width: tokens of the padded prompts.
        max_tokens: the most that a response may have.
        temperature, top_p, top_k: as in `distribution`.
    """

    def __init__(
        self,
        seeds: list[int],
        width: int,
        max_tokens: int,
        temperature: float,
        top_p: float,
        top_k: int,
        device: torch.device,
    ):
        self.width, self.sampling = width, (temperature, top_p, top_k)
        self.uniforms = torch.from_numpy(np.stack([uniforms(seed, max_tokens) for seed in seeds])).to(device)  # (B, T)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.width
        chosen = draw(distribution(scores, *self.sampling), self.uniforms[:, step : step + 1])
        return torch.full_like(scores, -torch.inf).scatter_(-1, chosen[:, None], 0.0)
