"""Entropy, log-probability and gradient norm of every token of given responses, in one pass without full logits.

The sparse head, which ranks tokens in training (`models.head`), scores the tokens. TRL's head scores them for models
that the sparse head cannot serve, without gradient norms. Both compute one tile of logits at a time, with float32
statistics. Sequences are sorted by length, padded on the right, and batched within a budget of tokens.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel
from trl.trainer.utils import add_fused_lm_head

from ...models.adapters import unwrapped
from ...models.head import add_sparse_lm_head, why_not

OUTPUTS = ("entropy", "residual_norm")
PAD = 0  # any id is possible, because padding is masked out


def add_head(model: PreTrainedModel | PeftModel, temperature: float) -> None:
    """Make `model(..., labels=..., fused_lm_head=...)` return the statistics of tokens at a temperature."""
    inner = unwrapped(model)
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
    model: PreTrainedModel | PeftModel,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    budget: int,
) -> tuple[list[np.ndarray], ...]:
    """Score the tokens of responses.

    Args:
        model: model after `add_head`, in evaluation mode.
        prompts, completions: token ids; every prompt has at least one token.
        budget: padded tokens of a forward pass.

    Returns:
        (entropies in nats, log-probabilities, gradient norms), each with one float32 array (T,) per response of T
        tokens. A gradient norm is ||e(o) - p||_2 * ||h||_2 (arXiv 2508.02260, Eq. 4, without its coefficient), or NaN
        if TRL's head scores the tokens.
    """
    statistics = tuple([np.zeros(0, np.float32)] * len(prompts) for _ in range(3))
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
        output = model(**{k: v.to(model.device) for k, v in inputs.items()}, fused_lm_head=OUTPUTS)
        tensors = (output.entropy, output.log_probs, output.get("residual_norm"))  # (B, L - 1) each
        arrays = [np.full(mask[:, 1:].shape, np.nan) if x is None else x.float().cpu().numpy() for x in tensors]
        for row, i in enumerate(rows):
            place = slice(len(prompts[i]) - 1, lengths[i] - 1)
            for columns, array in zip(statistics, arrays, strict=True):
                columns[i] = array[row, place].astype(np.float32)
    return statistics
