"""Scoring of sequences in passes without shared padding, through TRL's own scoring of a micro-batch.

TRL's function builds the labels and calls the model. Here it calls a `Request`, which computes only the outputs that
the pass needs, and moves the sequences to the left, so that attention needs no mask. B sequences, P prompt columns, T
completion columns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..objective.batching import trimmed_passes
from ..objective.window import Pass


class Alignment:
    """Moves the sequences of a pass to the first column, and their scores back.

    All padding is then on the right, where causal attention never looks. No mask is needed, a fused kernel of
    attention serves, and every token has the position that it has in its sequence alone.

    Args:
        mask: (b, L), 1 for the tokens of a sequence, which are consecutive.
    """

    def __init__(self, mask: Tensor):
        self.first = mask.argmax(dim=1, keepdim=True)
        self.lengths = mask.sum(dim=1, keepdim=True)
        self.columns = torch.arange(mask.size(1), device=mask.device)
        self.longest = max(int(self.lengths.max()), 1)

    def left(self, x: Tensor, fill: int) -> Tensor:
        """(b, L) -> (b, longest): every sequence from the first column on, followed by `fill`."""
        columns = self.columns[: self.longest]
        moved = x.gather(1, (self.first + columns).clamp(max=len(self.columns) - 1))
        return moved.masked_fill(columns >= self.lengths, fill)

    def back(self, x: Tensor) -> Tensor:
        """(b, longest - 1) -> (b, L - 1): scores in the columns of their sequences, and zeros elsewhere."""
        columns = self.columns[:-1] - self.first
        inside = (columns >= 0) & (columns < self.lengths - 1)
        moved = pad(x, (0, len(self.columns) - self.longest)).gather(1, columns.clamp(min=0))
        return torch.where(inside, moved, 0)


# Requested outputs of the sparse LM head, or True for TRL's head.
Outputs = Sequence[str] | Literal[True]


@dataclass
class Request:
    """Stand-in for the model when TRL scores a micro-batch.

    Attributes:
        model: model with the call `model(..., labels=..., fused_lm_head=...)`.
        outputs: requested outputs of the sparse LM head, or True for TRL's head. Entropies that TRL expects and that
            are not requested are zero.
        kept: (B, T) bool, the completion tokens that the head projects; all by default.
        aligned: whether the model is called without a mask, see `Alignment`. The mask must be the only input beside
            the ids.
        residual_norms: one (b, L - 1) float32 tensor per call so far, if `outputs` requests them. b is the number of
            sequences of the call and L their length.
    """

    model: Any
    outputs: Outputs
    kept: Tensor | None = None
    aligned: bool = False
    residual_norms: list[Tensor] = field(default_factory=list)

    def __call__(self, *, labels: Tensor, fused_lm_head: bool, **inputs: Any) -> Any:
        if self.kept is not None:
            labels[:, -self.kept.size(1) :].masked_fill_(~self.kept, -100)
        output = self._aligned(labels, **inputs) if self.aligned else self._scored(labels, **inputs)
        if self.outputs is not True and "residual_norm" in self.outputs:
            self.residual_norms.append(output.residual_norm)
        if output.entropy is None:
            output.entropy = torch.zeros_like(output.log_probs)
        return output

    def _scored(self, labels: Tensor, **inputs: Any) -> Any:
        return self.model(**inputs, labels=labels, fused_lm_head=self.outputs)

    def _aligned(self, labels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Any:
        alignment = Alignment(attention_mask)
        output = self._scored(
            alignment.left(labels, -100), input_ids=alignment.left(input_ids, 0), attention_mask=None
        )
        for name in ("log_probs", "entropy", "residual_norm"):  # TRL's head has no norms
            if getattr(output, name, None) is not None:
                setattr(output, name, alignment.back(getattr(output, name)))
        return output


# TRL's function (model, input_ids, attention_mask, logits_to_keep, batch_size=...) -> (log-probabilities, entropies,
# load-balancing loss).
Score = Callable[..., tuple[Tensor, Tensor | None, Tensor | None]]


class Scorer:
    """Runs passes without the padding that their sequences share.

    Args:
        trims: if true, sequences are grouped by length, padding is trimmed and the rest is moved to the right. If
            false, TRL's function runs once.
        largest: returns the largest of the ranks' integers. FSDP needs the same number of passes on every rank.
    """

    def __init__(self, trims: bool, largest: Callable[[int], int]):
        self.trims, self.largest = trims, largest

    def run(
        self,
        score: Score,
        model: Any,
        outputs: Outputs,
        input_ids: Tensor,
        attention_mask: Tensor,
        completion_width: int,
        batch_size: int | None,
        kept: Tensor | None = None,
        has_images: bool = False,
        needs_mask: bool = False,
    ) -> Pass:
        """Score sequences in one or several passes, and return the results in the order of the sequences.

        Args:
            score: see `Score`.
            model, outputs, kept: see `Request`.
            input_ids, attention_mask: (B, P + T).
            completion_width: T.
            batch_size: sequences of a pass at their full width; all by default. Shorter sequences make larger passes.
            has_images: if true, sequences are neither reordered nor trimmed.
            needs_mask: if true, sequences are not aligned, because an output beside the scores depends on the mask.
        """
        trims = self.trims and not has_images
        plan = [(torch.arange(input_ids.size(0), device=input_ids.device), 0, input_ids.size(1))]
        if trims:
            plan = trimmed_passes(attention_mask, completion_width, batch_size, self.largest)
            batch_size = None
        results, aux_losses = [], []
        for rows, start, stop in plan:
            width = completion_width - (input_ids.size(1) - stop)
            projected = kept if kept is None else kept[rows, :width]
            request = Request(model, outputs, projected, aligned=trims and not needs_mask)
            logps, entropies, aux_loss = score(
                request, input_ids[rows, start:stop], attention_mask[rows, start:stop], width, batch_size=batch_size
            )
            norms = torch.cat(request.residual_norms)[:, -width:] if request.residual_norms else None
            unused = (0, completion_width - width)
            results.append([x if x is None else pad(x, unused) for x in (logps, entropies, norms)])
            aux_losses.append(aux_loss)
        places = torch.cat([rows for rows, _, _ in plan]).argsort()
        logps, entropies, norms = (
            None if parts[0] is None else torch.cat(parts)[places] for parts in zip(*results, strict=True)
        )
        return Pass(logps, entropies, norms, None if aux_losses[0] is None else torch.stack(aux_losses).mean())
