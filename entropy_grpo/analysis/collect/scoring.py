"""Entropy and log-probability of every token of given responses, in one forward pass without full logits.

The sparse head, which ranks tokens in training (`models.head`), scores the tokens. TRL's head scores them for models
that the sparse head cannot serve. Both compute one tile of logits at a time, with float32 statistics. Sequences are
sorted by length, padded on the right, and batched within a budget of tokens.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from trl.trainer.utils import add_fused_lm_head

from ...models.head import add_sparse_lm_head, why_not

PAD = 0  # any id is possible, because padding is masked out


def add_head(model: torch.nn.Module, temperature: float) -> None:
    """Make `model(..., labels=..., fused_lm_head=True)` return log-probabilities and entropies at a temperature."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT's wrapper
    add_fused_lm_head(inner, temperature, outputs=("log_probs", "entropy"))
    if why_not(inner) is None:
        add_sparse_lm_head(inner, temperature, "auto")


def batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Yield the positions of the sequences of each batch, longest first.

    A padded batch has at most `budget` tokens, or a single sequence.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while order:
        count = max(1, budget // max(1, lengths[order[0]]))
        yield order[:count]
        order = order[count:]


@torch.inference_mode()
def score(
    model: torch.nn.Module, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], budget: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Score the tokens of responses.

    Args:
        model: model after `add_head`, in evaluation mode.
        prompts, completions: token ids; every prompt has at least one token.
        budget: padded tokens of a forward pass.

    Returns:
        (entropies in nats, log-probabilities), each with one float32 array (T,) per response of T tokens.
    """
    entropies, log_probs = ([np.zeros(0, np.float32)] * len(prompts) for _ in range(2))
    lengths = [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]
    for rows in batches(lengths, budget):
        width = lengths[rows[0]]
        input_ids = torch.full((len(rows), width), PAD)  # (B, L)
        labels = torch.full((len(rows), width), -100)
        mask = torch.zeros(len(rows), width, dtype=torch.long)
        for row, i in enumerate(rows):
            start, end = len(prompts[i]), lengths[i]
            input_ids[row, :end] = torch.tensor([*prompts[i], *completions[i]])
            labels[row, start:end] = input_ids[row, start:end]
            mask[row, :end] = 1
        inputs = {"input_ids": input_ids, "attention_mask": mask, "labels": labels}
        output = model(**{k: v.to(model.device) for k, v in inputs.items()}, fused_lm_head=True)
        entropy, log_prob = (x.float().cpu().numpy() for x in (output.entropy, output.log_probs))  # (B, L - 1)
        for row, i in enumerate(rows):
            place = slice(len(prompts[i]) - 1, lengths[i] - 1)
            entropies[i], log_probs[i] = entropy[row, place].copy(), log_prob[row, place].copy()
    return entropies, log_probs
