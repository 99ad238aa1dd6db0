"""Grouping of sequences by length into forward passes with little padding.

TRL pads a rollout to its longest response, and cuts micro-batches from it at random with the same padding. Here the
sequences of one optimiser step, on all ranks, are sorted by length before they are cut and dealt out. A pass runs from
the first to the last column in which one of its sequences has a token. A pass without gradient holds further sequences
instead of TRL's padding.

Pure functions. Shapes: B sequences; attention_mask (B, P + T) of prompts padded on the left and responses padded on
the right.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def by_length(lengths: Tensor, live: Tensor | None = None, count: int | None = None) -> Tensor:
    """Choose `count` sequences to run, longest first: all live sequences, filled up with the shortest other ones.

    The longest come first, so that a step that does not fit into memory fails at once.

    Args:
        lengths: (B,) tokens of each sequence.
        live: (B,) bool, the sequences that must be run; all by default.
        count: number of sequences to run, at least the number of live sequences, which is the default.

    Returns:
        (count,) int64 indices. Sequences of equal length keep their order.
    """
    live = torch.ones_like(lengths, dtype=torch.bool) if live is None else live
    longest_first = torch.argsort(lengths, descending=True, stable=True)
    is_live = live[longest_first]
    others = longest_first[~is_live]
    spare = 0 if count is None else count - int(live.sum())
    chosen = torch.cat([longest_first[is_live], others[len(others) - spare :]])
    return chosen[torch.argsort(lengths[chosen], descending=True, stable=True)]


def cut(lengths: Tensor, parts: int, budget: int) -> list[int]:
    """Cut sequences, longest first, into `parts` consecutive runs with the fewest tokens, including padding.

    Args:
        lengths: (n,) int64, descending, with n >= parts. A run is as wide as its first sequence.
        budget: largest number of tokens of a run, unless it is a single sequence. Runs of equal size must fit.

    Returns:
        Number of sequences of each run.
    """
    n = len(lengths)
    sizes = torch.arange(n + 1) - torch.arange(n).unsqueeze(1)  # (first, end)
    cost = (sizes * lengths.cpu().unsqueeze(1)).double()
    cost[(sizes < 1) | ((cost > budget) & (sizes > 1))] = torch.inf
    least, firsts = cost[0], []
    for _ in range(parts - 1):
        least, first = (least[:-1].unsqueeze(1) + cost).min(dim=0)
        firsts.append(first)
    ends = [n]
    for first in reversed(firsts):
        ends.append(int(first[ends[-1]]))
    return [end - start for end, start in zip(reversed(ends), [0, *reversed(ends[1:])], strict=True)]


def fewest(lengths: Tensor, budget: int) -> int:
    """Return the smallest number of runs into which sequences, longest first, can be cut within a budget.

    Args:
        lengths, budget: see `cut`. A sequence beyond the budget is a run of its own.
    """
    runs, width, held = 0, 0, 0
    for length in lengths.tolist():
        # A run that fits also fits without its first sequence, so that filling each run leaves the fewest.
        if held == 0 or (held + 1) * width > budget:
            runs, width, held = runs + 1, length, 0
        held += 1
    return runs


def deal(order: Tensor, sizes: list[int], ranks: int) -> list[list[Tensor]]:
    """Cut an order of sequences into micro-batches, and deal the sequences of each to the ranks in turn.

    Args:
        order: (count,) int64 indices, a multiple of `ranks`.
        sizes: number of sequences of each micro-batch on one rank.

    Returns:
        For every micro-batch, its sequences by rank, which have about the same length.
    """
    return [list(hands.unbind(dim=1)) for hands in order.view(-1, ranks).split(sizes)]


def _fill(order: Tensor, prompts: Tensor, completions: Tensor, budget: int) -> list[Tensor]:
    """Cut an order of sequences into passes of at most `budget` tokens, including padding, or of one sequence."""
    passes, start, widest = [], 0, (0, 0)
    for i, lengths in enumerate(zip(prompts[order].tolist(), completions[order].tolist(), strict=True)):
        wider = max(widest[0], lengths[0]), max(widest[1], lengths[1])
        if i > start and (i + 1 - start) * sum(wider) > budget:
            passes.append(order[start:i])
            start, wider = i, lengths
        widest = wider
    return [*passes, order[start:]]


def trimmed_passes(
    attention_mask: Tensor,
    completion_width: int,
    batch_size: int | None = None,
    agree: Callable[[int], int] = lambda count: count,
) -> list[tuple[Tensor, int, int]]:
    """Divide all sequences into passes without shared padding.

    A pass has at most the tokens of `batch_size` sequences at the full width. If there are several passes, sequences
    are sorted by length, longest first.

    Args:
        attention_mask: (B, P + T).
        completion_width: T.
        batch_size: sequences of a pass at the full width; all by default.
        agree: maps this rank's number of passes to the number for all ranks. FSDP needs equal numbers.

    Returns:
        For every pass its sequences (int64) and the columns, from start to stop, that hold a token of any of them. The
        columns always include the last column of the prompt, whose hidden state predicts the first token, and the
        first column of the responses.
    """
    prompt_width, rows = attention_mask.size(1) - completion_width, attention_mask.size(0)
    if batch_size is None or batch_size >= rows:
        parts = [torch.arange(rows, device=attention_mask.device)]
    else:
        # A pass has at least one column of the prompt and one of the response, even without a token there.
        parts_of_a_row = attention_mask[:, :prompt_width], attention_mask[:, prompt_width:]
        prompts, completions = (columns.sum(1).clamp(min=1) for columns in parts_of_a_row)
        order = by_length(prompts + completions)
        parts = _fill(order, prompts, completions, batch_size * attention_mask.size(1))
        for _ in range(agree(len(parts)) - len(parts)):
            largest = max(range(len(parts)), key=lambda i: len(parts[i]))
            parts[largest : largest + 1] = parts[largest].tensor_split(2)
    passes = []
    for part in parts:
        used = attention_mask[part].any(dim=0).nonzero().flatten().tolist() or [prompt_width]
        passes.append((part, min(used[0], prompt_width - 1), max(used[-1], prompt_width) + 1))
    return passes


# Rotary embeddings whose frequencies do not depend on the length of the sequence.
STATIC_ROPE = ("default", "linear", "yarn", "llama3", "proportional")


def positions_are_relative(rope_parameters: dict[str, Any]) -> bool:
    """Return whether the scores of a model with these rotary embeddings are independent of the padding on the left.

    Args:
        rope_parameters: parameters of transformers' config, or a dict of such parameters by the type of layer.
    """
    layers = [rope_parameters] if "rope_type" in rope_parameters else list(rope_parameters.values())
    return all(layer is None or layer["rope_type"] in STATIC_ROPE for layer in layers)


def padding_is_inert(text_config: Any) -> bool:
    """Return whether the scores of a sequence are independent of the width of its batch.

    Args:
        text_config: transformers' configuration of the language model.
    """
    rope = getattr(text_config, "rope_parameters", None)
    return rope is not None and positions_are_relative(rope)


def merge(batches: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Merge micro-batches into one. Values of the whole rollout (0-dimensional, or None) are taken once."""
    return {
        key: torch.cat([b[key] for b in batches]) if isinstance(value, Tensor) and value.dim() else value
        for key, value in batches[0].items()
    }


def take(batch: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """The micro-batch with the given sequences."""
    return {key: value[rows] if isinstance(value, Tensor) and value.dim() else value for key, value in batch.items()}
