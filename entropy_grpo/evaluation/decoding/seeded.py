"""Sampling in which every response has its own random numbers, independent of its batch.

Textbook samplers draw the tokens of a batch from one generator, so that a response depends on its row. Here every
response has a seed with uniform numbers u_t, and its token t is the inverse distribution function at u_t. The draw is
exact and uses one number per token. The order of the filters is that of transformers and vLLM: temperature, then the k
most probable tokens, then the fewest tokens whose probability reaches p.
"""

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor


def uniforms(seed: int, count: int) -> np.ndarray:
    """Return (count,) float64 uniform numbers in [0, 1) from Philox, whose raw stream is the same in all versions."""
    return (np.random.Philox(key=seed).random_raw(count) >> np.uint64(11)) * 2.0**-53


def distribution(logits: Tensor, temperature: float, top_p: float, top_k: int) -> Tensor:
    """Return the sampling probabilities of tokens, (B, V) float64.

    Args:
        logits: (B, V) float32.
        temperature: above 0.
        top_p: in (0, 1]. Among equally probable tokens, lower ids are kept first.
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
    """Draw (B,) token ids by the inverse of the distribution function.

    Args:
        probabilities: (B, V) float64, which need not add up to 1. A token of probability 0 is never drawn.
        uniform: (B, 1) float64 in [0, 1).
    """
    cumulative = probabilities.cumsum(-1)
    total = cumulative[:, -1:]
    below = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, below, right=True).squeeze(-1)


class SeededSampler(LogitsProcessor):
    """Masks all logits of a row except one token, drawn with the row's seed, for greedy search to pick.

    Parameters:
        seeds: one seed per row of the batch.
        width: tokens of the padded prompts.
        max_tokens: maximum number of tokens of a response.
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
