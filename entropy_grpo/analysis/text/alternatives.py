"""Entropies, log-probabilities and the most probable alternatives of the tokens of a response.

The decoder runs once without logits. The LM head then projects one tile of positions at a time, and only the
statistics of each tile are kept. Shapes: T tokens of a response, k alternatives, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Elements of a tile of float32 logits: 128 MiB, and another 128 MiB for the tile's probabilities.
ELEMENTS = 2**25
# Settings of a model's configuration that change logits after the LM head.
AFTER_THE_HEAD = ("final_logit_softcapping", "logit_scale", "logits_scaling")


@dataclass(frozen=True)
class Scores:
    """Statistics of the tokens of a response, on the CPU. Ids are int64, all other tensors float32.

    Attributes:
        entropies: (T,) entropies, nats.
        logps: (T,) log-probabilities of the response's tokens.
        top_ids, top_logps: (T, k) the most probable tokens in descending order, and their log-probabilities.
    """

    entropies: Tensor
    logps: Tensor
    top_ids: Tensor
    top_logps: Tensor


def score_rows(head: Any, hidden: Tensor, targets: Tensor, count: int, temperature: float) -> Scores:
    """Score (T, H) hidden states with `head`, a module that maps (n, H) rows to (n, V) logits."""
    parts, rows = [], max(1, ELEMENTS // head.weight.size(0))
    for start in range(0, len(targets), rows):
        log_p = (head(hidden[start : start + rows]).float() / temperature).log_softmax(-1)  # (n, V)
        top = log_p.topk(min(count, log_p.size(-1)), dim=-1)
        entropy = torch.special.entr(log_p.exp()).sum(-1)
        logps = log_p.gather(-1, targets[start : start + rows, None]).squeeze(-1)
        parts.append((entropy.cpu(), logps.cpu(), top.indices.cpu(), top.values.cpu()))
    return Scores(*map(torch.cat, zip(*parts, strict=True)))


@torch.inference_mode()
def score(
    model: Any, prompt_ids: Sequence[int], response_ids: Sequence[int], count: int, temperature: float = 1.0
) -> Scores:
    """Score a response in one pass of a causal language model.

    Args:
        model: model of transformers, with or without a PEFT adapter.
        prompt_ids, response_ids: token ids, at least one each.
        count: number of alternatives, k.
        temperature: divisor of the logits.

    Raises:
        ValueError: the prompt or the response has no token, or the model changes its logits after the LM head.
    """
    if not prompt_ids or not response_ids:
        raise ValueError(
            f"prompt_ids has {len(prompt_ids)} and response_ids has {len(response_ids)} tokens: give at least one "
            "token each."
        )
    settings = model.config.get_text_config().to_dict()
    for name in AFTER_THE_HEAD:
        if settings.get(name) not in (None, 1, 1.0):
            raise ValueError(
                f"model has {name} {settings[name]}, which changes logits after the LM head and is not supported."
            )
    device = model.get_input_embeddings().weight.device
    ids = torch.tensor([[*prompt_ids, *response_ids]], device=device)
    hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0, len(prompt_ids) - 1 : -1]
    targets = ids[0, len(prompt_ids) :]
    return score_rows(model.get_output_embeddings(), hidden, targets.to(hidden.device), count, temperature)
