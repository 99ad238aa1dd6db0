"""What else a model would have written: entropies, log-probabilities and the most probable tokens of a response.

One forward pass without logits: the LM head then projects a tile of positions at a time, and of each tile only the
figures of its positions stay. T tokens of a response, k alternatives, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Of a tile of float32 logits: 128 MB, and the tile's probabilities once more.
ELEMENTS = 2**25
# What changes logits behind the head, by its name in a model's configuration.
AFTER_THE_HEAD = ("final_logit_softcapping", "logit_scale", "logits_scaling")


@dataclass(frozen=True)
class Scores:
    """Of each token of a response, float32 on the processor.

    Attributes:
        entropies: (T,) nats.
        logps: (T,) log-probability of the token that was written.
        top_ids, top_logps: (T, k) the most probable tokens, the first first, and their log-probabilities.
    """

    entropies: Tensor
    logps: Tensor
    top_ids: Tensor
    top_logps: Tensor


def score_rows(head: Any, hidden: Tensor, targets: Tensor, count: int, temperature: float) -> Scores:
    """Scores of (T, H) hidden states through `head`, any module that makes (n, V) logits of (n, H) rows."""
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
        model: of transformers, or with an adapter of PEFT's.
        prompt_ids, response_ids: at least one token each.
        count: k.
        temperature: the logits are divided by it.

    Raises:
        ValueError: where there is no token, or the model changes its logits behind its head.
    """
    if not prompt_ids or not response_ids:
        raise ValueError(
            f"prompt_ids has {len(prompt_ids)} and response_ids {len(response_ids)} tokens: give at least one of each."
        )
    settings = model.config.get_text_config().to_dict()
    for name in AFTER_THE_HEAD:
        if settings.get(name) not in (None, 1, 1.0):
            raise ValueError(f"The model changes its logits behind its head ({name} {settings[name]}): not supported.")
    device = model.get_input_embeddings().weight.device
    ids = torch.tensor([[*prompt_ids, *response_ids]], device=device)
    hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0, len(prompt_ids) - 1 : -1]
    targets = ids[0, len(prompt_ids) :]
    return score_rows(model.get_output_embeddings(), hidden, targets.to(hidden.device), count, temperature)
